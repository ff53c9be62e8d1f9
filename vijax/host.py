"""Arrays that stay in the host's memory or in a file and reach the device by rows: which ones do,
and where tables are put. Nothing here knows a loop.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from vijax.types import PyTree

BLOCK_ROWS = 2**16


class OnHost(np.ndarray):
    """A numpy array that `fit` leaves where it is, as it does a `np.memmap`."""


def on_host(data: PyTree) -> PyTree:
    """The same arrays, marked to stay in the host's memory: of data that are larger than the
    device's, `fit` moves the rows of its batches alone, those of the next chunk while it computes
    the present one. The batches, the noise and the result are those of data on the device.

    A `np.memmap` (`np.load(path, mmap_mode="r")`) needs no mark, and is never read whole.
    """
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, np.memmap) else np.asarray(leaf).view(OnHost), data
    )


def stays(leaf: Any) -> bool:
    """Is it an array that is not to be moved whole?"""
    return isinstance(leaf, OnHost | np.memmap)


def rows_of(array: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Those rows [B] of an array [N, ...], copied."""
    # `take` is up to eight times as quick, but copies arrays whole that are no plain memory.
    plain = array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative
    return np.take(array, index, axis=0) if plain else np.asarray(array[index])


class Place(NamedTuple):
    """Where a table lives that is not on the device.

    Attributes:
      path: of its file; None: in memory.
    """

    path: str | None = None


def by_blocks(fun: Callable[..., PyTree], tree: PyTree, *args: Any, out: PyTree = None) -> PyTree:
    """`fun(tree, *args)`, numpy leaves [N, ...], for a compiled `fun` that treats every row of
    leaves [N, ...] alone: a block of rows at a time passes the device.

    Args:
      out: numpy leaves to write to; None: new ones.
    """
    tree = jax.tree.map(np.asarray, tree)
    num_rows = jax.tree.leaves(tree)[0].shape[0]
    size = min(BLOCK_ROWS, num_rows)
    for begin in range(0, num_rows, size):
        # The last block reaches back, so that one shape is compiled.
        rows = slice(min(begin, num_rows - size), min(begin, num_rows - size) + size)
        block = jax.device_put(jax.tree.map(lambda leaf, rows=rows: leaf[rows], tree))
        made = jax.device_get(fun(block, *args))
        if out is None:
            out = jax.tree.map(lambda leaf: np.empty((num_rows, *leaf.shape[1:]), leaf.dtype), made)
        jax.tree.map(lambda whole, part, rows=rows: whole.__setitem__(rows, part), out, made)
    return out


def table_at(place: Place, shape: tuple[int, ...], fill: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Words [N, W] in that place, filled by `fill(words)`. A file is a .npy of N + 1 rows, the last
    of which is its stamp; see `stamp`.

    Raises:
      OSError: if there is no room for it: all of it is reserved here.
    """
    num_rows, width = shape
    if place.path is None:
        words = np.empty(shape, np.uint32)
        fill(words)
        return words
    try:
        whole = np.lib.format.open_memmap(
            place.path, mode="w+", dtype=np.uint32, shape=(num_rows + 1, width)
        )
        if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a signal later
            with open(place.path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, whole.offset + whole.nbytes)
        fill(whole[:-1])
    except BaseException:
        if os.path.exists(place.path):
            os.remove(place.path)
        raise
    stamp(whole[:-1], 0)
    return whole[:-1]


def make_way(place: Place, shape: tuple[int, ...], *, over: bool) -> None:
    """Let the file of a table be made in that place.

    Args:
      over: may one of the same shape be deleted?

    Raises:
      ValueError: if there is another.
    """
    num_rows, width = shape
    if place.path is None or not os.path.exists(place.path):
        return
    try:
        found = np.load(place.path, mmap_mode="r")
        same = found.dtype == np.uint32 and found.shape == (num_rows + 1, width)
    except (ValueError, OSError, EOFError):  # no .npy, or one that was cut
        same = False
    if not (over and same):
        what = "" if same else f", and is not one of {num_rows} rows of {width} words"
        raise ValueError(
            f"the table's file {place.path} exists{what}. It may be the table of another run: "
            "resume that one, delete the file, or give another path."
        )
    os.remove(place.path)


def stamp(words: Any, step: int | None) -> None:
    """Note in a table's file of which step it is; None: it is being written."""
    last = _last_row(words)
    if last is not None:
        last[:] = 0 if step is None else step + 1


def check_stamp(words: Any, step: int) -> None:
    """Refuse a table whose file is not of that step."""
    last = _last_row(words)
    found = step if last is None else int(last[0]) - 1
    if found != step:
        what = "was left in the middle of a write" if found < 0 else f"went on to step {found}"
        raise ValueError(
            f"the table's file {getattr(words, 'filename', None)} {what}, but the result is of "
            f"step {step}: a file holds one state alone. Use the run's last result, or a saved one "
            "(vijax.save)."
        )


def _last_row(words: Any) -> np.ndarray | None:
    """The stamp of a table that is a file's."""
    whole = words.base
    return whole[-1] if isinstance(words, np.memmap) and isinstance(whole, np.memmap) else None
