"""The two sources of a minibatch gradient's variance: sampling z, and sampling the minibatch."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax import rows
from vijax.guides.base import marked
from vijax.inference import Estimator
from vijax.lab.moments import groups
from vijax.optimize.minibatch import batch_index
from vijax.types import Array, Batch, Key, Params, PyTree


class Sources(NamedTuple):
    """Columns, one row per block and leaf. Variances of one gradient, summed over elements;
    `_error`: Monte Carlo.

    Attributes:
      block: names, such as phi and phi/z/loc.
      latents: mean over minibatches of the variance given the minibatch.
      latents_error: standard error.
      minibatches: variance over minibatches of the mean given the minibatch; unbiased, so it can
        come out below 0.
      minibatches_error: standard error.
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
      params: where to look; for q's own parameters those of all data, `vijax.in_lam(estimator,
        params, Batch(data, arange(N)))`: a minibatch sees its rows of them.
      data: x, leaves [N, ...].
      num_batches: M, at least 2.
      num_draws: gradients per minibatch, at least 2, which is the best use of a fixed number of
        gradients for the second part unless the first is much the larger.

    Raises:
      ValueError: if a number is impossible, or data or params are not of all N data.
    """
    _check(estimator, params, data, batch_size, num_batches, num_draws)
    shape = (batch_size, num_batches, num_draws)
    within, pair = jax.device_get(
        _measure(key, params, state, data, estimator=estimator, shape=shape)
    )
    between = num_batches / (num_batches - 1) * pair - within / num_draws
    return Sources(
        block=groups(params)[0],
        latents=within.mean(axis=0),
        latents_error=within.std(axis=0, ddof=1) / num_batches**0.5,
        minibatches=between.mean(axis=0),
        minibatches_error=between.std(axis=0, ddof=1) / num_batches**0.5,
    )


def _check(
    estimator: Estimator,
    params: Params,
    data: PyTree,
    batch_size: int,
    num_batches: int,
    num_draws: int,
) -> None:
    if num_batches < 2 or num_draws < 2:
        raise ValueError(
            f"variance_sources(num_batches={num_batches}, num_draws={num_draws}): both must be at "
            f"least 2."
        )
    if not 1 <= batch_size <= estimator.num_data:
        raise ValueError(
            f"batch_size={batch_size} must be between 1 and num_data={estimator.num_data}."
        )
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(data)}
    if sizes != {estimator.num_data}:
        raise ValueError(
            f"data has {sorted(sizes)} rows, but the estimator num_data={estimator.num_data}: pass "
            f"all of its data."
        )
    local = params.phi.lam.get("z") if isinstance(params.phi, rows.Lam) else None
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(local)} - {estimator.num_data}
    if sizes:
        raise ValueError(
            f"params hold q's own parameters of {sorted(sizes)} data, but the estimator "
            f"num_data={estimator.num_data}: write vijax.in_lam(estimator, params, "
            "vijax.Batch(data, jnp.arange(N)))."
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
) -> tuple[Array, Array]:
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
        draws = jax.vmap(lambda k: _gradient(k, estimator, params, state, batch))(keys)
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


def _gradient(
    key: Key, estimator: Estimator, params: Params, state: PyTree, batch: Batch
) -> Params:
    """The gradient of a minibatch in all of params."""
    if not isinstance(params.phi, rows.Lam):
        return estimator.estimate(key, params, state, batch)[0].grads
    # Q's own parameters of all data are a table, of which the minibatch has its rows.
    lam = params.phi.lam
    mask = {name: marked(leaves, value=name == "z") for name, leaves in lam.items()}
    view = rows.Lam(rows.gather(mask, lam, batch.index))
    grads = estimator.estimate(key, params._replace(phi=view), state, batch)[0].grads
    nothing = jax.tree.map(jnp.zeros_like, lam)
    return grads._replace(phi=rows.Lam(rows.scatter(mask, nothing, batch.index, grads.phi.lam)))
