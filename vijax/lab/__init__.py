"""The gradient lab: bias, variance, signal-to-noise ratio and cost of any estimator, each figure
with its own error.

Everything is measured at `params` as they are stored, or at `vijax.in_lam(estimator, params,
batch)` for gradients in q's own parameters. Results are NamedTuples of columns: `to_dataframe`
makes a pandas table of them, to print or to write as CSV or JSON.
"""

from vijax.lab.blocks import Blocks
from vijax.lab.comparison import Comparison, compare, concatenate
from vijax.lab.cost import Timing, evaluations, timing
from vijax.lab.dataframe import to_dataframe
from vijax.lab.learned import Learned, learn
from vijax.lab.reference import Reference
from vijax.lab.report import GradientReport, gradient_report
from vijax.lab.sources import Sources, variance_sources
from vijax.lab.sweeps import Point, Slopes, along, slopes, sweep

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
    "learn",
    "slopes",
    "sweep",
    "timing",
    "to_dataframe",
    "variance_sources",
]
