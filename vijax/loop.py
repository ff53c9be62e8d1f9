"""The device program behind `fit`: many optimisation steps in one compiled call. No host code lives here."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vijax import tables
from vijax.minibatch import batch_index
from vijax.rowwise import RowOptimizer
from vijax.types import Array, Batch, Estimator, Key, Params, PyTree


class Program(NamedTuple):
    """Everything static: equal programs share one compilation."""

    estimator: Estimator
    optimizer: optax.GradientTransformation
    row_optimizer: RowOptimizer
    batch_size: int | None  # None: the full data set, or batches that come from outside
    stacked: bool  # do the batches come from outside, stacked [chunk_size, B, ...]?
    record_every: int
    chunk_size: int
    local_steps: int
    skip_nonfinite: bool


class Carry(NamedTuple):
    """The whole state of a run; a run continued from it equals one that never stopped."""

    params: Params  # tables may lag behind: see `current_params`
    opt_state: PyTree
    row_state: PyTree
    state: PyTree  # the estimator's
    step: Array  # [] int32
    bad_step: Array  # [] int32: first step with a non-finite gradient, -1 if none
    num_skipped: Array  # [] int32


@functools.partial(jax.jit, static_argnames="program")
def start(key: Key, params: Params, *, program: Program) -> Carry:
    """The carry before the first step. Everything in it is a fresh copy, so later donation never touches the caller's."""
    estimator = program.estimator
    table, rest = tables.split(estimator.tables(params), params)
    row_state = program.row_optimizer.init(table) if jax.tree.leaves(table) else ()
    zero = jnp.zeros((), jnp.int32)
    params = jax.tree.map(jnp.copy, params)
    return Carry(params, program.optimizer.init(rest), row_state, estimator.init(key, params), zero, zero - 1, zero)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="carry")
def run_chunk(key: Key, carry: Carry, data: PyTree, num_steps: Array, *, program: Program) -> tuple[Carry, Array]:
    """`num_steps` <= chunk_size further steps; returns the loss at every `record_every`-th of them, padded with NaN.

    Between records the loss is not used, so the compiler drops whatever only it needs.
    """
    every, first = program.record_every, carry.step
    last = first + num_steps
    losses = jnp.full((-(-program.chunk_size // every),), jnp.nan)

    def record(i: Array, both: tuple[Carry, Array]) -> tuple[Carry, Array]:
        carry, losses = both
        loss = _loss(key, carry, data, first, program)
        carry = jax.lax.fori_loop(
            carry.step, jnp.minimum(carry.step + every, last), lambda _, c: _step(key, c, data, first, program), carry
        )
        return carry, losses.at[i].set(loss)

    return jax.lax.fori_loop(0, -(-num_steps // every), record, (carry, losses))


@functools.partial(jax.jit, static_argnames="program")
def current_params(carry: Carry, *, program: Program) -> Params:
    """A copy of the params with every table row brought up to the present step."""
    is_table = program.estimator.tables(carry.params)
    table, rest = tables.split(is_table, carry.params)
    if jax.tree.leaves(table):
        table, _ = program.row_optimizer.catch_up(table, carry.row_state, carry.step * program.local_steps)
    return jax.tree.map(jnp.copy, tables.join(table, rest))


def take_batch(key: Key, step: Array, data: PyTree, first: Array, program: Program) -> Batch:
    """The minibatch of a step: the whole data, the next of the stacked ones, or rows drawn without replacement."""
    num_data = program.estimator.num_data
    if program.stacked:
        return jax.tree.map(lambda leaf: leaf[step - first], data)
    if program.batch_size is None:
        return Batch(data, jnp.arange(num_data))
    index = batch_index(jax.random.fold_in(key, 0), step, num_data=num_data, batch_size=program.batch_size)
    return Batch(jax.tree.map(lambda leaf: leaf[index], data), index)


def step_key(key: Key, clock: Array) -> Key:
    """The noise key of an update."""
    return jax.random.fold_in(jax.random.fold_in(key, 1), clock)


class Rows(NamedTuple):
    """What one step reads: its batch, and the parameters apart: whole tables, the batch's rows of them, the rest."""

    batch: Batch
    table: PyTree
    rows: PyTree
    row_state: PyTree
    rest: PyTree


def _read(key: Key, carry: Carry, data: PyTree, first: Array, program: Program) -> Rows:
    batch = take_batch(key, carry.step, data, first, program)
    table, rest = tables.split(program.estimator.tables(carry.params), carry.params)
    rows, row_state = tables.gather((table, carry.row_state), batch.index)
    return Rows(batch, table, rows, row_state, rest)


def _catch_up(rows: PyTree, row_state: PyTree, clock: Array, program: Program) -> tuple[PyTree, PyTree]:
    return program.row_optimizer.catch_up(rows, row_state, clock) if jax.tree.leaves(rows) else (rows, row_state)


def _loss(key: Key, carry: Carry, data: PyTree, first: Array, program: Program) -> Array:
    """The loss of the carry's step, from the same batch and noise as its gradient."""
    read, clock = _read(key, carry, data, first, program), carry.step * program.local_steps
    rows, _ = _catch_up(read.rows, read.row_state, clock, program)
    params = tables.join(rows, read.rest)
    return program.estimator.estimate_rows(step_key(key, clock), params, carry.state, read.batch)[0].loss


def _step(key: Key, carry: Carry, data: PyTree, first: Array, program: Program) -> Carry:
    estimator, read = program.estimator, _read(key, carry, data, first, program)
    is_table, has_rows = estimator.tables(carry.params), bool(jax.tree.leaves(read.table))
    clock = carry.step * program.local_steps
    rows, row_state = read.rows, read.row_state

    def differentiate(rows: PyTree, row_state: PyTree, clock: Array):
        """Gradients at caught-up rows, and those rows updated."""
        rows, row_state = _catch_up(rows, row_state, clock, program)
        params = tables.join(rows, read.rest)
        estimate, state = estimator.estimate_rows(step_key(key, clock), params, carry.state, read.batch)
        row_grads, grads = tables.split(is_table, estimate.grads)
        if has_rows:
            rows, row_state = program.row_optimizer.update(row_grads, row_state, rows, clock)
        return rows, row_state, grads, estimate.grads, state

    if program.local_steps > 1:

        def local(j: Array, both: Any):
            return differentiate(both[0], both[1], clock + j)[:2]

        rows, row_state = jax.lax.fori_loop(0, program.local_steps - 1, local, (rows, row_state))
    rows, row_state, grads, all_grads, state = differentiate(rows, row_state, clock + program.local_steps - 1)
    updates, opt_state = program.optimizer.update(grads, carry.opt_state, read.rest)
    rest = optax.apply_updates(read.rest, updates)

    finite = all_finite(all_grads) if program.local_steps == 1 else all_finite((all_grads, rows))
    apply = finite if program.skip_nonfinite else finite & (carry.bad_step < 0)

    def choose(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(apply, a, b), new, old)

    rest, opt_state, state = choose((rest, opt_state, state), (read.rest, carry.opt_state, carry.state))
    rows, row_state = choose((rows, row_state), (read.rows, read.row_state))
    table, row_state = tables.scatter((read.table, carry.row_state), read.batch.index, (rows, row_state))
    bad_step = jnp.where((carry.bad_step < 0) & ~finite, carry.step, carry.bad_step)
    skipped = carry.num_skipped + jnp.where(finite, 0, 1)
    return Carry(tables.join(table, rest), opt_state, row_state, state, carry.step + 1, bad_step, skipped)


def all_finite(tree: PyTree) -> Array:
    """[] bool: is every element of every leaf finite?"""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, leaves, jnp.bool_(True))  # noqa: FBT003
