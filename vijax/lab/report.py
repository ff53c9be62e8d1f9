"""What one estimator's gradient is like: its mean, variance, signal-to-noise ratio and bias, each
with its own error.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy import special

from vijax.lab.moments import Moments, groups, measure
from vijax.types import Array, Batch, Estimator, Key, Params, PyTree

LEVEL = 0.05  # of tests and intervals
# Of a gradient in float32, relative to the largest element of its leaf
ROUNDING = 64 * float(np.finfo(np.float32).eps)


class Reference(NamedTuple):
    """What a gradient's mean should be: exact, or measured well by an unbiased estimator.

    Attributes:
      gradient: of the loss; its block `control` is not looked at
      error: its standard error; None: exact
      rounding: of the estimator's own arithmetic, absolute: for gradients of which large terms
        cancel
    """

    gradient: Params
    error: Params | None = None
    rounding: float = 0.0


class Blocks(NamedTuple):
    """Columns, one row per block (theta, phi, control) and per leaf of a block that has several.

    Attributes:
      size: [M] elements
      norm: of the mean gradient; its square is corrected for the variance of the mean
      variance: of one draw, summed over elements: the trace of the covariance
      snr: norm of the reference, or without one of the mean, over the root of the variance
      bias: norm of mean - reference, its square corrected for the noise of both; nan without a
        reference
      worst_z: largest |mean - reference| of an element in standard errors
      p_value: of that, for as many elements as there are: small means biased
      detectable: bias of a typical element that a test at the 5 % level finds with 95 % probability
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


class GradientReport(NamedTuple):
    """Per element, trees like params, and per block. An `_error` is the Monte Carlo standard error
    of the figure before it.

    Attributes:
      variance: of one draw, unbiased
      snr: |reference or mean| / standard deviation of one draw; 0 where the gradient is always 0
      bias: mean - reference; None without one, nan for `control`
      bias_error: of mean and reference together, with an allowance for rounding
    """

    mean: Params
    mean_error: Params
    variance: Params
    variance_error: Params
    snr: Params
    snr_error: Params
    bias: Params | None
    bias_error: Params | None
    blocks: Blocks
    num_draws: int


def gradient_report(
    key: Key,
    estimator: Estimator,
    params: Params,
    state: PyTree,
    batch: Batch,
    *,
    num_draws: int,
    reference: Reference | None = None,
    chunk_size: int | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> GradientReport:
    """Mean, variance, signal-to-noise ratio and bias of the gradient, at frozen params and batch.

    Streams: memory is `chunk_size` gradients and a few copies of params, whatever `num_draws`. The
    bound's value is not part of the report: it costs as much as the gradient. For the gradient in
    q's own parameters, [B, ...] per datum and without the encoder's weights, measure
    `lab.in_lam(estimator)`.

    Args:
      state: from `estimator.init(key, params)`, or a fitted one; not updated between draws.
      num_draws: S, at least 2.
      reference: the exact gradient of the loss, or a measured one with its error, against which to
        look for bias.
      chunk_size: draws taken at once; None: 4 for a million parameters or more, up to 500 for few.
        The draws do not depend on it.
      sharding: how a chunk's draws [chunk_size] lie over devices; None: all on one.

    Raises:
      ValueError: if the reference has other shapes than params, or num_draws < 2.
    """
    if reference is not None:
        _flat(reference, params)  # refuses wrong shapes before the work
    moments = measure(
        key,
        estimator,
        params,
        state,
        batch,
        num_draws=num_draws,
        chunk_size=chunk_size,
        sharding=sharding,
    )
    return report(moments, params, reference)


def report(moments: Moments, params: Params, reference: Reference | None) -> GradientReport:
    """The figures that moments make."""
    known = None if reference is None else _flat(reference, params)
    figures, columns = _derive(moments._replace(squares=None), params, known)
    return GradientReport(
        blocks=Blocks(groups(params)[0], *columns), num_draws=moments.num_draws, **figures
    )


class _Known(NamedTuple):
    """A reference, flat.

    Attributes:
      exact: [P]; nan in control
      error: [P]
    """

    exact: Array
    error: Array
    rounding: float


@jax.jit
def _derive(
    moments: Moments, params: Params, known: _Known | None
) -> tuple[dict[str, Any], tuple[Array, ...]]:
    """Figures per element, as trees, and the columns of the blocks. One program for all estimators
    with these params.
    """
    leaves = jax.tree.leaves(params)
    sizes = [leaf.size for leaf in leaves]
    starts = np.cumsum([0, *sizes])

    def per_leaf(reduce: Callable[[Array], Array], column: Array) -> Array:
        return jnp.stack([reduce(column[a:b]) for a, b in itertools.pairwise(starts)])

    rounding = None
    if known is not None:
        size_of = jnp.maximum(jnp.abs(known.exact), jnp.abs(moments.mean))
        largest = per_leaf(lambda part: jnp.max(part, initial=0.0), size_of)
        rounding = known.rounding + ROUNDING * jnp.repeat(
            largest, np.asarray(sizes), total_repeat_length=int(starts[-1])
        )
    figures = _per_element(moments, known, rounding)
    columns = _per_block(moments, figures, known, per_leaf, params)
    unravel = ravel_pytree(params)[1]
    figures |= {"mean": moments.mean, "variance": moments.variance}
    return {
        name: None if column is None else unravel(column) for name, column in figures.items()
    }, columns


def _per_element(moments: Moments, known: _Known | None, rounding: Array | None) -> dict[str, Any]:
    """Errors by the delta method from the first four moments; they hold where num_draws is
    large.
    """
    n, v, mean = moments.num_draws, moments.variance, moments.mean
    deviation = jnp.sqrt(v)
    mean_error = jnp.sqrt(v / n)
    variance_error = jnp.sqrt(jnp.maximum(moments.fourth - (n - 3) / (n - 1) * v**2, 0.0) / n)
    relative = _ratio(variance_error, v)
    own = {"mean_error": mean_error, "variance_error": variance_error}
    if known is None or rounding is None:
        snr = _ratio(jnp.abs(mean), deviation)
        skewness = _ratio(moments.third, deviation**3) * jnp.sign(mean)
        square = 1.0 / n + snr**2 * relative**2 / 4.0 - snr * skewness / n
        snr_error = jnp.where(v > 0.0, jnp.sqrt(jnp.maximum(square, 0.0)), 0.0)
        return own | {"snr": snr, "snr_error": snr_error, "bias": None, "bias_error": None}
    snr = _ratio(jnp.abs(known.exact), deviation)
    bias_error = jnp.sqrt(v / n + known.error**2 + rounding**2)
    bias = mean - known.exact
    snr_error = jnp.hypot(0.5 * snr * relative, _ratio(known.error, deviation))
    return own | {"snr": snr, "snr_error": snr_error, "bias": bias, "bias_error": bias_error}


def _per_block(
    moments: Moments, figures: dict[str, Any], known: _Known | None, per_leaf: Any, params: Params
):
    """The columns of `Blocks` after its first."""
    members, n = groups(params)[1], moments.num_draws

    def total(column: Array) -> Array:
        return jnp.sum(jnp.where(members, per_leaf(jnp.sum, column)[None], 0.0), axis=1)

    size, variance = total(jnp.ones_like(moments.mean)), total(moments.variance)
    square = jnp.maximum(total(moments.mean**2) - variance / n, 0.0)
    spread, variance_error = moments.spread, jnp.sqrt(moments.spread[:, 0, 0] / n)
    signal = (
        square if known is None else jnp.maximum(total(known.exact**2) - total(known.error**2), 0.0)
    )
    share = _ratio(
        signal, variance
    )  # the squared ratio; its error comes from the draws' pairs (|g - m|^2, m.(g - m))
    if known is None:
        of_signal = (4.0 * spread[:, 1, 1] - 4.0 * share * spread[:, 0, 1]) / n
    else:
        of_signal = 4.0 * total((known.exact * known.error) ** 2)
    share_error = _ratio(
        jnp.sqrt(jnp.maximum(of_signal + share**2 * spread[:, 0, 0] / n, 0.0)), variance
    )
    snr, nan = jnp.sqrt(share), jnp.full(len(members), jnp.nan)
    # The second where there is no signal
    snr_error = jnp.minimum(_ratio(share_error, 2.0 * snr), jnp.sqrt(share_error))
    norm = jnp.sqrt(square)
    norm_error = jnp.minimum(_ratio(jnp.sqrt(spread[:, 1, 1] / n), norm), jnp.sqrt(variance / n))
    columns = (size, norm, norm_error, variance, variance_error, snr, snr_error)
    if known is None:
        return (*columns, nan, nan, nan, nan)
    noise = total(figures["bias_error"] ** 2)
    bias = jnp.sqrt(jnp.maximum(total(figures["bias"] ** 2) - noise, 0.0))
    z = per_leaf(
        lambda part: jnp.max(part, initial=0.0),
        _ratio(jnp.abs(figures["bias"]), figures["bias_error"]),
    )
    worst = jnp.max(jnp.where(members, z[None], -jnp.inf), axis=1)
    p_value = -jnp.expm1(
        size * jnp.log1p(-jnp.minimum(2.0 * special.ndtr(-_as_normal(worst, n - 1)), 1.0 - 1e-6))
    )
    p_value = jnp.where(size > 0, p_value, jnp.nan)
    per_test = -jnp.expm1(np.log1p(-LEVEL) / size)
    detectable = (
        _as_student(-special.ndtri(per_test / 2.0), n - 1) - special.ndtri(LEVEL)
    ) * jnp.sqrt(noise / size)
    return (*columns, bias, worst, p_value, detectable)


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


def _ratio(top: Array, bottom: Array) -> Array:
    """Top / bottom; 0 / 0 is 0."""
    return jnp.where(
        (top == 0.0) & (bottom == 0.0),
        0.0,
        top / jnp.where((top == 0.0) & (bottom == 0.0), 1.0, bottom),
    )


def _flat(reference: Reference, params: Params) -> _Known:
    """The reference as vectors [P]. What control's gradient should be nobody knows: nan."""
    given = [tree for tree in (reference.gradient, reference.error) if tree is not None]
    wanted = jax.tree.map(np.shape, params._replace(control=()))
    for tree in given:
        if not isinstance(tree, Params):
            raise TypeError(
                f"a Reference holds Params(theta, phi, control) of gradients, not "
                f"{type(tree).__name__}."
            )
        shapes = jax.tree.map(np.shape, tree._replace(control=()))
        if shapes != wanted:
            raise ValueError(f"the reference has shapes {shapes}, but the gradient {wanted}.")
    unknown = jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan), params.control)
    exact = ravel_pytree(reference.gradient._replace(control=unknown))[0]
    if reference.error is None:
        return _Known(exact, jnp.zeros_like(exact), reference.rounding)
    return _Known(
        exact, ravel_pytree(reference.error._replace(control=unknown))[0], reference.rounding
    )
