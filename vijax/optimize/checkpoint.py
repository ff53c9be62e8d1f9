"""A run on disk: written whole or not at all, and gone on from with the same bits."""

import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import serialization

from vijax.inference import Algorithm
from vijax.optimize.loop import Carry, start
from vijax.optimize.results import FitResult, History
from vijax.types import Params, PyTree

FORMAT = 1


def save(path: str | pathlib.Path, result: FitResult) -> None:
    """Write a result of `fit` to a file: parameters, optimiser and estimator state, step, key and
    history, as flax's msgpack. It takes the place of a former file at once, when all of it is
    written; a callback may save `progress.result` as often as it likes.
    """
    path = pathlib.Path(path)
    told = {
        "format": FORMAT,
        "algorithm": result.algorithm.name,
        "num_data": result.algorithm.num_data,
        "generator": str(jax.random.key_impl(result.key)),
        "interrupted": result.interrupted,
        "key": np.asarray(jax.random.key_data(result.key)),
        "history": result.history._asdict(),
        "carry": _numbered(jax.device_get(jax.tree.leaves(result.carry))),
    }
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(beside, "wb") as file:
            file.write(serialization.msgpack_serialize(told))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def restore(path: str | pathlib.Path, algorithm: Algorithm, params: Params) -> FitResult:
    """The result that was saved, for `fit(..., resume=)` or to be looked at.

    Args:
      algorithm: made as it was then: its name, its N and the shapes of its state are compared.
      params: of the same shapes, such as `estimator.init_params(key)`; their values are not used.

    Raises:
      ValueError: if the file is no whole result, or that of something else.
    """
    written = pathlib.Path(path).read_bytes()
    try:
        told: dict[str, Any] = dict(serialization.msgpack_restore(written))
        known = told["format"] == FORMAT
    except Exception as error:
        raise ValueError(f"restore: {path} is no result that vijax.save wrote whole.") from error
    if not known:
        raise ValueError(
            f"restore: {path} has format {told['format']}, but this version of vijax reads "
            f"{FORMAT}: read it with the version that wrote it."
        )
    for name, now in (("algorithm", algorithm.name), ("num_data", algorithm.num_data)):
        if told[name] != now:
            raise ValueError(
                f"restore: {path} was made with {name} {told[name]!r}, not {now!r}, so its state "
                "would mean something else. Build the algorithm as it was then."
            )
    key = jax.random.wrap_key_data(told["key"], impl=told["generator"])
    carry = _carry(path, told["carry"], key, algorithm, params)
    history = History(**told["history"])
    return FitResult(algorithm, key, carry, history, interrupted=told["interrupted"])


def _carry(
    path: str | pathlib.Path, found: PyTree, key: jax.Array, algorithm: Algorithm, params: Params
) -> Carry:
    like = jax.eval_shape(lambda key, params: start(key, params, algorithm=algorithm), key, params)
    wanted, tree = jax.tree.flatten(like)
    leaves = [found[str(i)] for i in range(len(found))]
    shapes = [(leaf.shape, str(leaf.dtype)) for leaf in leaves]
    if shapes != [(leaf.shape, str(leaf.dtype)) for leaf in wanted]:
        raise ValueError(
            f"restore: the state in {path} has shapes {shapes}, other than those of this algorithm "
            "with these params. Build model, guide and optimiser as they were then."
        )
    return jax.tree.unflatten(tree, [jax.device_put(leaf) for leaf in leaves])


def _numbered(leaves: list) -> dict[str, np.ndarray]:
    return {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}
