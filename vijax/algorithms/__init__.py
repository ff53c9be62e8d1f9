"""Algorithms: how the state of an inference moves. `vijax.fit` runs any of them."""

from vijax.algorithms.averaging import Averaging, averaged, exponential, since
from vijax.algorithms.batch_and_match import batch_and_match, match
from vijax.algorithms.cavi import cavi
from vijax.algorithms.descent import DescentState, descent
from vijax.algorithms.e_step import EStep, natural_ascent
from vijax.algorithms.em import em
from vijax.algorithms.inner import Inner, inner
from vijax.algorithms.natural_gradient import natural_gradient
from vijax.algorithms.rowwise import RowOptimizer
from vijax.algorithms.svgd import particles, stein_direction, svgd

__all__ = [
    "Averaging",
    "DescentState",
    "EStep",
    "Inner",
    "RowOptimizer",
    "averaged",
    "batch_and_match",
    "cavi",
    "descent",
    "em",
    "exponential",
    "inner",
    "match",
    "natural_ascent",
    "natural_gradient",
    "particles",
    "since",
    "stein_direction",
    "svgd",
]
