"""Optimisers for tables with one row per datum: a step touches the rows of its batch and nothing
else.

`lazy` runs any optax optimiser per row; idle rows do not move. `adam` gives dense Adam's result:
what an idle row missed is applied in closed form when it is next touched.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vijax.host import Place
from vijax.types import Array, PyTree


class RowOptimizer(NamedTuple):
    """Updates of table rows. Tables: leaves [N, ...]; rows: [B, ...]; `clock`: [] int, updates
    every row should have had.

    Attributes:
      name: what kind it is: a run resumes under the same one.
      init: tables -> state, leaves [N, ...].
      catch_up: (rows, their state, clock) -> both, brought to clock.
      update: (grads, state, rows, clock, scale) -> (rows, state). `grads` are those of each datum's
        own loss; `scale` is N / B, by which they stand in the loss of the whole data set.
      place: where table and state live if not on the device, see `on_host`.
    """

    name: str
    init: Callable[[PyTree], PyTree]
    catch_up: Callable[[PyTree, PyTree, Array], tuple[PyTree, PyTree]]
    update: Callable[[PyTree, PyTree, PyTree, Array, float], tuple[PyTree, PyTree]]
    place: Place | None = None


def on_host(rows: RowOptimizer, path: str | os.PathLike[str] | None = None) -> RowOptimizer:
    """The same updates of a table that is larger than the device's memory: its rows and their
    optimiser state stay in host memory, those of the batches of a chunk of steps alone go to the
    device and back. The numbers are those of a table on the device.

    `params` of a result then have numpy leaves as tables; making them passes over all rows.
    Initial ones may be numpy's too (`np.broadcast_to` of one row takes no memory), or made on the
    host: `with jax.default_device(jax.devices("cpu")[0]): estimator.init_params(key)`.

    Args:
      rows: `rowwise.adam(rate)` or `rowwise.lazy(optimizer)`.
      path: a file to keep the table in, memory-mapped, that the run makes and works in: it holds
        the newest state alone, so a result is current until the run goes on, and a process that is
        killed leaves a file that only a saved result mends. None: in memory.

    Raises:
      TypeError: if rows is no row optimiser.
      ValueError: by `fit`, if the file exists, unless a result is resumed in its own; with batches
        of the whole data set, or with `averaging`, which would move every row at every step.
    """
    if not isinstance(rows, RowOptimizer):
        raise TypeError(
            f"rowwise.on_host({rows!r}): give a row optimiser, as in rowwise.on_host("
            "rowwise.adam(0.05))."
        )
    return rows._replace(place=Place(None if path is None else os.path.abspath(path)))


# Equal arguments give the same object, which compiled programs are looked up by
@functools.lru_cache(maxsize=64)
def lazy(optimizer: optax.GradientTransformation) -> RowOptimizer:
    """Any optax optimiser with a separate state, step count included, for every row; idle rows do
    not move.

    It is given the gradient of a datum's own loss, without the factor N / B of the minibatch: a row
    moves only when its datum is drawn, so a learning rate means the same at every batch size.

    Equals the dense optimiser if every batch is the whole data set and the optimiser acts on each
    element by itself (clipping by a global norm becomes clipping by the norm of each row).
    """

    def update(
        grads: PyTree, state: PyTree, rows: PyTree, clock: Array, scale: float
    ) -> tuple[PyTree, PyTree]:
        updates, state = jax.vmap(optimizer.update)(grads, state, rows)
        return optax.apply_updates(rows, updates), state

    return RowOptimizer(
        name="lazy",
        init=jax.vmap(optimizer.init),
        catch_up=lambda rows, state, clock: (rows, state),
        update=update,
    )


class AdamRows(NamedTuple):
    """Per-row Adam state: moments like the table, and the clock [N] up to which each row is
    current.
    """

    first: PyTree
    second: PyTree
    clock: Array


def adam(
    learning_rate: float | optax.Schedule, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> RowOptimizer:
    """Adam (Kingma and Ba 2015) on every row at every step, at the cost of the batch's rows only.

    A row without data has zero gradient: its moments decay geometrically, and its n missed updates
    are a geometric sum in b1 / sqrt(b2) times factors that vary slowly. Those factors are taken at
    the sum's centre of mass. Exact when no step is missed; otherwise the sum is a few per cent off
    (10 % in the first twenty steps of a run), a small part of a row's motion.

    Args:
      learning_rate: a number or an optax schedule of the global step.
      b1, b2, eps: as in `optax.adam`.

    Raises:
      ValueError: unless 0 <= b1 < 1, 0 < b2 < 1 and b1^2 < b2.
    """
    if not 0.0 <= b1 < 1.0 or not 0.0 < b2 < 1.0 or b1 * b1 >= b2:
        raise ValueError(
            f"rowwise.adam(b1={b1}, b2={b2}): needs 0 <= b1 < 1, 0 < b2 < 1 and b1^2 < b2."
        )
    ratio = b1 / b2**0.5

    def rate(clock: Array) -> jax.typing.ArrayLike:
        return learning_rate(clock) if callable(learning_rate) else learning_rate

    def init(table: PyTree) -> AdamRows:
        num_rows = jax.tree.leaves(table)[0].shape[0]
        zeros = jax.tree.map(jnp.zeros_like, table)
        return AdamRows(zeros, zeros, jnp.zeros((num_rows,), jnp.int32))

    def catch_up(rows: PyTree, state: AdamRows, clock: Array) -> tuple[PyTree, AdamRows]:
        missed = (clock - state.clock).astype(jnp.result_type(float))
        decayed = _power(ratio, missed)
        weight = ratio * (1.0 - decayed) / (1.0 - ratio)
        moment = (
            ratio * (1.0 - (missed + 1.0) * decayed + missed * decayed * ratio) / (1.0 - ratio) ** 2
        )
        centre = moment / jnp.where(missed > 0, weight, 1.0)
        when = state.clock + centre
        unbias1, unbias2 = 1.0 - _power(b1, when), 1.0 - _power(b2, when)

        def move(row: Array, first: Array, second: Array) -> Array:
            scale = jnp.sqrt(second) + eps * _like(jnp.sqrt(unbias2 / _power(b2, centre)), row)
            size = rate(when - 1.0) * weight * jnp.sqrt(unbias2) / unbias1
            return row - jnp.where(_like(missed > 0, row), _like(size, row) * first / scale, 0.0)

        return jax.tree.map(move, rows, state.first, state.second), AdamRows(
            jax.tree.map(lambda m: m * _like(_power(b1, missed), m), state.first),
            jax.tree.map(lambda v: v * _like(_power(b2, missed), v), state.second),
            jnp.full_like(state.clock, clock),
        )

    def update(
        grads: PyTree, state: AdamRows, rows: PyTree, clock: Array, scale: float
    ) -> tuple[PyTree, AdamRows]:
        # A step of the dense optimiser: the row's gradient is that of the whole loss.
        grads = jax.tree.map(lambda g: scale * g, grads)
        count = (clock + 1).astype(jnp.result_type(float))
        first = jax.tree.map(lambda m, g: b1 * m + (1.0 - b1) * g, state.first, grads)
        second = jax.tree.map(lambda v, g: b2 * v + (1.0 - b2) * jnp.square(g), state.second, grads)
        unbias1, unbias2 = 1.0 - b1**count, 1.0 - b2**count

        def move(row: Array, m: Array, v: Array) -> Array:
            return row - rate(clock) * (m / unbias1) / (jnp.sqrt(v / unbias2) + eps)

        return jax.tree.map(move, rows, first, second), AdamRows(
            first, second, jnp.full_like(state.clock, clock + 1)
        )

    return RowOptimizer(name="adam", init=init, catch_up=catch_up, update=update)


def _power(base: float, exponent: Array) -> Array:
    """That is base ** exponent per row, for 0 <= base < 1: an exponential is vectorised where a
    power is not.
    """
    return jnp.exp(exponent * math.log(max(base, 1e-30)))


def _like(per_row: Array, leaf: Array) -> Array:
    """[B] -> [B, 1, ...] with as many axes as `leaf`."""
    return per_row.reshape(per_row.shape + (1,) * (leaf.ndim - 1))
