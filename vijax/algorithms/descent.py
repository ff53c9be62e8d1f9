"""Stochastic gradient descent: an estimator's gradient followed by any optax optimiser."""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vijax.algorithms.inner import Inner, climb, described, inner
from vijax.algorithms.rowwise import RowOptimizer, lazy
from vijax.finite import all_finite
from vijax.inference import Algorithm, Estimate, Estimator, Info
from vijax.rows import (
    Packed,
    Rows,
    check_tables,
    join,
    pack,
    pack_at,
    put,
    scale,
    split,
    stored,
    take,
    unpack,
    unpack_at,
)
from vijax.shapes import same_shapes
from vijax.types import Array, Batch, Key, Params, PyTree, Scalar


class DescentState(NamedTuple):
    """Everything that moves.

    Attributes:
      params: without the tables (None).
      opt_state: of those.
      packed: the tables and their rows' optimiser state; () without any. Rows may lag behind.
      estimator: the estimator's own state: running means.
      clock: [] int32, updates that every row should have had.
    """

    params: Params
    opt_state: PyTree
    packed: Any
    estimator: PyTree
    clock: Array


@functools.lru_cache(maxsize=64)  # equal arguments: the same object, by which programs are found
def descent(
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    *,
    rows: RowOptimizer | None = None,
    local_steps: int | Inner = 1,
) -> Algorithm:
    """An algorithm that minimises an estimator's loss, for `fit`.

    Args:
      optimizer: any optax transformation of `Params`;
        `optax.partition({...}, Params("theta", "phi", "control"))` for different ones. Those that
        ask for the value, the gradient or `value_fn` (line searches) are given them.
      rows: for tables of phi_i (`guides.per_datapoint`): `rowwise.adam(rate)` for dense Adam's
        result; default `rowwise.lazy(optimizer)`.
      local_steps: updates of the batch's phi_i per step; the last one also updates everything else
        (stochastic VI's inner loop, Hoffman et al. 2013). `algorithms.inner` for a loop that ends
        when the bound stops rising, or starts anew every time; it also says which `rows` suit.

    Raises:
      ValueError: if local_steps is below 1, or above it without a table to take them in.
    """
    by_row = lazy(optimizer) if rows is None else rows
    like = jax.eval_shape(estimator.init_params, jax.random.key(0))
    table_like, rest_like = split(estimator.is_table(like), like)
    tables = bool(jax.tree.leaves(table_like))
    local = local_steps if isinstance(local_steps, Inner) else inner(local_steps)
    if not tables and local != inner(1):
        raise ValueError(
            f"descent: local_steps={local_steps!r} without a table of phi_i "
            "(guides.per_datapoint), whose rows alone take local steps. An encoder's answer is "
            "refined by guides.semi_amortized."
        )
    dense = optax.with_extra_args_support(optimizer)
    settings = [_kind(optimizer, rest_like)]
    settings += [f"rows={by_row.name}", described(local)] if tables else []

    def made(table: PyTree) -> PyTree:
        return table, by_row.init(table)

    def current(packed: Packed, clock: Array) -> PyTree:
        """The tables, brought to the clock."""
        table, row_state = unpack(packed)
        return table if local.restart is not None else by_row.catch_up(table, row_state, clock)[0]

    def init(key: Key, params: Params) -> DescentState:
        table, rest = split(estimator.is_table(params), params)
        check_tables(table, estimator.num_data)
        return DescentState(
            params=rest,
            opt_state=optimizer.init(rest),
            packed=pack_at(made, table, by_row.place) if tables else (),
            estimator=estimator.init(key, params),
            clock=jnp.zeros((), jnp.int32),
        )

    def params(state: DescentState) -> Params:
        if isinstance(state.packed, tuple):
            return state.params
        return join(unpack_at(current, state.packed, state.clock), state.params)

    def inspect(key: Key, state: DescentState, batch: Batch) -> dict[str, PyTree]:
        view = params(state._replace(packed=take(state.packed, batch.index) if tables else ()))
        view = view._replace(phi=Rows(view.phi)) if tables else view
        seen, _ = estimator.estimate(key, view, state.estimator, batch)
        return {"loss": seen.loss, "grads": seen.grads._replace(phi=stored(seen.grads.phi))}

    return Algorithm(
        name=f"descent({', '.join(settings)})",
        init=init,
        step=_rows_step(estimator, dense, by_row, local)
        if tables
        else _dense_step(estimator, dense),
        params=params,
        num_data=estimator.num_data,
        guarded=tables,
        inspect=inspect,
        check=estimator.check,
    )


def _dense_step(estimator: Estimator, optimizer: optax.GradientTransformationExtraArgs):
    """A step without tables. What it leaves is flagged, not guarded: `fit` keeps the state before
    it, and selecting here would copy every moment at every step.
    """

    def step(
        key: Key, state: DescentState, batch: Batch, *, recorded: bool = True
    ) -> tuple[DescentState, Info]:
        def estimate(params: Params) -> tuple[Estimate, PyTree]:
            return estimator.estimate(key, params, state.estimator, batch)

        seen, after = estimate(state.params)
        params, opt_state = _update(optimizer, state, seen, seen.grads, estimate)
        new = DescentState(params, opt_state, (), after, state.clock + 1)
        return new, Info(loss=seen.loss, finite=all_finite(params))

    return step


def _rows_step(
    estimator: Estimator,
    optimizer: optax.GradientTransformationExtraArgs,
    by_row: RowOptimizer,
    local: Inner,
):
    """A step on the rows of a batch and everything that is in no table: O(B), whatever N."""

    def restarted(rest: Params, packed: Packed, batch: Batch) -> Packed:
        """The batch's rows where `local.restart` puts them, their optimiser's state anew."""
        assert local.restart is not None
        left, _ = unpack(packed)
        params = join(left, rest)
        lam = jax.vmap(local.restart, (None, 0))(rest.theta, batch.x)
        params = params._replace(phi=params.phi | {"z": lam})
        own, _ = split(estimator.is_table(params), params)
        same_shapes(own.phi, left.phi, "what inner(restart=...) returns, over a batch,")
        own = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), own, left)
        return pack((own, by_row.init(own)))

    def step(
        key: Key, state: DescentState, batch: Batch, *, recorded: bool = True
    ) -> tuple[DescentState, Info]:
        factor = scale(estimator.num_data, batch)

        def look(number: Array, packed: Packed, rest: Params) -> tuple[Any, ...]:
            """The estimate at caught-up rows and how the rows are updated by it."""
            clock = number + (state.clock if local.restart is None else 0)
            own, own_state = unpack(packed)
            own, own_state = by_row.catch_up(own, own_state, clock)
            params = join(own, rest)
            is_table = estimator.is_table(params)
            view = params._replace(phi=Rows(params.phi))
            noise = key if local.steps == 1 else jax.random.fold_in(key, number)
            seen, after = estimator.estimate(noise, view, state.estimator, batch)
            grads = seen.grads._replace(phi=stored(seen.grads.phi))
            row_grads, grads = split(is_table, grads)
            row_grads = jax.tree.map(lambda g: g / factor, row_grads)
            own = by_row.update(row_grads, own_state, own, clock, factor)
            return seen, after, grads, pack(own)

        before = take(state.packed, batch.index)
        start = before if local.restart is None else restarted(state.params, before, batch)

        def climbing(number: Array, packed: Packed) -> tuple[Scalar, Packed]:
            seen, _, _, packed = look(number, packed, state.params)
            return -seen.loss / estimator.num_data, packed

        last, moved = climb(climbing, start, local)
        seen, after, grads, rows = look(last, moved, state.params)

        def estimate(rest: Params) -> tuple[Estimate, PyTree]:
            return look(last, moved, rest)[:2]

        params, opt_state = _update(optimizer, state, seen, grads, estimate)
        kept = (params, opt_state, after, rows.words)
        finite = all_finite((params, opt_state, after, unpack(rows)))
        if recorded:
            finite = finite & jnp.isfinite(seen.loss)
        former = (state.params, state.opt_state, state.estimator, before.words)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), kept, former)
        params, opt_state, after, words = kept
        packed = put(state.packed, batch.index, words)
        clock = state.clock + jnp.where(finite, last + 1, 0)
        return DescentState(params, opt_state, packed, after, clock), Info(seen.loss, finite)

    return step


def _update(
    optimizer: optax.GradientTransformationExtraArgs,
    state: DescentState,
    seen: Estimate,
    grads: Params,
    estimate: Callable[[Params], tuple[Estimate, PyTree]],
) -> tuple[Params, PyTree]:
    """(parameters, optimiser state) after the optimiser's step. What an optimiser does not look at,
    the compiler leaves out.
    """
    updates, opt_state = optimizer.update(
        grads,
        state.opt_state,
        state.params,
        value=seen.loss,
        grad=grads,
        value_fn=lambda params: estimate(params)[0].loss,
    )
    params: Any = optax.apply_updates(state.params, updates)
    return params, opt_state


def _kind(optimizer: optax.GradientTransformation, rest: Params) -> str:
    """The states that the optimiser keeps, by name: "ScaleByAdamState" and the like."""
    kinds = re.findall(r"(\w+State)", str(jax.tree.structure(jax.eval_shape(optimizer.init, rest))))
    return "+".join(dict.fromkeys(kind for kind in kinds if kind != "EmptyState")) or "stateless"
