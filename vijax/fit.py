"""`fit`: the optimisation loop. The host's part: chunks, progress, callbacks, interruption, bad
numbers.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm.auto import tqdm

from vijax import rowwise
from vijax.interrupt import interruptible
from vijax.loop import (
    Carry,
    Program,
    fresh_copy,
    row_layout,
    run_chunk,
    start,
    step_key,
    take_batch,
    whole_params,
)
from vijax.minibatch import next_batches
from vijax.types import Array, Batch, Estimator, Key, Params, PyTree

# Without a chunk_size: what to aim at, where to begin, the most
CHUNK_SECONDS, FIRST_CHUNK, MAX_CHUNK = 0.5, 100, 10_000


class History(NamedTuple):
    """What was recorded, every `record_every`-th step.

    Attributes:
      step: [T] int
      loss: [T] minus the estimated bound on the whole data set, nats
    """

    step: np.ndarray
    loss: np.ndarray


class Progress(NamedTuple):
    """What a callback sees, between chunks.

    Attributes:
      state: the estimator's: running means
      seconds: since fit was called
    """

    step: int
    params: Params
    state: PyTree
    history: History
    seconds: float


class FitResult(NamedTuple):
    """What `fit` returns.

    Attributes:
      params: ready for use
      opt_state: {"optimizer": ..., "rows": per-row state of tables}
      state: the estimator's: running means
      history: (step, loss) at every record_every-th step
      num_steps: steps taken in all, earlier calls that this one resumed included
      num_skipped: steps whose non-finite gradient was not applied
      interrupted: by Ctrl-C or a callback
      carry: for `resume=`
      local_steps: that it was made with
    """

    params: Params
    opt_state: PyTree
    state: PyTree
    history: History
    num_steps: int
    num_skipped: int
    interrupted: bool
    carry: Carry
    local_steps: int


class NonFiniteError(FloatingPointError):
    """A NaN or infinite gradient. `result` holds the state before the bad step."""

    def __init__(self, message: str, result: FitResult):
        super().__init__(message)
        self.result = result


def fit(
    key: Key,
    estimator: Estimator,
    optimizer: optax.GradientTransformation,
    params: Params,
    data: PyTree | Iterator[Batch],
    *,
    num_steps: int,
    batch_size: int | None = None,
    row_optimizer: rowwise.RowOptimizer | None = None,
    local_steps: int = 1,
    record_every: int = 10,
    chunk_size: int | None = None,
    skip_nonfinite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Callable[[Progress], Any]] = (),
    resume: FitResult | None = None,
) -> FitResult:
    """Minimise the estimator's loss for `num_steps` steps, many of them per compiled call.

    Compiled once per (estimator, optimizer, shapes): keep those two objects to call again without
    recompiling. A run of n steps resumed for m more equals a run of n + m, bit for bit: a step's
    noise and batch are functions of (key, step).

    Args:
      optimizer: any optax transformation of `Params`; `optax.partition({...}, Params("theta",
        "phi", "control"))` for different ones.
      params: from `estimator.init_params(key)`, or your own; never modified.
      data: leaves [N, ...], or an iterator of `Batch`es of one size.
      batch_size: rows drawn without replacement for every step; None for the full data set.
      row_optimizer: for tables of phi_i (`guides.per_datapoint`): `rowwise.adam(rate)` for dense
        Adam's result; default `rowwise.lazy(optimizer)`.
      local_steps: updates of the batch's phi_i per step; the last one also updates everything else
        (stochastic VI's inner loop, Hoffman et al. 2013).
      record_every: the loss is computed at every so many steps (and at the first of a chunk); every
        step costs up to 2x.
      chunk_size: steps per compiled call, between which progress and callbacks run and Ctrl-C is
        seen; None for as many as take about half a second (100 where batches come from an
        iterator). The result depends on it by rounding alone.
      skip_nonfinite: drop and count steps with a non-finite gradient; otherwise they raise.
      callbacks: called between chunks; a true return value stops the run.
      resume: a former result to continue; `params` is then ignored.

    Raises:
      NonFiniteError: names step, leaf and rows; its `result` is the last good state.
    """
    outside = isinstance(data, Iterator)
    _check(estimator, data, batch_size, num_steps, record_every, chunk_size, local_steps, outside)
    row_optimizer = rowwise.lazy(optimizer) if row_optimizer is None else row_optimizer
    adapt = chunk_size is None and not outside
    most = (
        chunk_size or max(1, (MAX_CHUNK if adapt else FIRST_CHUNK) // record_every) * record_every
    )
    planned = min(most, -(-FIRST_CHUNK // record_every) * record_every) if adapt else most
    layout = row_layout(estimator, row_optimizer, params)
    program = Program(
        estimator,
        optimizer,
        row_optimizer,
        None if outside else batch_size,
        outside,
        record_every,
        most,
        local_steps,
        layout,
        careful=skip_nonfinite or layout is not None,
        skip_nonfinite=skip_nonfinite,
    )
    carry = start(key, params, program=program) if resume is None else _continue(resume, program)
    begin = 0 if resume is None else resume.num_steps
    history = History(np.zeros(0, int), np.zeros(0)) if resume is None else resume.history
    bar = tqdm(total=num_steps, disable=not progress, unit="step", smoothing=0.1)
    done, stop, began = 0, False, time.perf_counter()
    with interruptible() as interrupted, bar:
        while done < num_steps and not stop:
            size, chunk_began = min(planned, num_steps - done), time.perf_counter()
            chunk, size = (
                next_batches(data, size, most, layout, estimator.num_data)
                if outside
                else (data, size)
            )
            if size == 0:
                break
            carry, losses = _run_checked(key, carry, chunk, size, program)
            history = _extend(history, begin + done, np.asarray(losses), size, record_every)
            # The first call compiles, which asks for a short second one: the third then fits
            if adapt:
                fitting = (
                    int(size * CHUNK_SECONDS / (time.perf_counter() - chunk_began))
                    // record_every
                    * record_every
                )
                planned = min(max(fitting, record_every), most)
            if not skip_nonfinite and int(carry.bad_step) >= 0:
                raise _non_finite(
                    key,
                    carry,
                    chunk,
                    history,
                    begin + done,
                    program,
                    resume.num_skipped if resume else 0,
                )
            done += size
            bar.update(size)
            bar.set_postfix_str(f"bound/datum {-history.loss[-1] / estimator.num_data:.4g}")
            stop = bool(interrupted)
            if callbacks:
                seen = Progress(
                    begin + done,
                    whole_params(carry, program=program)[0],
                    jax.device_get(carry.state),
                    history,
                    time.perf_counter() - began,
                )
                stop = any([bool(callback(seen)) for callback in callbacks]) or stop
    return _result(carry, program, history, begin + done, stopped=stop)


def _continue(resume: FitResult, program: Program) -> Carry:
    """The carry of a former result, a copy; refuses one whose rows mean something else under the
    present settings.
    """
    rows = program.layout.tree.children()[1] if program.layout else jax.tree.structure(())
    if (
        jax.tree.structure(resume.opt_state["rows"]) != rows
        or resume.local_steps != program.local_steps
    ):
        raise ValueError(
            "fit: resume= was made with another row_optimizer or local_steps, under which its "
            "rows and their clocks mean "
            "something else. Pass the same ones, or start anew from its params."
        )
    return fresh_copy(resume.carry)._replace(bad_step=jnp.int32(-1))


def _run_checked(
    key: Key, carry: Carry, data: PyTree, size: int, program: Program
) -> tuple[Carry, np.ndarray]:
    """A chunk; once more with every step checked if something in it may not have been finite."""
    after, losses = run_chunk(key, carry, data, size, program=program)
    if not program.careful and int(after.bad_step) >= 0:
        after, losses = run_chunk(key, carry, data, size, program=program._replace(careful=True))
    return after, np.asarray(losses)


def _non_finite(
    key: Key,
    carry: Carry,
    data: PyTree,
    history: History,
    first: int,
    program: Program,
    skipped_before: int,
) -> NonFiniteError:
    """The error whose `result` is the state just before `carry.bad_step`."""
    bad_step = int(carry.bad_step)
    skipped = jnp.int32(skipped_before)  # the steps since are not skipped but lost
    good = carry._replace(step=jnp.int32(bad_step), bad_step=jnp.int32(-1), num_skipped=skipped)
    kept = History(*(values[history.step < bad_step] for values in history))
    result = _result(good, program, kept, bad_step, stopped=True)
    return NonFiniteError(_diagnose(key, good, data, first, program), result)


def _result(
    carry: Carry, program: Program, history: History, num_steps: int, *, stopped: bool
) -> FitResult:
    params, row_state = (
        whole_params(carry, program=program) if program.layout else (carry.params, ())
    )
    opt_state = {"optimizer": carry.opt_state, "rows": row_state}
    return FitResult(
        params,
        opt_state,
        carry.state,
        history,
        num_steps,
        int(carry.num_skipped),
        stopped,
        carry,
        program.local_steps,
    )


def _extend(history: History, first: int, losses: np.ndarray, size: int, every: int) -> History:
    steps = first + np.arange(0, size, every)
    return History(
        np.concatenate([history.step, steps]), np.concatenate([history.loss, losses[: len(steps)]])
    )


def _diagnose(key: Key, carry: Carry, data: PyTree, first: int, program: Program) -> str:
    """Which leaves and which rows went wrong, by taking the bad step's estimate again, then one
    datum at a time.
    """
    estimator, step = program.estimator, int(carry.step)
    params = whole_params(carry, program=program)[0]
    batch = take_batch(key, carry.step, data, carry.step - first, program)
    noise = step_key(key, carry.step * program.local_steps)
    estimate = jax.jit(lambda p, b: estimator.estimate(noise, p, carry.state, b)[0])
    grads = estimate(params, batch).grads
    leaves = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not jnp.all(jnp.isfinite(leaf))
    ]

    def one(row: Array) -> Array:
        single = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), batch)
        result = estimator.estimate(noise, params, carry.state, single)[0]
        return jnp.all(
            jnp.asarray(
                [
                    jnp.all(jnp.isfinite(leaf))
                    for leaf in jax.tree.leaves((result.loss, result.grads))
                ]
            )
        )

    try:
        fine = np.asarray(jax.jit(lambda: jax.lax.map(one, jnp.arange(batch.index.shape[0])))())
        rows = np.asarray(batch.index)[~fine].tolist()
    except ValueError:  # an objective that refuses minibatches has no single rows to blame
        rows = []
    where = (
        f"rows {rows[:10]}{' ...' if len(rows) > 10 else ''} of the data"
        if rows
        else "no single row: the whole batch"
    )
    return (
        f"non-finite gradient at step {step} in {', '.join(leaves) or 'a local step'}, from "
        f"{where}. The state before that "
        "step is in this error's `result`. Look at those rows and at scales near 0; "
        "skip_nonfinite=True drops such steps and "
        "counts them."
    )


def _check(
    estimator, data, batch_size, num_steps, record_every, chunk_size, local_steps, outside
) -> None:
    for name, value in (
        ("num_steps", num_steps),
        ("record_every", record_every),
        ("chunk_size", chunk_size or 1),
    ):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"fit: {name}={value!r} must be an int of at least 1.")
    if not isinstance(local_steps, int) or local_steps < 1:
        raise ValueError(f"fit: local_steps={local_steps!r} must be an int of at least 1.")
    if chunk_size is not None and chunk_size % record_every and chunk_size > record_every:
        raise ValueError(
            f"fit: chunk_size={chunk_size} must be a multiple of record_every={record_every}."
        )
    if outside:
        if batch_size is not None:
            raise ValueError(
                "fit: data is an iterator, which brings its own batches; leave batch_size out."
            )
        return
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if sizes != {(estimator.num_data,)}:
        raise ValueError(
            f"fit: the estimator was built for num_data={estimator.num_data}, but the leaves of "
            f"data have leading sizes "
            f"{sorted(sizes)}. Pass the whole data set here; minibatches are drawn from it by "
            f"batch_size."
        )
    if batch_size is not None and not 1 <= batch_size <= estimator.num_data:
        raise ValueError(
            f"fit: batch_size={batch_size} must lie between 1 and num_data={estimator.num_data}."
        )
