"""A run on disk: written whole or not at all, and gone on from with the same bits."""

import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vijax.inference import Algorithm
from vijax.optimize import container
from vijax.optimize.loop import Carry, start
from vijax.optimize.results import FitResult, History
from vijax.optimize.tables import stamped, tables_of
from vijax.types import Array, Params, PyTree


def save(path: str | pathlib.Path, result: FitResult) -> None:
    """Write a result of `fit` to a file: parameters, optimiser and estimator state, step, key and
    history, with a checksum. It takes the place of a former file at once, when all of it is
    written; a callback may save `progress.result` as often as it likes.

    `fit(checkpoint=)` does this by itself, and also finds its way back.

    Raises:
      OSError: if it cannot be written; a former file is then left as it was.
    """
    container.write(pathlib.Path(path), pieces(result, {}))


def restore(path: str | pathlib.Path, algorithm: Algorithm, params: Params) -> FitResult:
    """The result that was saved, for `fit(..., resume=)` or to be looked at.

    Args:
      path: a file of `save`, or the folder of a `Checkpoint`, whose newest whole one is read.
      algorithm: made as it was then: its name, its N and the shapes of its state are compared, but
        not its rates, nor the model.
      params: of the same shapes, such as `estimator.init_params(key)`; their values are not used.

    Raises:
      ValueError: if the file is no whole result, or that of something else.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path, found = newest(path)
    else:
        found = container.read(path)
    told = found[0]
    for name, now in (("algorithm", algorithm.name), ("num_data", algorithm.num_data)):
        if told[name] != now:
            raise ValueError(
                f"restore: {path} was made with {name} {told[name]!r}, not {now!r}, so its state "
                "would mean something else. Build the algorithm as it was then."
            )
    key = jax.random.wrap_key_data(told["key"], impl=told["generator"])
    like = jax.eval_shape(lambda key, params: start(key, params, algorithm=algorithm), key, params)
    return unpacked(path, found, algorithm, like)


def newest(folder: pathlib.Path) -> tuple[pathlib.Path, list[Any]]:
    """The newest file of a folder that is whole, and its pieces; warns if there is a newer one.

    Raises:
      FileNotFoundError: if there is none at all.
      container.DamagedError: if there are some, and none is whole.
    """
    files, problems = container.newest_first(folder), []
    if not files:
        raise FileNotFoundError(f"there is no checkpoint of vijax.fit in {folder}.")
    for path in files:
        try:
            found = container.read(path)
        except container.DamagedError as problem:
            problems.append(problem)
            continue
        if problems:
            warnings.warn(f"{problems[0]} Going on from {path}.", stacklevel=3)
        return path, found
    raise container.DamagedError(
        f"no checkpoint in {folder} is whole: {problems[0]} Remove them to start anew."
    )


def pieces(result: FitResult, run: Mapping[str, Any]) -> Iterator[Any]:
    """What is written of a result: first all that is small, then the leaves of the carry.

    Args:
      run: what else belongs to it, see `keeping`.
    """
    leaves = jax.tree.leaves(result.carry)
    yield {
        "algorithm": result.algorithm.name,
        "num_data": result.algorithm.num_data,
        "generator": str(jax.random.key_impl(result.key)),
        "key": np.asarray(jax.random.key_data(result.key)),
        "interrupted": result.interrupted,
        "history": result.history._asdict(),
        "leaves": shapes(leaves),
        "run": dict(run),
    }
    yield from map(_piece, leaves)


def unpacked(
    path: pathlib.Path, found: Sequence[Any], algorithm: Algorithm, like: Carry
) -> FitResult:
    """The result that a file holds; its leaves go to where those of `like` are, tables on the host
    into theirs.
    """
    told, wanted = found[0], jax.tree.leaves(like)
    if told["leaves"] != shapes(wanted):
        raise ValueError(
            f"the state in {path} has shapes {told['leaves']}, other than those of this algorithm "
            f"with these params, {shapes(wanted)}. Build model, guide and optimiser as they were "
            "then."
        )
    hosted = {id(table.words) for table in tables_of(like) if table.place is not None}
    leaves = [
        _on_host(piece, one) if id(one) in hosted else _placed(piece, one)
        for piece, one in zip(found[1:], wanted, strict=True)
    ]
    return FitResult(
        algorithm=algorithm,
        key=jax.random.wrap_key_data(told["key"], impl=told["generator"]),
        carry=stamped(jax.tree.unflatten(jax.tree.structure(like), leaves)),
        history=History(**told["history"]),
        interrupted=told["interrupted"],
    )


def _piece(leaf: Array) -> Any:
    """A leaf as it is written: its numbers; with a key, those of what kind."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.device_get(leaf))
    numbers = np.asarray(jax.device_get(jax.random.key_data(leaf)))
    return {"generator": str(jax.random.key_impl(leaf)), "key": numbers}


def _placed(piece: Any, like: Any) -> Array:
    """A leaf from its piece, on the devices of `like` if somebody chose them."""
    if isinstance(piece, dict):
        piece = jax.random.wrap_key_data(piece["key"], impl=piece["generator"])
    return jax.device_put(piece, like.sharding if getattr(like, "committed", False) else None)


def _on_host(piece: np.ndarray, like: Any) -> np.ndarray:
    """A table's words, in those of `like` if they are there."""
    if not isinstance(like, np.ndarray):
        return piece
    like[:] = piece
    return like


def shapes(tree: PyTree) -> list[str]:
    """Type and shape of every leaf."""
    return [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(tree)]
