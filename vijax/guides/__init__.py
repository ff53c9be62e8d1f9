"""Guides: where q's parameters come from. One shared set, a table with a row phi_i per datum, an
encoder of x_i, or either refined by a few steps; swapped by one argument.
"""

from vijax.guides.amortized import amortized
from vijax.guides.base import as_it_is, at_hand, global_q, locate, over_data
from vijax.guides.hierarchical import hierarchical
from vijax.guides.semi_amortized import semi_amortized
from vijax.guides.stored import per_datapoint, shared, with_shared

__all__ = [
    "amortized",
    "as_it_is",
    "at_hand",
    "global_q",
    "hierarchical",
    "locate",
    "over_data",
    "per_datapoint",
    "semi_amortized",
    "shared",
    "with_shared",
]
