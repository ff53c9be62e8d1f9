"""The gradient lab: measure any estimator's gradient, streaming."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.shapes import is_batch
from vijax.types import Batch, Estimator, Key, Params, PyTree

CHUNK_NUMBERS = 2**18  # gradient elements held at once


class GradientReport(NamedTuple):
    """Per element of every leaf: moments of the gradient estimator over independent draws at fixed parameters."""

    mean: Params
    standard_error: Params  # of the mean
    variance: Params  # of one draw, unbiased
    snr: Params  # |mean| / standard deviation of one draw; 0 where the gradient is always 0
    num_draws: int


def gradient_report(
    key: Key,
    estimator: Estimator,
    params: Params,
    state: PyTree,
    batch: Batch,
    *,
    num_draws: int,
    chunk_size: int | None = None,
) -> GradientReport:
    """Mean, standard error, variance and signal-to-noise ratio of every gradient element, at frozen params and batch.

    Streams over the draws with the pairwise form of Welford's algorithm (Chan et al. 1983): memory is `chunk_size`
    gradients, whatever `num_draws`. The bound's value is not part of the report: it costs as much as the gradient.

    Args:
      state: from `estimator.init(key, params)`, or a fitted one; not updated between draws.
      num_draws: S, at least 2; rounded up to a multiple of `chunk_size` if it is larger than that.
      chunk_size: draws taken at once; None: 4 for a million parameters or more, up to 500 for few.
    """
    is_batch(batch)
    if num_draws < 2:
        raise ValueError(f"gradient_report: num_draws={num_draws}, but a variance needs at least 2.")
    if chunk_size is None:
        num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
        chunk_size = min(max(4, CHUNK_NUMBERS // max(1, num_params)), 500)
    chunk_size = min(chunk_size, num_draws)
    num_chunks = -(-num_draws // chunk_size)
    mean, variance = _moments(key, params, state, batch, estimator=estimator, shape=(num_chunks, chunk_size))
    total = num_chunks * chunk_size
    standard_error = jax.tree.map(lambda v: jnp.sqrt(v / total), variance)
    snr = jax.tree.map(lambda m, v: jnp.where(m == 0.0, 0.0, jnp.abs(m) / jnp.sqrt(v)), mean, variance)
    return GradientReport(mean, standard_error, variance, snr, total)


@functools.partial(jax.jit, static_argnames=("estimator", "shape"))
def _moments(key: Key, params: Params, state: PyTree, batch: Batch, *, estimator: Estimator, shape: tuple[int, int]):
    num_chunks, chunk_size = shape

    def chunk(carry, key: Key):
        mean, squares, count = carry
        draws = jax.vmap(lambda k: estimator.estimate(k, params, state, batch)[0].grads)(jax.random.split(key, chunk_size))
        here = jax.tree.map(lambda g: jnp.mean(g, axis=0), draws)
        spread = jax.tree.map(lambda g, m: jnp.sum(jnp.square(g - m[None]), axis=0), draws, here)
        after = count + chunk_size
        shift = jax.tree.map(jnp.subtract, here, mean)
        mean = jax.tree.map(lambda m, d: m + d * (chunk_size / after), mean, shift)
        squares = jax.tree.map(lambda s, t, d: s + t + d * d * (count * chunk_size / after), squares, spread, shift)
        return (mean, squares, after), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    (mean, squares, count), _ = jax.lax.scan(chunk, (zeros, zeros, jnp.zeros(())), jax.random.split(key, num_chunks))
    return mean, jax.tree.map(lambda s: s / (count - 1), squares)
