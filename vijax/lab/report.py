"""What one estimator's gradient is like: its mean, variance, signal-to-noise ratio and bias, each
with its own error.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from vijax.inference import Estimator
from vijax.lab.blocks import Blocks, columns, per_leaf, ratio
from vijax.lab.moments import Moments, groups, measure
from vijax.lab.reference import Known, Reference, flat
from vijax.types import Array, Batch, Key, Params, PyTree

# Of a gradient in float32, relative to the largest element of its leaf
ROUNDING = 64 * float(np.finfo(np.float32).eps)


class GradientReport(NamedTuple):
    """Per element, trees like params, and per block. An `_error` is the Monte Carlo standard error
    of the figure before it.

    Attributes:
      mean: over the draws.
      mean_error: standard error.
      variance: of one draw, unbiased.
      variance_error: standard error.
      snr: |reference or mean| / standard deviation of one draw; 0 where the gradient is always 0.
      snr_error: standard error.
      bias: mean - reference; None without one, nan for `control`.
      bias_error: of mean and reference together, with an allowance for rounding.
      blocks: the figures of whole blocks and leaves.
      num_draws: S.
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

    The variance of the gradient of a block (theta, phi) is everywhere the sum over its elements of
    the variances of one draw: the trace of the covariance. The gradient is that of the estimator's
    loss, which is minus the bound on the whole data set in nats, however small the batch; the unit
    is nats^2 (parameters have none). Per datum it is 1 / N^2 of that.

    Streams: memory is `chunk_size` gradients and a few copies of params, whatever `num_draws`. The
    bound's value is not part of the report: it costs as much as the gradient.

    Args:
      params: where to look; `vijax.in_lam(estimator, params, batch)` for the gradient in q's own
        parameters, [B, ...] per datum and free of an encoder's weights.
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
        flat(reference, params)  # refuses wrong shapes before the work
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
    known = None if reference is None else flat(reference, params)
    figures, of_blocks = derive(moments._replace(squares=None), params, known)
    blocks = Blocks(groups(params)[0], *of_blocks)
    return GradientReport(blocks=blocks, num_draws=moments.num_draws, **figures)


@jax.jit
def derive(
    moments: Moments, params: Params, known: Known | None
) -> tuple[dict[str, Any], tuple[Array, ...]]:
    """Figures per element, as trees, and the columns of the blocks. One program for all estimators
    with these params.
    """
    figures = _per_element(moments, known, _rounding(moments, params, known))
    of_blocks = columns(moments, params, known, figures)
    figures |= {"mean": moments.mean, "variance": moments.variance}
    unravel = ravel_pytree(params)[1]
    trees = {name: None if figure is None else unravel(figure) for name, figure in figures.items()}
    return trees, of_blocks


def _rounding(moments: Moments, params: Params, known: Known | None) -> Array | None:
    """[P] what the estimator's own arithmetic may be off by; None without a reference."""
    if known is None:
        return None
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    size_of = jnp.maximum(jnp.abs(known.exact), jnp.abs(moments.mean))
    largest = per_leaf(lambda part: jnp.max(part, initial=0.0), size_of, sizes)
    repeated = jnp.repeat(largest, np.asarray(sizes), total_repeat_length=sum(sizes))
    return known.rounding + ROUNDING * repeated


def _per_element(moments: Moments, known: Known | None, rounding: Array | None) -> dict[str, Any]:
    """Errors by the delta method from the first four moments; they hold where num_draws is
    large.
    """
    n, v, mean = moments.num_draws, moments.variance, moments.mean
    deviation = jnp.sqrt(v)
    mean_error = jnp.sqrt(v / n)
    variance_error = jnp.sqrt(jnp.maximum(moments.fourth - (n - 3) / (n - 1) * v**2, 0.0) / n)
    relative = ratio(variance_error, v)
    own = {"mean_error": mean_error, "variance_error": variance_error}
    if known is None or rounding is None:
        snr = ratio(jnp.abs(mean), deviation)
        skewness = ratio(moments.third, deviation**3) * jnp.sign(mean)
        square = 1.0 / n + snr**2 * relative**2 / 4.0 - snr * skewness / n
        snr_error = jnp.where(v > 0.0, jnp.sqrt(jnp.maximum(square, 0.0)), 0.0)
        return own | {"snr": snr, "snr_error": snr_error, "bias": None, "bias_error": None}
    snr = ratio(jnp.abs(known.exact), deviation)
    bias_error = jnp.sqrt(v / n + known.error**2 + rounding**2)
    bias = mean - known.exact
    snr_error = jnp.hypot(0.5 * snr * relative, ratio(known.error, deviation))
    return own | {"snr": snr, "snr_error": snr_error, "bias": bias, "bias_error": bias_error}
