"""`fit`: the loop over any algorithm. The host's part: chunks, progress, callbacks, interruption,
numbers that are not finite.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm.auto import tqdm

from vijax.algorithms import Averaging, averaged
from vijax.inference import Algorithm
from vijax.optimize.diagnose import diagnose
from vijax.optimize.interrupt import interruptible
from vijax.optimize.loop import UNSEEN, Carry, Program, fresh_copy, run_chunk, start
from vijax.optimize.minibatch import Visited, next_batches, visit, warn_of_unvisited
from vijax.optimize.results import FitResult, History, NonFiniteError, Progress
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
) -> FitResult:
    """Take `num_steps` steps of an algorithm, such as `descent(estimator, optax.adam(1e-3))`, many
    of them per compiled call.

    Compiled once per (algorithm, shapes): `descent` of the same estimator and optimiser is the same
    algorithm, so keep those two to call again without recompiling. A run of n steps resumed for m
    more equals a run of n + m, bit for bit: a step's noise and batch are functions of (key, step).

    Args:
      params: from `estimator.init_params(key)`, or your own; never modified. None with `resume`.
      data: leaves [N, ...], or an iterator of `Batch`es of one size.
      batch_size: rows drawn without replacement for every step; None for the full data set.
      averaging: what `result.params` are an average of, see `algorithms.averaged`; None: the last.
      record_every: the loss is kept at the multiples of so many steps; every step costs up to 2x.
      chunk_size: steps per compiled call, between which progress and callbacks run and Ctrl-C is
        seen; None for as many as take about half a second (100 where batches come from an
        iterator). The result depends on it by rounding alone.
      skip_nonfinite: drop and count steps that leave a NaN or an infinity, or whose recorded loss
        is one; otherwise they raise.
      hoist: draw the random numbers of many steps at once. The same numbers either way: a switch
        for the day when a new JAX breaks it.
      callbacks: called between chunks; a true return value stops the run.
      resume: a former result to continue; `params` is then ignored. Key and algorithm must be
        those of before: the kind of optimiser and the shapes of its state are compared, but not
        its rates, nor the model and the data, which may change on purpose.

    Raises:
      ValueError: if a setting or the data's size is impossible, or `resume` is of another run.
      NonFiniteError: names step, leaf and rows; its `result` is the last good state.
    """
    outside = isinstance(data, Iterator)
    _check(algorithm, data, batch_size, num_steps, record_every, chunk_size, outside=outside)
    _check_hooks(averaging, callbacks)
    chosen = algorithm if averaging is None else averaged(algorithm, averaging)
    adapt = chunk_size is None and not outside
    most = chunk_size or _multiple(MAX_CHUNK if adapt else FIRST_CHUNK, record_every)
    program = Program(
        algorithm=chosen,
        batch_size=None if outside else batch_size,
        stacked=outside,
        record_every=record_every,
        chunk_size=most,
        skip_nonfinite=skip_nonfinite,
        careful=skip_nonfinite,
        hoist=hoist,
    )
    result = _begin(key, chosen, params) if resume is None else _continue(key, chosen, resume)
    begin, began, done = result.num_steps, time.perf_counter(), 0
    skipped = result.num_skipped
    if not outside:
        check_data(algorithm.check if resume is None else None, data)
        data = jax.tree.map(_on_device, data)  # once, not at every chunk
    visited = Visited()
    planned = min(most, _multiple(FIRST_CHUNK, record_every)) if adapt else most
    bar = tqdm(total=num_steps, disable=not progress, unit="step", smoothing=0.1)
    with interruptible() as interrupted, bar:
        while done < num_steps and not result.interrupted:
            size, chunk_began = min(planned, num_steps - done), time.perf_counter()
            chunk = data
            if isinstance(data, Iterator):
                chunk, size = next_batches(data, size, most, algorithm)
                visited = visit(visited, chunk, size)
            if size == 0:
                break
            result = _run_checked(result, chunk, size, program)
            if adapt:  # the first call compiles, which asks for a short second one: the third fits
                fitting = int(size * CHUNK_SECONDS / (time.perf_counter() - chunk_began))
                planned = min(max(fitting // record_every * record_every, record_every), most)
            done += size
            _show(bar, size, result)
            seen = Progress(result, begin + done, time.perf_counter() - began)
            stop = [bool(callback(seen)) for callback in callbacks]
            result = result._replace(interrupted=any(stop) or bool(interrupted))
    warn_of_unvisited(visited, algorithm.num_data)
    if done and result.num_skipped - skipped == done:
        warnings.warn("fit: every step was skipped as not finite; nothing moved.", stacklevel=2)
    return result


def _on_device(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else jax.device_put(leaf)


def _begin(key: Key, algorithm: Algorithm, params: Params | None) -> FitResult:
    if not isinstance(params, Params):
        raise ValueError(
            f"fit: params is a {type(params).__name__}. Give estimator.init_params(key), for "
            "algorithms without an estimator vijax.Params(theta, guide.init(key), ()); None goes "
            "with resume=."
        )
    nothing = History(np.zeros(0, int), np.zeros(0))
    carry = start(key, params, algorithm=algorithm)
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
    carry = fresh_copy(resume.carry)._replace(bad_step=jax.device_put(np.int32(-1)))
    return resume._replace(algorithm=algorithm, carry=carry, interrupted=False)


def _run_checked(before: FitResult, data: PyTree, size: int, program: Program) -> FitResult:
    """The result after a chunk. Raises NonFiniteError with the state before the bad step."""
    key, first, skipped = before.key, before.num_steps, before.num_skipped
    after, losses = run_chunk(key, before.carry, data, size, program=program)
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


def _multiple(steps: int, every: int) -> int:
    """About so many steps, a multiple of `every`, at least one."""
    return max(1, steps // every) * every


def _show(bar: tqdm, size: int, result: FitResult) -> None:
    bar.update(size)
    if result.history.loss.size:
        bound = -result.history.loss[-1] / result.algorithm.num_data
        bar.set_postfix_str(f"bound/datum {bound:.4g}")


def _check_hooks(averaging: object, callbacks: object) -> None:
    if not isinstance(averaging, Averaging | None):
        raise TypeError(
            f"fit: averaging={averaging!r} is no average. Write algorithms.since(step) or "
            "algorithms.exponential(decay)."
        )
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise TypeError("fit: callbacks must be a list of functions: write callbacks=[callback].")


def _check(
    algorithm: Algorithm,
    data: PyTree,
    batch_size: int | None,
    num_steps: int,
    record_every: int,
    chunk_size: int | None,
    *,
    outside: bool,
) -> None:
    if not isinstance(algorithm, Algorithm):
        raise TypeError(
            f"fit takes an algorithm, not {type(algorithm).__name__}: for an estimator and an "
            "optax optimiser write fit(key, vijax.descent(estimator, optimizer), params, data, "
            "num_steps=...)."
        )
    settings = {"num_steps": num_steps, "record_every": record_every, "chunk_size": chunk_size or 1}
    for name, value in settings.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"fit: {name}={value!r} must be an int of at least 1.")
    if outside:
        if batch_size is not None:
            raise ValueError(
                "fit: data is an iterator, which brings its own batches; leave batch_size out."
            )
        return
    num_data = algorithm.num_data
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if sizes != {(num_data,)}:
        raise ValueError(
            f"fit: the algorithm was built for num_data={num_data}, but the leaves of data have "
            f"leading sizes {sorted(sizes)}. Pass the whole data set here; minibatches are drawn "
            "from it by batch_size."
        )
    if batch_size is not None and not 1 <= batch_size <= num_data:
        raise ValueError(
            f"fit: batch_size={batch_size} must lie between 1 and num_data={num_data}."
        )
