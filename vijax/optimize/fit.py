"""`fit`: the loop over any algorithm. The host's part: chunks, progress, callbacks, interruption,
numbers that are not finite.
"""

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from vijax.algorithms import Averaging, averaged
from vijax.host import stays
from vijax.inference import Algorithm
from vijax.optimize.batches import source, steps_at_once
from vijax.optimize.chunk import run_checked
from vijax.optimize.feed import Chunk, Feed
from vijax.optimize.interrupt import interruptible
from vijax.optimize.iterators import Visited, visit, warn_of_unvisited
from vijax.optimize.keeping import Checkpoint, begun, keeper
from vijax.optimize.loop import Program
from vijax.optimize.results import BatchError, FitResult, History, Progress
from vijax.optimize.settings import check_hooks, check_settings
from vijax.optimize.tables import begin, copied, on_host
from vijax.shapes import check_data
from vijax.types import Batch, Key, Params, PyTree

# Without a chunk_size: the seconds to aim at, where to begin, and the most
CHUNK_SECONDS, FIRST_CHUNK, MAX_CHUNK = 0.5, 100, 10_000


def fit(
    key: Key,
    algorithm: Algorithm,
    params: Params | None,
    data: PyTree | Iterator[Batch],
    *,
    num_steps: int,
    batch_size: int | None = None,
    averaging: Averaging | None = None,
    record_every: int = 10,
    chunk_size: int | None = None,
    skip_nonfinite: bool = False,
    hoist: bool = True,
    progress: bool = False,
    callbacks: Sequence[Callable[[Progress], Any]] = (),
    resume: FitResult | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """Take `num_steps` steps of an algorithm, such as `descent(estimator, optax.adam(1e-3))`, many
    of them per compiled call.

    Compiled once per (algorithm, shapes): `descent` of the same estimator and optimiser is the same
    algorithm, so keep those two to call again without recompiling. A run of n steps resumed for m
    more equals a run of n + m, bit for bit: a step's noise and batch are functions of (key, step).

    Args:
      params: from `estimator.init_params(key)`, or your own; never modified. None with `resume`.
      data: leaves [N, ...], or an iterator of `Batch`es, which is read a chunk ahead; their number
        of rows may change, as in the last batch of an epoch. What stays on the host (`np.memmap`,
        `vijax.on_host`) is never moved whole: the rows of the next chunk's batches go to the device
        while it computes, and the numbers are the same.
      batch_size: rows drawn without replacement for every step; None for the full data set.
      averaging: what `result.params` are an average of, see `algorithms.averaged`; None: the last.
      record_every: the loss is kept at the multiples of so many steps; every step costs up to 2x.
      chunk_size: steps per compiled call, between which progress and callbacks run and Ctrl-C is
        seen; None for as many as take about half a second (100, or as many as fit into 256 MiB,
        where they come from an iterator or the host). The result depends on it by rounding alone.
      skip_nonfinite: drop and count steps that leave a NaN or an infinity, or whose recorded loss
        is one; otherwise they raise.
      hoist: draw the random numbers of many steps at once. The same numbers either way: a switch
        for the day when a new JAX breaks it.
      callbacks: called between chunks; a true return value stops the run.
      resume: a former result to continue; `params` is then ignored. Key and algorithm must be
        those of before: the kind of optimiser and the shapes of its state are compared, but not
        its rates, nor the model and the data, which may change on purpose.
      checkpoint: where the run is kept, and from where this same call goes on if the process was
        ended, by SIGKILL too: it returns what it would have returned, bit for bit, on the same kind
        of machine. Steps that were taken before are counted in num_steps. Everything but the
        contents of the data is compared. Callbacks and iterators with get_state() and set_state()
        are kept as well; a run that a callback stopped asks the callbacks again. If a write fails
        later than the first, there is a warning, and the run goes on.

    Raises:
      ValueError: if a setting or the data's size is impossible, or `resume` or the checkpoint is
        of another run.
      OSError: if the checkpoint's folder cannot be written to, before the first step.
      NonFiniteError: names step, leaf and rows; its `result` is the last good state.
      BatchError: if batches fail to come after steps were taken; its `result` is the run so far.
    """
    outside = isinstance(data, Iterator)
    check_settings(
        algorithm, data, batch_size, num_steps, record_every, chunk_size, outside=outside
    )
    check_hooks(averaging, callbacks)
    chosen = algorithm if averaging is None else averaged(algorithm, averaging)
    stacked = outside or any(map(stays, jax.tree.leaves(data)))
    if resume is None:
        result = _begin(key, chosen, params, over=begun(checkpoint))
    else:
        result = _continue(key, chosen, resume)
    by_rows = on_host(result.carry)
    if by_rows and not outside and batch_size is None:
        raise ValueError(
            "fit: the rows of a table on the host (rowwise.on_host) reach the device by batches, "
            "but without batch_size every step takes all of them. Write batch_size=."
        )
    adapt = chunk_size is None and not stacked and not by_rows
    most = chunk_size or _multiple(MAX_CHUNK if adapt else FIRST_CHUNK, record_every)
    if chunk_size is None and not adapt and batch_size is not None:
        most = steps_at_once((data if stacked else (), result.carry), batch_size, most)
    program = Program(
        algorithm=chosen,
        batch_size=None if outside else batch_size,
        stacked=stacked,
        record_every=record_every,
        chunk_size=most,
        skip_nonfinite=skip_nonfinite,
        careful=skip_nonfinite,
        hoist=hoist,
    )
    first, began = result.num_steps, time.perf_counter()
    skipped = result.num_skipped
    if not stacked:
        check_data(algorithm.check if resume is None else None, data)
        data = jax.tree.map(_on_device, data)  # once, not at every chunk
    keep = keeper(
        checkpoint, result, program, data, callbacks, num_steps=num_steps, fresh=resume is None
    )
    result, done = keep.result, keep.result.num_steps - first
    feed, visited = Feed(source(key, data, program, rows=by_rows), ahead=stacked), Visited()
    planned = min(most, _multiple(FIRST_CHUNK, record_every)) if adapt else most
    bar = tqdm(total=num_steps, initial=done, disable=not progress, unit="step", smoothing=0.1)
    with interruptible() as interrupted, bar, keep:
        if keep.stopped:  # by a callback, in another process: is that still so?
            result = keep.look(Progress(result, first + done, 0.0), interrupted, keep.place)
        while done < num_steps and not result.interrupted:
            size, chunk_began = min(planned, num_steps - done), time.perf_counter()
            chunk = _fetched(feed, result, size, begun=done > 0)
            if chunk.size == 0:
                break
            visited, size = visit(visited, chunk.index), chunk.size
            rest = min(planned, num_steps - done - size)
            ahead = functools.partial(feed.ahead, first + done + size, rest)
            result = run_checked(result, chunk, program, ahead)
            if adapt:  # the first call compiles, which asks for a short second one: the third fits
                fitting = int(size * CHUNK_SECONDS / (time.perf_counter() - chunk_began))
                planned = min(max(fitting // record_every * record_every, record_every), most)
            done += size
            _show(bar, size, result)
            seen = Progress(result, first + done, time.perf_counter() - began)
            result = keep.look(seen, interrupted, chunk.place)
    warn_of_unvisited(visited, algorithm.num_data)
    if done and result.num_skipped - skipped == done:
        warnings.warn("fit: every step was skipped as not finite; nothing moved.", stacklevel=2)
    return result


def _fetched(feed: Feed, result: FitResult, size: int, *, begun: bool) -> Chunk:
    try:
        return feed.get(result.num_steps, size)
    except Exception as error:
        if not begun:
            raise
        raise BatchError(
            f"fit: no batches after step {result.num_steps}: {error} The run up to there is this "
            "error's `result`.",
            result._replace(interrupted=True),
        ) from error


def _on_device(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf)


def _begin(key: Key, algorithm: Algorithm, params: Params | None, *, over: bool) -> FitResult:
    if not isinstance(params, Params):
        raise ValueError(
            f"fit: params is a {type(params).__name__}. Give estimator.init_params(key), for "
            "algorithms without an estimator vijax.Params(theta, guide.init(key), ()); None goes "
            "with resume=."
        )
    nothing = History(np.zeros(0, int), np.zeros(0))
    carry = begin(key, params, algorithm, over=over)
    return FitResult(algorithm, key, carry, nothing, interrupted=False)


def _continue(key: Key, algorithm: Algorithm, resume: FitResult) -> FitResult:
    """The former result, its carry a copy; refused if it means something else under the present
    settings.
    """
    same_key = key is resume.key or (
        jax.random.key_data(key).tolist() == jax.random.key_data(resume.key).tolist()
    )
    if resume.algorithm.name != algorithm.name or not same_key:
        other = "another key" if not same_key else f"the algorithm {resume.algorithm.name}"
        raise ValueError(
            f"fit: resume= was made with {other}, not as this call with {algorithm.name}: its "
            "state and noise would mean something else. Pass the same, or start anew from its "
            "params."
        )
    carry = copied(resume.carry, algorithm)._replace(bad_step=jax.device_put(np.int32(-1)))
    return resume._replace(algorithm=algorithm, carry=carry, interrupted=False)


def _multiple(steps: int, every: int) -> int:
    """About so many steps, a multiple of `every`, at least one."""
    return max(1, steps // every) * every


def _show(bar: tqdm, size: int, result: FitResult) -> None:
    bar.update(size)
    if result.history.loss.size:
        bound = -result.history.loss[-1] / result.algorithm.num_data
        bar.set_postfix_str(f"bound/datum {bound:.4g}")
