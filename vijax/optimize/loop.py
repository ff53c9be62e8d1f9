"""The device program behind `fit`: many steps of an algorithm in one compiled call. No host code
lives here, and nothing about gradients, tables or optimisers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.finite import all_finite
from vijax.inference import Algorithm, Info
from vijax.optimize.hoist import Hoisted, as_it_is, hoist
from vijax.optimize.minibatch import rows_of_step
from vijax.types import Array, Batch, Key, Params, PyTree

BLOCK_BYTES = 2**18  # of random numbers drawn at once: they should stay in a core's cache
UNSEEN = -2  # bad_step of a chunk that ended in a bad state, but not by a step that said so


class Program(NamedTuple):
    """Everything static: equal programs share one compilation.

    Attributes:
      batch_size: rows drawn for every step; None: the full data set, or batches from outside.
      stacked: do the steps' data come from outside, stacked [chunk_size, B, ...]? With them come
        their rows, unless those are drawn.
      record_every: the loss is kept at the multiples of it.
      chunk_size: the most steps of one call.
      skip_nonfinite: go on after a step that is not finite, which is not applied? If not, the chunk
        ends there.
      careful: look through the whole state after every step? If not, through what the algorithm
        says, and through the whole at the end of the chunk.
      hoist: draw random numbers of many steps at once?
    """

    algorithm: Algorithm
    batch_size: int | None
    stacked: bool
    record_every: int
    chunk_size: int
    skip_nonfinite: bool
    careful: bool
    hoist: bool


class Carry(NamedTuple):
    """The whole state of a run; a run continued from it equals one that never stopped.

    Attributes:
      state: the algorithm's.
      step: [] int32.
      bad_step: [] int32: first step that was not finite, -1 if none, or UNSEEN.
      num_skipped: [] int32: steps that were not applied.
    """

    state: PyTree
    step: Array
    bad_step: Array
    num_skipped: Array


@functools.partial(jax.jit, static_argnames="algorithm")
def start(key: Key, params: Params, *, algorithm: Algorithm) -> Carry:
    """The carry before the first step."""
    zero = jnp.zeros((), jnp.int32)
    carry = Carry(algorithm.init(key, params), zero, zero - 1, zero)
    # Strong types throughout, as steps return them: a weak one would compile the next call anew.
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), carry)


@functools.partial(jax.jit, static_argnames="algorithm")
def params_of(state: PyTree, *, algorithm: Algorithm) -> Params:
    """The parameters in a state, ready for use; copies, which further steps leave alone."""
    return jax.tree.map(jnp.copy, algorithm.params(state))


def run_chunk(
    key: Key, carry: Carry, data: PyTree, num_steps: int, *, program: Program
) -> tuple[Carry, Array]:
    """`num_steps` <= chunk_size further steps; returns the loss at every multiple of `record_every`
    among them, the first entry being that at or before the first step, NaN where there is none.

    The carry is consumed if the algorithm guards its own state, whose copies might cost as much as
    all steps. Otherwise it is left as the last good state until the new one is known to be good.
    """
    run = _run_in_place if program.algorithm.guarded else _run
    return run(key, carry, data, _device_int(num_steps), program=program)


@functools.lru_cache(maxsize=256)
def _device_int(value: int) -> Array:
    """An int32 on the device, put there by name: nothing here moves data to it unasked."""
    return jax.device_put(np.int32(value))


def _chunk(
    key: Key, carry: Carry, data: PyTree, num_steps: Array, *, program: Program
) -> tuple[Carry, Array]:
    """A block of steps at a time, whose random numbers are drawn at once; in it a period at a time,
    whose first step is recorded. Between records the compiler drops what only the loss needs.
    """
    first, every = carry.step, program.record_every
    origin, end = first - first % every, first + num_steps
    num_records = -(-program.chunk_size // every) + 1
    plain, recorded = _cuts(key, carry, data, program)
    blocks = max(1, min(num_records, BLOCK_BYTES // max(1, plain.num_bytes * every)))
    size = every * blocks  # steps in a block

    def running(carry: Carry) -> Array:
        return (carry.bad_step < 0) | program.skip_nonfinite

    def take(cut: Hoisted, drawn: list[Array], step: Array, carry: Carry) -> tuple[Carry, Array]:
        state, info = cut.finish(drawn, key, step, carry.state, data, first)
        return _settle(carry, state, info, step, program, recorded=cut is recorded), info.loss

    def block(i: Array, both: tuple[Carry, Array]) -> tuple[Carry, Array]:
        begin = origin + i * size
        numbers = begin + jnp.arange(size, dtype=first.dtype)
        drawn = jax.vmap(plain.ahead, in_axes=(None, 0))(key, numbers)
        heads, apart = drawn, every
        if recorded.ahead is not plain.ahead:
            heads, apart = jax.vmap(recorded.ahead, in_axes=(None, 0))(key, numbers[::every]), 1

        def period(k: Array, both: tuple[Carry, Array]) -> tuple[Carry, Array]:
            at = begin + k * every
            stop = jnp.minimum(at + every, end)

            def record(_: Array, both: tuple[Carry, Array]) -> tuple[Carry, Array]:
                carry, loss = take(recorded, [leaf[k * apart] for leaf in heads], at, both[0])
                return carry, both[1].at[i * blocks + k].set(loss)

            def go_on(turn: tuple[Array, Carry]) -> tuple[Array, Carry]:
                step, carry = turn
                here = [leaf[step - begin] for leaf in drawn]
                return step + 1, take(plain, here, step, carry)[0]

            # A loop of one turn or none: after a cut in the middle of a period there is no record.
            whole = jnp.where((at >= first) & running(both[0]), 1, 0)
            carry, losses = jax.lax.fori_loop(0, whole, record, both)
            _, carry = jax.lax.while_loop(
                lambda turn: (turn[0] < stop) & running(turn[1]),
                go_on,
                (jnp.maximum(at + 1, first), carry),
            )
            return carry, losses

        return jax.lax.fori_loop(0, -(-jnp.minimum(size, end - begin) // every), period, both)

    start = (carry, jnp.full((num_records,), jnp.nan))
    carry, losses = jax.lax.fori_loop(0, -(-(end - origin) // size), block, start)
    return _ended(carry, end, program), losses


def _cuts(key: Key, carry: Carry, data: PyTree, program: Program) -> tuple[Hoisted, Hoisted]:
    """The step of which nobody looks at the loss, and the recorded one, cut where random numbers
    end. One trace serves for both, unless the algorithm guards its state by the loss as well.
    """

    def made(*, recorded: bool, cut: Any) -> Hoisted:
        def step(key: Key, step: Array, state: PyTree, data: PyTree, first: Array) -> Any:
            batch = take_batch(key, step, data, step - first, program)
            return program.algorithm.step(step_key(key, step), state, batch, recorded=recorded)

        return cut(step, key, carry.step, carry.state, data, carry.step)

    cut = hoist if program.hoist else as_it_is
    plain = made(recorded=False, cut=cut)
    if plain.num_bytes * program.record_every > BLOCK_BYTES:
        cut, plain = as_it_is, made(recorded=False, cut=as_it_is)
    return plain, made(recorded=True, cut=cut) if program.algorithm.guarded else Hoisted(*plain)


def _ended(carry: Carry, end: Array, program: Program) -> Carry:
    """The carry at the end of a chunk, looked through once if no step did."""
    bad = carry.bad_step
    stopped = (bad >= 0) & ~jnp.bool_(program.skip_nonfinite)
    if not (program.careful or program.algorithm.guarded):
        bad = jnp.where((bad == -1) & ~all_finite(carry.state), UNSEEN, bad)
    return carry._replace(step=jnp.where(stopped, bad, end), bad_step=bad)


_run = jax.jit(_chunk, static_argnames="program")
_run_in_place = jax.jit(_chunk, static_argnames="program", donate_argnames="carry")


@jax.jit
def fresh_copy(carry: Carry) -> Carry:
    """A copy that may be consumed."""
    return jax.tree.map(jnp.copy, carry)


def take_batch(key: Key, step: Array, data: PyTree, slot: Array, program: Program) -> Batch:
    """The minibatch of a step: the whole data, the stacked one in `slot`, or rows drawn without
    replacement, whose data may be the stacked ones in `slot`.
    """
    num_data, size = program.algorithm.num_data, program.batch_size
    if size is None:
        if program.stacked:
            return jax.tree.map(lambda leaf: leaf[slot], data)
        return Batch(data, jnp.arange(num_data))
    index = rows_of_step(key, step, num_data=num_data, batch_size=size)
    where = slot if program.stacked else index
    return Batch(jax.tree.map(lambda leaf: leaf[where], data), index)


def step_key(key: Key, step: Array) -> Key:
    """The key of a step, for the algorithm."""
    return jax.random.fold_in(jax.random.fold_in(key, 1), step)


def _settle(
    carry: Carry, state: PyTree, info: Info, step: Array, program: Program, *, recorded: bool
) -> Carry:
    """The carry after a step, or the former one if the step is skipped. `carry.step` is left to the
    caller, who knows it without adding.
    """
    finite, guarded = info.finite, program.algorithm.guarded
    if recorded:
        finite = finite & jnp.isfinite(info.loss)
    if program.careful and not guarded:
        finite = finite & all_finite(state)
    if program.skip_nonfinite and not guarded:
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), state, carry.state)
    bad_step = jnp.where((carry.bad_step < 0) & ~finite, step, carry.bad_step)
    skipped = carry.num_skipped + jnp.where(finite, 0, 1)
    return Carry(state, carry.step, bad_step, skipped)
