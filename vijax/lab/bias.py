"""Which estimators of a comparison have another mean than they should: against a reference, or
without one against each other. Nothing here draws.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.lab.blocks import p_of_largest
from vijax.lab.report import ROUNDING, GradientReport

LEVEL = 0.001  # joint, of the tests of all estimators of one comparison

SOUND = "no bias seen"
BIASED = "biased"  # against the reference
DISAGREES = "disagrees"  # with others, where there is no reference
ZERO = "zero gradient"
BROKEN = "not finite"
UNTESTED = "untested"
FINE = (SOUND, UNTESTED)


class Mean(NamedTuple):
    """The mean gradient in one block.

    Attributes:
      value: [P].
      error: [P] standard error, with an allowance for rounding.
    """

    value: np.ndarray
    error: np.ndarray


def mean_of(report: GradientReport, block: str) -> Mean:
    """The block's part of a report's mean."""

    def allowed(value: Any, error: Any) -> np.ndarray:
        largest = jnp.max(jnp.abs(value), initial=0.0)
        return np.ravel(error + ROUNDING * largest)

    value, error = getattr(report.mean, block), getattr(report.mean_error, block)
    errors = jax.tree.leaves(jax.tree.map(allowed, value, error))
    values = [np.ravel(leaf) for leaf in jax.tree.leaves(value)]
    return Mean(np.concatenate(values), np.concatenate(errors))


def pairs(means: Sequence[Mean], num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """[E, E]: the largest difference of two means in standard errors, and its p-value, for as many
    elements as there are.

    The error of a difference is taken as the sum of both errors: it holds however the draws of two
    estimators depend on each other.
    """
    worst = np.zeros((len(means), len(means)))
    for i, one in enumerate(means):
        for j, other in enumerate(means[:i]):
            with np.errstate(divide="ignore", invalid="ignore"):
                z = np.abs(one.value - other.value) / (one.error + other.error)
            worst[i, j] = worst[j, i] = np.max(np.nan_to_num(z), initial=0.0)
    size = jnp.full(worst.shape, len(means[0].value))
    return worst, np.asarray(p_of_largest(jnp.asarray(worst), size, num_draws - 1), float)


def against_reference(p_value: np.ndarray) -> np.ndarray:
    """[E] what the p-values of every estimator's bias say of it."""
    level = _each(len(p_value))
    named = np.where(p_value < level, BIASED, SOUND)
    return np.where(np.isnan(p_value), UNTESTED, named)


def against_each_other(p_value: np.ndarray, claims: np.ndarray) -> np.ndarray:
    """[E] what the p-values of pairs say of each.

    Of those that claim to be unbiased, whichever disagrees with most others is put aside, all of
    them where several disagree with as many, until the rest agree. Whoever makes no claim must
    agree with that rest.

    Args:
      p_value: [E, E].
      claims: [E] bool: says that it is unbiased, and can be tested.
    """
    off = p_value < _each(len(claims) * (len(claims) - 1) // 2)
    rest = claims.copy()
    while np.any(off[np.ix_(rest, rest)]):
        against = np.where(rest, np.sum(off & rest[None, :], axis=1), 0)
        rest &= against < np.max(against)
    others = np.sum(rest) - rest  # each is tested against
    status = np.where(others > 0, SOUND, UNTESTED)
    disagrees = np.any(off & rest[None, :], axis=1) | (claims & ~rest)
    return np.where(disagrees, DISAGREES, status)


def _each(num: int) -> float:
    """The level of each of so many tests. Sidak 1967."""
    return float(-np.expm1(np.log1p(-LEVEL) / max(1, num)))
