"""Which numbers and which data made a step not finite, for the error message."""

import jax
import jax.numpy as jnp
import numpy as np

from vijax.finite import all_finite
from vijax.optimize.loop import Carry, Program, step_key, take_batch
from vijax.types import Array, Batch, Key, PyTree


def diagnose(key: Key, good: Carry, data: PyTree, first: int, program: Program) -> str:
    """What to tell of the step after the state `good`, taken again: on its batch, and then one
    datum at a time.

    Args:
      data: as the chunk had it that began at step `first`.
    """
    step, algorithm = int(good.step), program.algorithm
    batch = take_batch(key, good.step, data, good.step - first, program)
    noise = step_key(key, good.step)

    def look(state: PyTree, batch: Batch) -> PyTree:
        if algorithm.inspect is not None:
            return algorithm.inspect(noise, state, batch)
        new, info = algorithm.step(noise, state, batch)
        return {"loss": info.loss, "state": new}

    seen = jax.jit(look)(good.state, batch)
    leaves = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(seen)
        if not bool(all_finite(leaf))
    ]
    rows = _rows_to_blame(look, good.state, batch) if leaves else []
    where = "no single row: the whole batch"
    if rows and (len(rows) < batch.index.shape[0] or len(rows) == 1):
        where = f"rows {rows[:10]}{' ...' if len(rows) > 10 else ''} of the data"
    what = ", ".join(leaves) or "the update alone (a step that is too long, or a local step)"
    return (
        f"not finite at step {step}: {what}, from {where}. The state before that step is in this "
        "error's `result`. Look at those rows, at scales near 0 and at the learning rate; "
        "skip_nonfinite=True drops such steps and counts them."
    )


def _rows_to_blame(look, state: PyTree, batch: Batch) -> list[int]:
    def one(row: Array) -> Array:
        single = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, row, 1), batch)
        return all_finite(look(state, single))

    try:
        fine = jax.jit(lambda: jax.lax.map(one, jnp.arange(batch.index.shape[0])))()
    except ValueError:  # an objective that refuses minibatches has no single rows to blame
        return []
    return np.asarray(batch.index)[~np.asarray(fine)].tolist()
