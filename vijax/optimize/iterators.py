"""Batches from an iterator, stacked for a chunk of steps."""

import copy
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from vijax.inference import Algorithm
from vijax.optimize.feed import Chunk, Take
from vijax.shapes import check_batch, check_data
from vijax.types import Batch


def from_iterator(data: Iterator[Batch], algorithm: Algorithm, chunk_size: int) -> Take:
    """As many of the next batches as have one size, stacked and put on the device. One of another
    size (the last of an epoch) waits for the next chunk, as does an error for what came before it.
    """
    waiting: list[tuple[Batch | Exception, Any]] = []
    kinds: set[str] = set()

    def place() -> Any:
        tell = getattr(data, "get_state", None)
        return None if tell is None else copy.deepcopy(tell())

    def read() -> Batch | None:
        batch = next(data, None)
        if batch is not None:
            check_batch(batch, algorithm.num_data)
            check_data(algorithm.check, batch.x)
            kinds.add(_kind(batch))
            if len(kinds) > 1:
                raise ValueError(
                    f"the iterator yields batches of different shapes, {' and '.join(kinds)}: only "
                    "their number of rows may change, as in the last batch of an epoch."
                )
        return batch

    def pull() -> tuple[Batch | Exception | None, Any]:
        """The next batch, or the error that came in its stead, and the place before it."""
        if waiting:
            return waiting.pop()
        before = place()
        try:
            return read(), before
        except Exception as error:
            return error, before

    def take(first: int, size: int) -> Chunk:
        batches: list[Batch] = []
        cut = False
        while len(batches) < size and not cut:
            batch, before = pull()
            if batch is None:
                break
            if isinstance(batch, Exception) and not batches:
                raise batch
            cut = isinstance(batch, Exception) or (
                len(batches) > 0 and len(batch.index) != len(batches[0].index)
            )
            if isinstance(batch, Exception) or cut:
                waiting.append((batch, before))
            else:
                batches.append(batch)
        if not batches:
            return Chunk((), 0)
        # A cut comes in every epoch and may come early; a tail once, and should not recompile.
        length = min(chunk_size, 2 ** (len(batches) - 1).bit_length()) if cut else chunk_size
        stacked = _stacked(batches, length)
        where = waiting[0][1] if waiting else place()
        return Chunk(
            jax.device_put(stacked), len(batches), np.asarray(stacked.index)[: len(batches)], where
        )

    return take


def _kind(batch: Batch) -> str:
    """What batches that are stacked have in common: all but their number of rows."""
    return str(
        jax.tree.map(
            lambda leaf: f"{leaf.dtype}[B{''.join(f', {n}' for n in leaf.shape[1:])}]", batch
        )
    )


def _stacked(batches: list[Batch], length: int) -> Batch:
    """Leaves [length, B, ...], zeros at the end where there are fewer batches."""

    def stack(*leaves: Any) -> np.ndarray:
        whole = np.zeros((length, *leaves[0].shape), leaves[0].dtype)
        for number, leaf in enumerate(jax.device_get(leaves)):
            whole[number] = leaf
        return whole

    return jax.tree.map(stack, *batches)


class Visited(NamedTuple):
    """What an iterator has yielded so far.

    Attributes:
      rows: how many, repetitions counted.
      highest: the largest row number.
    """

    rows: int = 0
    highest: int = -1


def visit(visited: Visited, index: np.ndarray | None) -> Visited:
    """With more batches of those rows."""
    if index is None:
        return visited
    return Visited(visited.rows + index.size, max(visited.highest, int(index.max())))


def warn_of_unvisited(visited: Visited, num_data: int) -> None:
    """After two epochs' worth of rows the last ones must have come."""
    if visited.rows >= 2 * num_data and visited.highest < num_data - 1:
        warnings.warn(
            f"fit: the iterator yielded {visited.rows} rows, none above {visited.highest}, but the "
            f"estimator was built for num_data={num_data}: is that too large? The bound's "
            "likelihood is scaled by num_data / batch size.",
            stacklevel=3,
        )
