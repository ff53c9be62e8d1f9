"""An estimator looked at: draws of its gradient, single calls, the slope of its loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.inference import Estimate, Estimator
from vijax.testing.averages import Average, average, compiled, exactly, quickly
from vijax.types import Array, Batch, Key, Params, PyTree

STEP = 0.05


class Agreement(NamedTuple):
    """One estimator in single calls with one key; `Estimate`s without aux.

    Attributes:
      whole: the full batch.
      again: the same call again.
      vmapped: the same call for this key and another, leaves [2, ...].
      parts: the batches of a partition.
      singles: each datum as a batch of its own.
    """

    whole: Estimate
    again: Estimate
    vmapped: Estimate
    parts: list[Estimate]
    singles: list[Estimate]


def gradient_draws(
    key: Key, estimator: Estimator, params: Params, state: PyTree, batch: Batch, *, num_draws: int
) -> tuple[Estimate, Estimate]:
    """S independent `Estimate`s (without aux) of one batch, then one more: the first key, the rows
    in reverse order.

    One instance of the estimator is traced and compiled, whatever is asked of it.
    """

    def one(key: Key, reverse: Array) -> Estimate:
        rows = jnp.arange(batch.index.shape[0])
        order = jnp.where(reverse, rows[::-1], rows)
        cut = jax.tree.map(lambda leaf: leaf[order], batch)
        return estimator.estimate(key, params, state, cut)[0]._replace(aux=())

    keys = jax.random.split(key, num_draws)
    keys, reverse = jnp.concatenate([keys, keys[:1]]), np.arange(num_draws + 1) == num_draws
    seen = compiled(jax.vmap(one), keys, jnp.asarray(reverse))
    return jax.tree.map(lambda leaf: leaf[:-1], seen), jax.tree.map(lambda leaf: leaf[-1], seen)


def single_calls(
    key: Key,
    estimator: Estimator,
    params: Params,
    state: PyTree,
    batch: Batch,
    cut: list[list[int]],
) -> Agreement:
    """One compilation per size: B = N, 1 and those of a partition, `cut` into rows of the batch."""

    def one(key: Key, params: Params, state: PyTree, batch: Batch) -> Estimate:
        return estimator.estimate(key, params, state, batch)[0]._replace(aux=())

    programs: dict[int, Callable[..., Estimate]] = {}

    def call(rows: list[int]) -> Estimate:
        part = jax.tree.map(lambda leaf: leaf[np.asarray(rows)], batch)
        given = key, params, state, part
        if len(rows) not in programs:
            programs[len(rows)] = quickly(one, *given)
        return programs[len(rows)](*given)

    rows = list(range(batch.index.shape[0]))
    whole, again = call(rows), call(rows)
    keys = jnp.stack([key, jax.random.fold_in(key, 0)])
    vmapped = compiled(jax.vmap(lambda key: one(key, params, state, batch)), keys)
    parts, singles = [call(part) for part in cut], [call([row]) for row in rows]
    return Agreement(whole, again, vmapped, parts, singles)


def slopes(
    key: Key, estimator: Estimator, params: Params, state: PyTree, batch: Batch, *, num_draws: int
) -> tuple[Average, Average]:
    """(mean gradient, slope of the mean loss) along one random direction in theta and one in phi;
    the error is that of their difference, draw by draw with the same key.

    The slope is by differences at two steps, extrapolated to none.
    """
    ways = _directions(params)

    def one(key: Key) -> tuple[dict[str, Array], dict[str, Array]]:
        def loss(way: Params, step: float) -> Array:
            at = jax.tree.map(lambda leaf, move: leaf + step * move, params, way)
            return estimator.estimate(key, at, state, batch)[0].loss

        def slope(way: Params) -> Array:
            near, far = ((loss(way, h) - loss(way, -h)) / (2.0 * h) for h in (STEP, 2.0 * STEP))
            return (4.0 * near - far) / 3.0

        grads = estimator.estimate(key, params, state, batch)[0].grads
        along = {name: _dot(grads, way) for name, way in ways.items()}
        return along, {name: slope(way) for name, way in ways.items()}

    along, across = compiled(jax.vmap(one), jax.random.split(key, num_draws))
    apart = average(jax.tree.map(jnp.subtract, along, across))
    mean = {name: float(np.mean(leaf)) for name, leaf in across.items()}
    ours = {name: mean[name] + apart.mean[name] for name in mean}
    return Average(ours, apart.error), exactly(mean)


def _directions(params: Params) -> dict[str, Params]:
    """Of length 1, in each of theta and phi."""
    random = np.random.default_rng(0)
    still = jax.tree.map(jnp.zeros_like, params)
    found = {}
    for name in ("theta", "phi"):
        block = getattr(params, name)
        way = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), block)
        if jax.tree.leaves(way):
            length = jnp.sqrt(_dot(way, way))
            way = jax.tree.map(
                lambda leaf, like, n=length: (leaf / n).astype(like.dtype), way, block
            )
            found[name] = still._replace(**{name: way})
    return found


def _dot(left: PyTree, right: PyTree) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, left, right)), jnp.zeros(()))
