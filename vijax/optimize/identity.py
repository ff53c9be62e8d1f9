"""What makes a run this very run: two calls of `fit` that are equal in all this take the same
steps, if the contents of the data are the same.
"""

import functools
import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vijax.inference import Algorithm
from vijax.optimize.checkpoint import shapes
from vijax.optimize.loop import Program
from vijax.optimize.results import FitResult
from vijax.optimize.stateful import Stateful, put_back, state_of
from vijax.types import Batch, Key, PyTree

LAST = ("start", "step")  # told only if nothing else differs
WORDS = {
    "start": "the parameters that it started from have other values",
    "step": "a step computes something else: the model, a rate or another setting has changed",
}
BLOCK = 2**20  # numbers looked at together
SAME = 1e-5  # of the sum of absolute values: another processor may round a start differently


def described(
    program: Program, result: FitResult, data: Any, origin: Any, *, fresh: bool
) -> dict[str, Any]:
    """All of it, made of words and numbers.

    Args:
      result: before the first step.
      data: leaves [N, ...], or a `Stateful` iterator.
      origin: the place where the iterator was at the start: the batch there is looked at.
      fresh: does it start from parameters, not from another result?
    """
    batch = _batch(data, program, origin)
    state = result.carry.state
    return {
        "vijax": _version(),
        "jax": jax.__version__,
        "platform": jax.default_backend(),
        "algorithm": program.algorithm.name,
        "num_data": program.algorithm.num_data,
        "origin": origin,
        "key": str(jax.random.key_impl(result.key))
        + str(np.asarray(jax.random.key_data(result.key)).tolist()),
        "batch_size": program.batch_size,
        "record_every": program.record_every,
        "chunk_size": program.chunk_size,
        "skip_nonfinite": program.skip_nonfinite,
        "data": None if batch is None else " ".join(shapes(batch)),
        "state": " ".join(shapes(state)),
        "start": [sums(leaf) for leaf in jax.tree.leaves(state)] if fresh else None,
        "step": None if batch is None else _step(program.algorithm, result.key, state, batch),
    }


def refuse_others(path: Any, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError if a checkpoint is not of the run that is to go on."""
    differ = [name for name in now if not _equal(name, then.get(name), now[name])]
    named = [name for name in differ if name not in LAST]
    what = [f"{name} was {_short(then.get(name))} and is {_short(now[name])}" for name in named]
    if differ:
        raise ValueError(
            f"fit: {path} is a checkpoint of another run: "
            f"{'; '.join(what or [WORDS[name] for name in differ])}. Going on from it would give a "
            "result that neither run has. Set everything as it was then, or give another folder; "
            "to go on under new settings on purpose, resume=vijax.restore(folder, algorithm, "
            "params)."
        )


def _equal(name: str, then: Any, now: Any) -> bool:
    if name == "origin":
        return (then is None) == (now is None)
    if then is None or now is None:  # nobody knows
        return then is now or name in ("start", "data", "step")
    if name != "start" or len(then) != len(now):
        return then == now
    old, new = np.array(then, float).reshape(-1, 3), np.array(now, float).reshape(-1, 3)
    return bool(np.all(~(np.abs(old - new) > SAME * np.abs(new[:, 2:]))))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 160 else f"{text[:160]} ..."


def sums(leaf: Any) -> list[float]:
    """Of a leaf: its sum, one that tells its places apart, and that of its absolute values, below
    which the other two stay.
    """
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    numbers = np.asarray(jax.device_get(leaf)).reshape(-1)
    places, found = np.cos(np.arange(min(numbers.size, BLOCK))), np.zeros(3)
    with np.errstate(all="ignore"):
        for begin in range(0, numbers.size, BLOCK):  # no second copy of a large table
            part = numbers[begin : begin + BLOCK]
            part = part.astype(np.result_type(part, np.float64))
            found += np.real([part.sum(), part @ places[: part.size], np.abs(part).sum()])
    return found.tolist()


def _version() -> str:
    try:
        return importlib.metadata.version("vijax-research")
    except importlib.metadata.PackageNotFoundError:  # files on the path, not installed
        return "unknown"


def _batch(data: Any, program: Program, origin: Any) -> Any:
    """Types and shapes of the batch of a step; None of an iterator that is at its end."""
    if isinstance(data, Iterator):
        assert isinstance(data, Stateful)
        place = state_of(data)
        put_back(data, place if origin is None else origin)
        first = next(data, None)
        put_back(data, place)
        return None if first is None else jax.tree.map(_like, first)
    size = program.batch_size or program.algorithm.num_data
    x = jax.tree.map(lambda leaf: _like(leaf, size), data)
    return Batch(x, jax.eval_shape(lambda: jnp.arange(size)))


def _like(leaf: Any, size: int | None = None) -> jax.ShapeDtypeStruct:
    shape = np.shape(leaf) if size is None else (size, *np.shape(leaf)[1:])
    native = leaf.dtype.newbyteorder("=") if isinstance(leaf, np.ndarray) else leaf.dtype
    return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(native))


def _step(algorithm: Algorithm, key: Key, state: PyTree, batch: PyTree) -> str:
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (key, state))
    leaves, tree = jax.tree.flatten((*like, batch))
    return _digest(algorithm, tuple(leaves), tree)


@functools.lru_cache(maxsize=64)
def _digest(algorithm: Algorithm, leaves: tuple[jax.ShapeDtypeStruct, ...], tree: Any) -> str:
    """Of the program that a step is, in StableHLO, numbers written into it included: that of
    another model, rate or rule differs, though all shapes are equal.
    """
    lowered = jax.jit(algorithm.step).lower(*jax.tree.unflatten(tree, leaves))
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()
