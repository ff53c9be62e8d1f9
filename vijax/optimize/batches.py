"""Where the data of a chunk of steps come from: the device, the host's memory or a file, or an
iterator.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vijax.host import rows_of
from vijax.optimize.feed import Chunk, Take
from vijax.optimize.iterators import from_iterator
from vijax.optimize.loop import Program
from vijax.optimize.minibatch import rows_of_step
from vijax.shapes import check_data
from vijax.types import Array, Key, PyTree

CHUNK_BYTES = 2**28  # moved at once; twice as much is in memory, for the next chunk

Drawn = Callable[[int, int], np.ndarray]
"""(first step, steps) -> [steps, B] their rows, on the host."""


def steps_at_once(tree: PyTree, batch_size: int, most: int) -> int:
    """Steps of a chunk, up to `most`, whose rows of the numpy arrays in a tree take no more than
    `CHUNK_BYTES`.
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, np.ndarray)]
    row = sum(leaf.nbytes // max(1, leaf.shape[0]) for leaf in arrays)
    return max(1, min(most, CHUNK_BYTES // max(1, batch_size * row)))


def source(key: Key, data: PyTree, program: Program, *, rows: bool) -> Take:
    """Where the chunks of a run come from.

    Args:
      data: of `fit`, on the device unless the program's come stacked.
      rows: are the steps' rows asked for on the host?
    """
    algorithm, chunk_size = program.algorithm, program.chunk_size
    if isinstance(data, Iterator):
        return from_iterator(data, algorithm, chunk_size)
    index = None
    if program.batch_size is not None and (rows or program.stacked):
        index = drawn(key, algorithm.num_data, program.batch_size, chunk_size)
    if index is not None and program.stacked:
        return from_host(data, index, algorithm.check, chunk_size)
    return lambda first, size: Chunk(data, size, None if index is None else index(first, size))


def drawn(key: Key, num_data: int, batch_size: int, chunk_size: int) -> Drawn:
    """The rows that the steps of a chunk draw on the device. Those of the next chunk are asked for
    at once, before the device is busy with this one's steps.
    """
    ahead: dict[int, Array] = {}

    def start(first: int) -> Array:
        number = jax.device_put(np.int32(first))
        return _rows(key, number, num_data=num_data, batch_size=batch_size, chunk_size=chunk_size)

    def rows(first: int, size: int) -> np.ndarray:
        found = ahead.pop(first) if first in ahead else start(first)
        ahead.clear()
        ahead[first + size] = start(first + size)
        return np.asarray(jax.device_get(found))[:size]

    return rows


@functools.partial(jax.jit, static_argnames=("num_data", "batch_size", "chunk_size"))
def _rows(key: Key, first: Array, *, num_data: int, batch_size: int, chunk_size: int) -> Array:
    one = functools.partial(rows_of_step, num_data=num_data, batch_size=batch_size)
    return jax.vmap(lambda step: one(key, step))(first + jnp.arange(chunk_size, dtype=first.dtype))


def from_host(
    data: PyTree, rows: Drawn, check: Callable[[PyTree], None] | None, chunk_size: int
) -> Take:
    """The drawn rows alone, stacked [chunk_size, B, ...] and put on the device."""
    data = jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf), data
    )

    def take(first: int, size: int) -> Chunk:
        index = rows(first, size)
        flat = index.reshape(-1)

        def gather(leaf: np.ndarray) -> np.ndarray:
            native = leaf.dtype.newbyteorder("=")
            stacked = np.zeros((chunk_size * index.shape[1], *leaf.shape[1:]), native)
            if isinstance(leaf, np.memmap):  # a file is read from its beginning to its end
                order = np.argsort(flat)
                stacked[order] = rows_of(leaf, flat[order])
            else:
                stacked[: flat.size] = rows_of(leaf, flat)
            return stacked

        x = jax.tree.map(gather, data)
        check_data(check, jax.tree.map(lambda leaf: leaf[: index.size], x))
        stacked = jax.tree.map(lambda leaf: leaf.reshape(chunk_size, -1, *leaf.shape[1:]), x)
        return Chunk(jax.device_put(stacked), size, index)

    return take
