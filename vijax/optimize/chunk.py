"""A chunk of steps, run and looked at: its history, and the error that a step which is not finite
ends in.
"""

from collections.abc import Callable

import jax
import numpy as np

from vijax.optimize.diagnose import diagnose
from vijax.optimize.feed import Chunk
from vijax.optimize.loop import UNSEEN, Carry, Program, run_chunk
from vijax.optimize.results import FitResult, History, NonFiniteError
from vijax.optimize.tables import entered, left
from vijax.types import PyTree


def run_checked(
    before: FitResult, chunk: Chunk, program: Program, meanwhile: Callable[[], None]
) -> FitResult:
    """The result after a chunk.

    Args:
      meanwhile: called while the device computes.

    Raises:
      NonFiniteError: with the state before the bad step.
    """
    here = before._replace(carry=entered(before.carry, chunk.index, program.chunk_size))
    try:
        after = _run_checked(here, chunk.data, chunk.size, program, meanwhile)
    except NonFiniteError as error:
        good = error.result
        error.result = good._replace(carry=left(good.carry, before.carry))
        raise
    return after._replace(carry=left(after.carry, before.carry))


def _run_checked(
    before: FitResult, data: PyTree, size: int, program: Program, meanwhile: Callable[[], None]
) -> FitResult:
    key, first, skipped = before.key, before.num_steps, before.num_skipped
    after, losses = run_chunk(key, before.carry, data, size, program=program)
    meanwhile()
    if int(after.bad_step) == UNSEEN:
        careful = program._replace(careful=True)
        after, losses = run_chunk(key, before.carry, data, size, program=careful)
    bad = int(after.bad_step)
    history = _extend(before.history, first, np.asarray(losses), size, program.record_every)
    result = before._replace(carry=after, history=history)
    if bad < 0 or program.skip_nonfinite:
        return result
    good = after  # a guarded state is that before the bad step
    if not program.algorithm.guarded:
        good = before.carry
        if bad > first:
            good, _ = run_chunk(key, good, data, bad - first, program=program)
    good = Carry(good.state, *jax.device_put((np.int32(bad), np.int32(-1), np.int32(skipped))))
    kept = History(*(values[history.step < bad] for values in history))
    message = diagnose(key, good, data, first, program)
    raise NonFiniteError(message, FitResult(before.algorithm, key, good, kept, interrupted=True))


def _extend(history: History, first: int, losses: np.ndarray, size: int, every: int) -> History:
    """The history with a chunk's records, of which the first stands at or before step `first`."""
    steps = (first - first % every) + np.arange(0, size + first % every, every)
    here = steps >= first
    return History(
        np.concatenate([history.step, steps[here]]),
        np.concatenate([history.loss, losses[: len(steps)][here]]),
    )
