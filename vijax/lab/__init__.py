"""The gradient lab: bias, variance, signal-to-noise ratio and cost of any estimator, each figure
with its own error.

Results are NamedTuples of columns: `to_dataframe` makes a pandas table of them, to print or to
write as CSV or JSON.
"""

from vijax.lab.comparison import Comparison, Learned, along, compare, concatenate, in_lam
from vijax.lab.cost import Timing, evaluations, timing
from vijax.lab.learned import learn
from vijax.lab.report import Blocks, GradientReport, Reference, gradient_report
from vijax.lab.sources import Sources, variance_sources
from vijax.lab.sweeps import Point, Slopes, slopes, sweep
from vijax.lab.tables import to_dataframe

__all__ = [
    "Blocks",
    "Comparison",
    "GradientReport",
    "Learned",
    "Point",
    "Reference",
    "Slopes",
    "Sources",
    "Timing",
    "along",
    "compare",
    "concatenate",
    "evaluations",
    "gradient_report",
    "in_lam",
    "learn",
    "slopes",
    "sweep",
    "timing",
    "to_dataframe",
    "variance_sources",
]
