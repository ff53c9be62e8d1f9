"""The device program behind `fit`: many optimisation steps in one compiled call. No host code lives here."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vijax import tables
from vijax.hoist import Hoisted, hoist
from vijax.minibatch import batch_index
from vijax.rowwise import RowOptimizer
from vijax.types import Array, Batch, Estimator, Key, Params, PyTree

BLOCK_BYTES = 2**18  # of random numbers drawn at once: they should stay in a core's cache


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
    careful: bool  # is every step checked before it is applied? If not, the chunk says afterwards whether to look again


class Carry(NamedTuple):
    """The whole state of a run; a run continued from it equals one that never stopped."""

    params: Params  # tables may lag behind: see `current_params`
    opt_state: PyTree
    row_state: PyTree
    state: PyTree  # the estimator's
    step: Array  # [] int32
    bad_step: Array  # [] int32: first step with a non-finite gradient (or one that may be, if not careful), -1 if none
    num_skipped: Array  # [] int32: steps that were not applied, the careful program only


@functools.partial(jax.jit, static_argnames="program")
def start(key: Key, params: Params, *, program: Program) -> Carry:
    """The carry before the first step."""
    estimator = program.estimator
    table, rest = tables.split(estimator.tables(params), params)
    row_state = program.row_optimizer.init(table) if jax.tree.leaves(table) else ()
    zero = jnp.zeros((), jnp.int32)
    carry = Carry(params, program.optimizer.init(rest), row_state, estimator.init(key, params), zero, zero - 1, zero)
    # Strong types throughout, as the steps return them: a weak one would compile the next call once more.
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), carry)


@functools.partial(jax.jit, static_argnames="program")
def run_chunk(key: Key, carry: Carry, data: PyTree, num_steps: Array, *, program: Program) -> tuple[Carry, Array]:
    """`num_steps` <= chunk_size further steps; returns the loss at every `record_every`-th of them, padded with NaN.

    The carry is not donated: it is the last good state until the new one is known to be good. A block of steps draws its
    random numbers at once. Between records the loss is not used, so the compiler drops whatever
    only it needs.
    """
    first, every = carry.step, min(program.record_every, program.chunk_size)
    num_records = -(-program.chunk_size // every)

    def step(key: Key, step: Array, carry: Carry, data: PyTree) -> tuple[Carry, Array]:
        return _step(key, step, carry, data, step - carry.step, program)

    cut = hoist(step, key, first, carry, data)
    if cut.num_bytes * every > BLOCK_BYTES:
        cut = Hoisted(lambda key, step: [], lambda drawn, *args: step(*args), 0)
    size = every * min(num_records, BLOCK_BYTES // max(1, cut.num_bytes * every))  # steps in a block

    def block(i: Array, both: tuple[Carry, Array]) -> tuple[Carry, Array]:
        begin = first + i * size
        drawn = jax.vmap(cut.ahead, in_axes=(None, 0))(key, begin + jnp.arange(size, dtype=first.dtype))

        def one(j: Array, carry: Carry) -> tuple[Carry, Array]:
            return cut.finish([leaf[j] for leaf in drawn], key, begin + j, carry, data)

        def record(k: Array, both: tuple[Carry, Array]) -> tuple[Carry, Array]:
            carry, losses = both
            start, stop = k * every, jnp.minimum((k + 1) * every, num_steps - i * size)
            carry, loss = one(start, carry)
            carry = jax.lax.fori_loop(start + 1, stop, lambda j, carry: one(j, carry)[0], carry)
            return carry, losses.at[(i * size) // every + k].set(loss)

        return jax.lax.fori_loop(0, -(-jnp.minimum(size, num_steps - i * size) // every), record, both)

    carry, losses = jax.lax.fori_loop(0, -(-num_steps // size), block, (carry, jnp.full((num_records,), jnp.nan)))
    return carry._replace(step=first + num_steps), losses


@functools.partial(jax.jit, static_argnames="program")
def current_params(carry: Carry, *, program: Program) -> Params:
    """The params, with every table row brought up to the present step."""
    is_table = program.estimator.tables(carry.params)
    table, rest = tables.split(is_table, carry.params)
    if jax.tree.leaves(table):
        table, _ = program.row_optimizer.catch_up(table, carry.row_state, carry.step * program.local_steps)
    return tables.join(table, rest)


def take_batch(key: Key, step: Array, data: PyTree, slot: Array, program: Program) -> Batch:
    """The minibatch of a step: the whole data, the stacked one in `slot`, or rows drawn without replacement."""
    num_data = program.estimator.num_data
    if program.stacked:
        return jax.tree.map(lambda leaf: leaf[slot], data)
    if program.batch_size is None:
        return Batch(data, jnp.arange(num_data))
    index = batch_index(jax.random.fold_in(key, 0), step, num_data=num_data, batch_size=program.batch_size)
    return Batch(jax.tree.map(lambda leaf: leaf[index], data), index)


def step_key(key: Key, clock: Array) -> Key:
    """The noise key of an update."""
    return jax.random.fold_in(jax.random.fold_in(key, 1), clock)


def _step(key: Key, step: Array, carry: Carry, data: PyTree, slot: Array, program: Program) -> tuple[Carry, Array]:
    """One optimisation step, and its loss. `carry.step` is left to the caller, who knows it without adding."""
    estimator, batch = program.estimator, take_batch(key, step, data, slot, program)
    is_table = estimator.tables(carry.params)
    table, rest = tables.split(is_table, carry.params)
    has_rows, clock = bool(jax.tree.leaves(table)), step * program.local_steps
    before = tables.gather((table, carry.row_state), batch.index)

    def differentiate(rows: PyTree, row_state: PyTree, clock: Array):
        """The estimate at caught-up rows, and those rows updated."""
        if has_rows:
            rows, row_state = program.row_optimizer.catch_up(rows, row_state, clock)
        params = tables.join(rows, rest)
        estimate, state = estimator.estimate_rows(step_key(key, clock), params, carry.state, batch)
        if has_rows:
            rows, row_state = program.row_optimizer.update(tables.split(is_table, estimate.grads)[0], row_state, rows, clock)
        return rows, row_state, estimate, state

    rows, row_state = before
    if program.local_steps > 1:

        def local(j: Array, both: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            return differentiate(both[0], both[1], clock + j)[:2]

        rows, row_state = jax.lax.fori_loop(0, program.local_steps - 1, local, (rows, row_state))
    rows, row_state, estimate, state = differentiate(rows, row_state, clock + program.local_steps - 1)
    updates, opt_state = program.optimizer.update(tables.split(is_table, estimate.grads)[1], carry.opt_state, rest)
    after = (optax.apply_updates(rest, updates), opt_state, state, rows, row_state)

    checked = (estimate.grads, rows) if program.local_steps > 1 else estimate.grads
    finite = all_finite(checked) if program.careful else squares_finite(checked)
    if program.careful:
        before = (rest, carry.opt_state, carry.state, *before)
        after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, before)
    rest, opt_state, state, rows, row_state = after
    table, row_state = tables.scatter((table, carry.row_state), batch.index, (rows, row_state))
    bad_step = jnp.where((carry.bad_step < 0) & ~finite, step, carry.bad_step)
    skipped = carry.num_skipped + jnp.where(finite, 0, 1)
    return Carry(tables.join(table, rest), opt_state, row_state, state, carry.step, bad_step, skipped), estimate.loss


def all_finite(tree: PyTree) -> Array:
    """[] bool: is every element of every leaf finite?"""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, leaves, jnp.bool_(True))  # noqa: FBT003


def squares_finite(tree: PyTree) -> Array:
    """[] bool: False if any element is not finite; also if the sum of squares overflows. One fast pass, as a dot product."""
    return jnp.isfinite(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))
