"""The two sources of a minibatch gradient's variance: sampling z, and sampling the minibatch."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.lab.moments import groups
from vijax.minibatch import batch_index
from vijax.types import Array, Batch, Estimator, Key, Params, PyTree


class Sources(NamedTuple):
    """Columns, one row per block and leaf. Variances of one gradient, summed over elements;
    `_error`: Monte Carlo.

    Attributes:
      latents: mean over minibatches of the variance given the minibatch
      minibatches: variance over minibatches of the mean given the minibatch; unbiased, so it can
        come out below 0
    """

    block: tuple[str, ...]
    latents: np.ndarray
    latents_error: np.ndarray
    minibatches: np.ndarray
    minibatches_error: np.ndarray


def variance_sources(
    key: Key,
    estimator: Estimator,
    params: Params,
    state: PyTree,
    data: PyTree,
    *,
    batch_size: int,
    num_batches: int,
    num_draws: int = 2,
) -> Sources:
    """Var[g] = E[Var(g | minibatch)] + Var(E[g | minibatch]), both parts without bias (one-way
    random-effects model).

    Minibatches are drawn as `fit` draws them, uniformly and without replacement. With batch_size =
    N the second part is 0.

    Args:
      data: x, leaves [N, ...].
      num_batches: M, at least 2.
      num_draws: gradients per minibatch, at least 2, which is the best use of a fixed number of
        gradients for the second part unless the first is much the larger.
    """
    if num_batches < 2 or num_draws < 2:
        raise ValueError(
            f"variance_sources(num_batches={num_batches}, num_draws={num_draws}): both must be at "
            f"least 2."
        )
    if not 1 <= batch_size <= estimator.num_data:
        raise ValueError(
            f"batch_size={batch_size} must be between 1 and num_data={estimator.num_data}."
        )
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(data)}
    if rows != {estimator.num_data}:
        raise ValueError(
            f"data has {sorted(rows)} rows, but the estimator num_data={estimator.num_data}: pass "
            f"all of its data."
        )
    shape = (batch_size, num_batches, num_draws)
    within, pair = jax.device_get(
        _measure(key, params, state, data, estimator=estimator, shape=shape)
    )
    between = num_batches / (num_batches - 1) * pair - within / num_draws
    return Sources(
        groups(params)[0],
        within.mean(axis=0),
        within.std(axis=0, ddof=1) / num_batches**0.5,
        between.mean(axis=0),
        between.std(axis=0, ddof=1) / num_batches**0.5,
    )


@functools.partial(jax.jit, static_argnames=("estimator", "shape"))
def _measure(
    key: Key,
    params: Params,
    state: PyTree,
    data: PyTree,
    *,
    estimator: Estimator,
    shape: tuple[int, int, int],
):
    """[M, groups] variance of the draws of each minibatch, and squared distance of their mean from
    the mean of all.
    """
    batch_size, num_batches, num_draws = shape
    members = jnp.asarray(groups(params)[1], jnp.float32)
    batch_key, draw_key = jax.random.split(key)

    def of_batch(number: Array) -> tuple[Params, Array]:
        step_key = jax.random.fold_in(batch_key, number)
        index = batch_index(
            step_key, jnp.zeros((), int), num_data=estimator.num_data, batch_size=batch_size
        )
        batch = Batch(jax.tree.map(lambda leaf: leaf[index], data), index)
        keys = jax.random.split(jax.random.fold_in(draw_key, number), num_draws)
        draws = jax.vmap(lambda k: estimator.estimate(k, params, state, batch)[0].grads)(keys)
        spread = [jnp.sum(jnp.var(leaf, axis=0, ddof=1)) for leaf in jax.tree.leaves(draws)]
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), draws), members @ jnp.stack(spread)

    # Twice through the minibatches: the second pass knows the mean, and no gradient is kept.
    numbers = jnp.arange(num_batches)
    zeros = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(
        lambda sums, i: (jax.tree.map(jnp.add, sums, of_batch(i)[0]), None), zeros, numbers
    )
    mean = jax.tree.map(lambda leaf: leaf / num_batches, total)

    def distance(number: Array) -> tuple[Array, Array]:
        here, spread = of_batch(number)
        away = jax.tree.map(lambda a, b: jnp.sum(jnp.square(a - b)), here, mean)
        return spread, members @ jnp.stack(jax.tree.leaves(away))

    return jax.lax.map(distance, numbers)
