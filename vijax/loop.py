"""The device program behind `fit`: many optimisation steps in one compiled call. No host code lives
here.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vijax import tables
from vijax.hoist import Hoisted, hoist
from vijax.minibatch import batch_index
from vijax.rowwise import RowOptimizer
from vijax.types import Array, Batch, Estimator, Key, Params, PyTree

BLOCK_BYTES = 2**18  # of random numbers drawn at once: they should stay in a core's cache


class Program(NamedTuple):
    """Everything static: equal programs share one compilation.

    Attributes:
      batch_size: None: the full data set, or batches that come from outside
      stacked: do the batches come from outside, stacked [chunk_size, B, ...]?
      layout: of the packed rows, if the params have tables
      careful: is every step checked before it is applied? If not, the chunk says afterwards whether
        to look again
      skip_nonfinite: careful: go on after a bad step? If not, nothing moves any more
    """

    estimator: Estimator
    optimizer: optax.GradientTransformation
    row_optimizer: RowOptimizer
    batch_size: int | None
    stacked: bool
    record_every: int
    chunk_size: int
    local_steps: int
    layout: tables.Layout | None
    careful: bool
    skip_nonfinite: bool


class Carry(NamedTuple):
    """The whole state of a run; a run continued from it equals one that never stopped.

    Attributes:
      params: without the tables (None)
      opt_state: of those
      words: [N, W] the tables and their optimiser state, packed; rows may lag behind, see
        `whole_params`
      state: the estimator's
      step: [] int32
      bad_step: [] int32: first step with a non-finite gradient (or one that may be, if not
        careful), -1 if none
      num_skipped: [] int32: steps that were not applied, the careful program only
    """

    params: Params
    opt_state: PyTree
    words: Array | tuple[()]
    state: PyTree
    step: Array
    bad_step: Array
    num_skipped: Array


def row_layout(
    estimator: Estimator, row_optimizer: RowOptimizer, params: Params
) -> tables.Layout | None:
    """How rows of the tables in `params` and of their optimiser state are packed; None if there are
    no tables.
    """
    table, _ = tables.split(estimator.tables(params), params)
    if not jax.tree.leaves(table):
        return None
    return tables.layout(jax.eval_shape(lambda: (table, row_optimizer.init(table))))


@functools.partial(jax.jit, static_argnames="program")
def start(key: Key, params: Params, *, program: Program) -> Carry:
    """The carry before the first step."""
    table, rest = tables.split(program.estimator.tables(params), params)
    words = tables.pack((table, program.row_optimizer.init(table))) if program.layout else ()
    zero = jnp.zeros((), jnp.int32)
    carry = Carry(
        rest,
        program.optimizer.init(rest),
        words,
        program.estimator.init(key, params),
        zero,
        zero - 1,
        zero,
    )
    # Strong types throughout, as the steps return them: a weak one would compile the next call once
    # more.
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), carry)


def run_chunk(
    key: Key, carry: Carry, data: PyTree, num_steps: int, *, program: Program
) -> tuple[Carry, Array]:
    """`num_steps` <= chunk_size further steps; returns the loss at every `record_every`-th of them,
    padded with NaN.

    The carry is consumed if there are tables, whose copies would cost as much as all steps.
    Otherwise it is left as the last good state until the new one is known to be good.
    """
    run = _run_in_place if program.layout else _run
    return run(key, carry, data, np.int32(num_steps), program=program)


def _chunk(
    key: Key, carry: Carry, data: PyTree, num_steps: Array, *, program: Program
) -> tuple[Carry, Array]:
    """Random numbers are drawn a block of steps at once. Between records the compiler drops what
    only the loss needs.
    """
    first, every = carry.step, min(program.record_every, program.chunk_size)
    num_records = -(-program.chunk_size // every)

    def step(key: Key, step: Array, carry: Carry, data: PyTree) -> tuple[Carry, Array]:
        return _step(key, step, carry, data, step - carry.step, program)

    cut = hoist(step, key, first, carry, data)
    if cut.num_bytes * every > BLOCK_BYTES:
        cut = Hoisted(lambda key, step: [], lambda drawn, *args: step(*args), 0)
    # Steps in a block
    size = every * min(num_records, BLOCK_BYTES // max(1, cut.num_bytes * every))

    def block(i: Array, both: tuple[Carry, Array]) -> tuple[Carry, Array]:
        begin = first + i * size
        drawn = jax.vmap(cut.ahead, in_axes=(None, 0))(
            key, begin + jnp.arange(size, dtype=first.dtype)
        )

        def one(j: Array, carry: Carry) -> tuple[Carry, Array]:
            return cut.finish([leaf[j] for leaf in drawn], key, begin + j, carry, data)

        def record(k: Array, both: tuple[Carry, Array]) -> tuple[Carry, Array]:
            carry, losses = both
            start, stop = k * every, jnp.minimum((k + 1) * every, num_steps - i * size)
            carry, loss = one(start, carry)
            carry = jax.lax.fori_loop(start + 1, stop, lambda j, carry: one(j, carry)[0], carry)
            return carry, losses.at[(i * size) // every + k].set(loss)

        return jax.lax.fori_loop(
            0, -(-jnp.minimum(size, num_steps - i * size) // every), record, both
        )

    carry, losses = jax.lax.fori_loop(
        0, -(-num_steps // size), block, (carry, jnp.full((num_records,), jnp.nan))
    )
    return carry._replace(step=first + num_steps), losses


_run = jax.jit(_chunk, static_argnames="program")
_run_in_place = jax.jit(_chunk, static_argnames="program", donate_argnames="carry")


@jax.jit
def fresh_copy(carry: Carry) -> Carry:
    """A copy that may be consumed."""
    return jax.tree.map(jnp.copy, carry)


@functools.partial(jax.jit, static_argnames="program")
def whole_params(carry: Carry, *, program: Program) -> tuple[Params, PyTree]:
    """(params with every table, the rows' optimiser state), every row brought up to the present
    step; copies.
    """
    if program.layout is None or isinstance(carry.words, tuple):
        return jax.tree.map(jnp.copy, carry.params), ()
    table, row_state = tables.unpack(carry.words, program.layout)
    table, row_state = program.row_optimizer.catch_up(
        table, row_state, carry.step * program.local_steps
    )
    return jax.tree.map(jnp.copy, tables.join(table, carry.params)), row_state


def take_batch(key: Key, step: Array, data: PyTree, slot: Array, program: Program) -> Batch:
    """The minibatch of a step: the whole data, the stacked one in `slot`, or rows drawn without
    replacement.
    """
    num_data = program.estimator.num_data
    if program.stacked:
        return jax.tree.map(lambda leaf: leaf[slot], data)
    if program.batch_size is None:
        return Batch(data, jnp.arange(num_data))
    index = batch_index(
        jax.random.fold_in(key, 0), step, num_data=num_data, batch_size=program.batch_size
    )
    return Batch(jax.tree.map(lambda leaf: leaf[index], data), index)


def step_key(key: Key, clock: Array) -> Key:
    """The noise key of an update."""
    return jax.random.fold_in(jax.random.fold_in(key, 1), clock)


def _step(
    key: Key, step: Array, carry: Carry, data: PyTree, slot: Array, program: Program
) -> tuple[Carry, Array]:
    """One optimisation step, and its loss. `carry.step` is left to the caller, who knows it without
    adding.
    """
    estimator, batch = program.estimator, take_batch(key, step, data, slot, program)
    rest: Any = carry.params  # params, less the tables
    clock, words = step * program.local_steps, carry.words[batch.index] if program.layout else ()

    def differentiate(words: PyTree, clock: Array):
        """The estimate at caught-up rows, its gradient without the rows', and the rows updated."""
        if program.layout is None:
            estimate, state = estimator.estimate_rows(
                step_key(key, clock), rest, carry.state, batch
            )
            return estimate, estimate.grads, state, words
        rows, row_state = tables.unpack(words, program.layout)
        rows, row_state = program.row_optimizer.catch_up(rows, row_state, clock)
        params = tables.join(rows, rest)
        estimate, state = estimator.estimate_rows(step_key(key, clock), params, carry.state, batch)
        row_grads, grads = tables.split(estimator.tables(params), estimate.grads)
        return (
            estimate,
            grads,
            state,
            tables.pack(program.row_optimizer.update(row_grads, row_state, rows, clock)),
        )

    new_words = words
    if program.local_steps > 1:
        new_words = jax.lax.fori_loop(
            0, program.local_steps - 1, lambda j, w: differentiate(w, clock + j)[3], words
        )
    estimate, grads, state, new_words = differentiate(new_words, clock + program.local_steps - 1)
    updates, opt_state = program.optimizer.update(grads, carry.opt_state, rest)
    after: tuple[Any, ...] = (optax.apply_updates(rest, updates), opt_state, state, new_words)

    # Rows that a local step made non-finite show in the last gradient, and in themselves.
    finite = all_finite(estimate.grads) if program.careful else squares_finite(estimate.grads)
    if program.local_steps > 1 and program.layout:
        finite = finite & all_finite(tables.unpack(new_words, program.layout))
    if program.careful:
        apply = finite if program.skip_nonfinite else finite & (carry.bad_step < 0)
        before = (rest, carry.opt_state, carry.state, words)
        after = jax.tree.map(lambda new, old: jnp.where(apply, new, old), after, before)
    rest, opt_state, state, new_words = after
    all_words = (
        carry.words
        if isinstance(carry.words, tuple)
        else carry.words.at[batch.index].set(new_words)
    )
    bad_step = jnp.where((carry.bad_step < 0) & ~finite, step, carry.bad_step)
    skipped = carry.num_skipped + jnp.where(finite, 0, 1)
    return Carry(rest, opt_state, all_words, state, carry.step, bad_step, skipped), estimate.loss


def all_finite(tree: PyTree) -> Array:
    """[] bool: is every element of every leaf finite?"""
    leaves = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, leaves, jnp.bool_(True))  # noqa: FBT003


def squares_finite(tree: PyTree) -> Array:
    """[] bool: False if any element is not finite; also if the sum of squares overflows. One fast
    pass, as a dot product.
    """
    return jnp.isfinite(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))
