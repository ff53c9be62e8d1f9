"""What theta's gradient, or phi's, is like as a whole: figures summed over the elements of a block,
each with its own error.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from vijax.lab.moments import Moments, groups
from vijax.lab.reference import Known
from vijax.types import Array, Params

LEVEL = 0.05  # of tests and intervals


class Blocks(NamedTuple):
    """Columns, one row per block (theta, phi, control) and per leaf of a block that has several.

    Attributes:
      block: names, such as phi and phi/z/loc.
      size: [M] elements.
      norm: of the mean gradient; its square is corrected for the variance of the mean.
      norm_error: standard error, as all that are called so.
      variance: of one draw, summed over elements, nats^2: see `lab.gradient_report`.
      variance_error: standard error.
      snr: norm of the reference, or without one of the mean, over the root of the variance.
      snr_error: standard error.
      bias: norm of mean - reference, its square corrected for the noise of both; nan without a
        reference.
      worst_z: largest |mean - reference| of an element in standard errors.
      p_value: of that, for as many elements as there are: small means biased.
      detectable: bias of a typical element that a test at the 5 % level finds with 95 %
        probability.
    """

    block: tuple[str, ...]
    size: Array
    norm: Array
    norm_error: Array
    variance: Array
    variance_error: Array
    snr: Array
    snr_error: Array
    bias: Array
    worst_z: Array
    p_value: Array
    detectable: Array


def columns(
    moments: Moments, params: Params, known: Known | None, elements: Mapping[str, Any]
) -> tuple[Array, ...]:
    """The columns of `Blocks` after its first.

    Args:
      elements: [P] figures of every element, of which `bias` and `bias_error` are looked at if
        there is a reference.
    """
    members, n = groups(params)[1], moments.num_draws
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]

    def total(column: Array) -> Array:
        by_leaf = per_leaf(jnp.sum, column, sizes)
        return jnp.sum(jnp.where(members, by_leaf[None], 0.0), axis=1)

    size, variance = total(jnp.ones_like(moments.mean)), total(moments.variance)
    square = jnp.maximum(total(moments.mean**2) - variance / n, 0.0)
    spread, variance_error = moments.spread, jnp.sqrt(moments.spread[:, 0, 0] / n)
    # The squared ratio; its error comes from the draws' pairs (|g - m|^2, m.(g - m)).
    if known is None:
        share = ratio(square, variance)
        of_signal = (4.0 * spread[:, 1, 1] - 4.0 * share * spread[:, 0, 1]) / n
    else:
        signal = jnp.maximum(total(known.exact**2) - total(known.error**2), 0.0)
        share = ratio(signal, variance)
        of_signal = 4.0 * total((known.exact * known.error) ** 2)
    of_share = jnp.sqrt(jnp.maximum(of_signal + share**2 * spread[:, 0, 0] / n, 0.0))
    share_error = ratio(of_share, variance)
    snr, norm = jnp.sqrt(share), jnp.sqrt(square)
    # The second of each where there is no signal
    snr_error = jnp.minimum(ratio(share_error, 2.0 * snr), jnp.sqrt(share_error))
    norm_error = jnp.minimum(ratio(jnp.sqrt(spread[:, 1, 1] / n), norm), jnp.sqrt(variance / n))
    figures = (size, norm, norm_error, variance, variance_error, snr, snr_error)
    if known is None:
        nan = jnp.full(len(members), jnp.nan)
        return (*figures, nan, nan, nan, nan)
    bias, bias_error = elements["bias"], elements["bias_error"]
    noise = total(bias_error**2)
    norm_of_bias = jnp.sqrt(jnp.maximum(total(bias**2) - noise, 0.0))
    z = per_leaf(lambda part: jnp.max(part, initial=0.0), ratio(jnp.abs(bias), bias_error), sizes)
    worst = jnp.max(jnp.where(members, z[None], -jnp.inf), axis=1)
    found = p_of_largest(worst, size, n - 1), _detectable(size, noise, n - 1)
    return (*figures, norm_of_bias, worst, *found)


def p_of_largest(worst: Array, size: Array, freedom: Any) -> Array:
    """Of the largest of `size` z-scores, each of a mean of freedom + 1 draws."""
    one = jnp.minimum(2.0 * special.ndtr(-_as_normal(worst, freedom)), 1.0 - 1e-6)
    return jnp.where(size > 0, -jnp.expm1(size * jnp.log1p(-one)), jnp.nan)


def _detectable(size: Array, noise: Array, freedom: Any) -> Array:
    """The bias of an element that would be found."""
    per_test = -jnp.expm1(np.log1p(-LEVEL) / size)
    reach = _as_student(-special.ndtri(per_test / 2.0), freedom) - special.ndtri(LEVEL)
    return reach * jnp.sqrt(noise / size)


def per_leaf(reduce: Callable[[Array], Array], column: Array, sizes: Sequence[int]) -> Array:
    """[L]: `reduce` of the part of a column [P] that belongs to each leaf."""
    ends = itertools.pairwise(np.cumsum([0, *sizes]))
    return jnp.stack([reduce(column[a:b]) for a, b in ends])


def ratio(top: Array, bottom: Array) -> Array:
    """Top / bottom; 0 / 0 is 0."""
    nothing = (top == 0.0) & (bottom == 0.0)
    return jnp.where(nothing, 0.0, top / jnp.where(nothing, 1.0, bottom))


def _as_normal(t: Array, freedom: Any) -> Array:
    """The normal deviate with the tail probability of Student's t. Wallace 1959, eq. 5.3: better
    than 1 % of itself.
    """
    scale = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    return scale * jnp.sqrt(freedom * jnp.log1p(t**2 / freedom))


def _as_student(z: Array, freedom: Any) -> Array:
    """The inverse of `_as_normal`."""
    scale = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    return jnp.sqrt(freedom * jnp.expm1((z / scale) ** 2 / freedom))
