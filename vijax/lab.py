"""The gradient lab: measure any estimator's gradient, streaming."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.types import Batch, Estimator, Key, Params, PyTree, Scalar


class GradientReport(NamedTuple):
    """Per element of every leaf: moments of the gradient estimator over independent draws at fixed parameters."""

    mean: Params
    standard_error: Params  # of the mean
    variance: Params  # of one draw, unbiased
    snr: Params  # |mean| / standard deviation of one draw
    loss: Scalar  # mean over the draws, nats
    num_draws: int


def gradient_report(
    key: Key,
    estimator: Estimator,
    params: Params,
    state: PyTree,
    batch: Batch,
    *,
    num_draws: int,
    chunk_size: int = 16,
) -> GradientReport:
    """Mean, standard error, variance and signal-to-noise ratio of every gradient element, at frozen params and batch.

    Streams over the draws with the pairwise form of Welford's algorithm (Chan et al. 1983): memory is `chunk_size`
    gradients, whatever `num_draws`.

    Args:
      state: from `estimator.init(key, params)`, or a fitted one; not updated between draws.
      num_draws: S, at least 2; rounded up to a multiple of `chunk_size` if it is larger than that.
    """
    if num_draws < 2:
        raise ValueError(f"gradient_report: num_draws={num_draws}, but a variance needs at least 2.")
    chunk_size = min(chunk_size, num_draws)
    num_chunks = -(-num_draws // chunk_size)
    mean, variance, loss = _moments(key, params, state, batch, estimator=estimator, shape=(num_chunks, chunk_size))
    total = num_chunks * chunk_size
    standard_error = jax.tree.map(lambda v: jnp.sqrt(v / total), variance)
    snr = jax.tree.map(lambda m, v: jnp.abs(m) / jnp.sqrt(v), mean, variance)
    return GradientReport(mean, standard_error, variance, snr, loss, total)


@functools.partial(jax.jit, static_argnames=("estimator", "shape"))
def _moments(key: Key, params: Params, state: PyTree, batch: Batch, *, estimator: Estimator, shape: tuple[int, int]):
    num_chunks, chunk_size = shape

    def draw(key: Key):
        result, _ = estimator.estimate(key, params, state, batch)
        return result.grads, result.loss

    def chunk(carry, key: Key):
        mean, squares, loss, count = carry
        grads, losses = jax.vmap(draw)(jax.random.split(key, chunk_size))
        here = jax.tree.map(lambda g: jnp.mean(g, axis=0), grads)
        spread = jax.tree.map(lambda g, m: jnp.sum(jnp.square(g - m[None]), axis=0), grads, here)
        after = count + chunk_size
        shift = jax.tree.map(jnp.subtract, here, mean)
        mean = jax.tree.map(lambda m, d: m + d * (chunk_size / after), mean, shift)
        squares = jax.tree.map(lambda s, t, d: s + t + d * d * (count * chunk_size / after), squares, spread, shift)
        return (mean, squares, loss + (jnp.mean(losses) - loss) * (chunk_size / after), after), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    (mean, squares, loss, count), _ = jax.lax.scan(
        chunk, (zeros, zeros, jnp.zeros(()), jnp.zeros(())), jax.random.split(key, num_chunks)
    )
    return mean, jax.tree.map(lambda s: s / (count - 1), squares), loss
