"""Minibatches: drawn without replacement in O(batch), by a keyed bijection of [0, N), or taken from
an iterator.
"""

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.inference import Algorithm
from vijax.shapes import check_batch, check_data
from vijax.types import Array, Batch, Key, PyTree

ROUNDS = 8
SMALL = 256  # up to here every permutation is equally likely; a network of so few states is uneven


def steps_per_epoch(num_data: int, batch_size: int) -> int:
    """Minibatches that visit every datum at least once."""
    return -(-num_data // batch_size)


def batch_index(key: Key, step: Array, *, num_data: int, batch_size: int) -> Array:
    """[B] distinct rows for optimisation step `step`; a pure function of (key, step).

    Each epoch is a fresh pseudo-random permutation cut into batches. Where B does not divide N, the
    last batch reaches back into the previous one so that it is full: every batch is a uniform
    sample without replacement, hence unbiased, and every datum is visited in every epoch.

    Args:
      key: the same for the whole run.
      step: [] int.
    """
    per_epoch = steps_per_epoch(num_data, batch_size)
    epoch, turn = step // per_epoch, step % per_epoch
    start = jnp.minimum(turn * batch_size, num_data - batch_size)
    return permute(jax.random.fold_in(key, epoch), start + jnp.arange(batch_size), num_data)


def permute(key: Key, position: Array, num_data: int) -> Array:
    """A keyed bijection of [0, num_data), elementwise on integer positions.

    An alternating Feistel network on Z_a x Z_b with a b slightly above N (Black and Rogaway 2002),
    cycle-walking the few positions that land outside.
    """
    if num_data < 2:
        return position
    if num_data <= SMALL:
        return jax.random.permutation(key, num_data).astype(position.dtype)[position]
    a = math.isqrt(num_data - 1) + 1
    b = -(-num_data // a)
    keys = jax.random.bits(key, (ROUNDS,), dtype=jnp.uint32)

    def once(position: Array) -> Array:
        left, right = position // b, position % b
        for i in range(0, ROUNDS, 2):
            left = _add(left, right, keys[i], a)
            right = _add(right, left, keys[i + 1], b)
        return left * b + right

    def walk(position: Array) -> Array:
        return jnp.where(position >= num_data, once(position), position)

    start = once(position.astype(jnp.uint32))
    inside = jax.lax.while_loop(lambda p: jnp.any(p >= num_data), walk, start)
    return inside.astype(position.dtype)


def _add(value: Array, other: Array, key: Array, size: int) -> Array:
    """(value + hash(other, key)) mod size, without an integer division."""
    mixed = other + key
    mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x7FEB352D)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x846CA68B)
    mixed = mixed ^ (mixed >> 16)
    moved = value + ((mixed >> 16) * jnp.uint32(size) >> 16)
    return jnp.where(moved >= size, moved - size, moved)


def next_batches(
    data: Iterator[Batch], size: int, chunk_size: int, algorithm: Algorithm
) -> tuple[PyTree, int]:
    """Up to `size` batches stacked and padded to chunk_size, so that a short tail does not
    recompile; and how many.
    """
    batches = list(itertools.islice(data, size))
    shapes = {tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch)) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f"the iterator yields batches of different shapes, {sorted(shapes)}: cut or pad them "
            "to one size."
        )
    for batch in batches:
        check_batch(batch, algorithm.num_data)
        check_data(algorithm.check, batch.x)
    if not batches:
        return (), 0
    padded = batches + [batches[-1]] * (chunk_size - len(batches))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *padded), len(batches)


class Visited(NamedTuple):
    """What an iterator has yielded so far.

    Attributes:
      rows: how many, repetitions counted.
      highest: the largest row number.
    """

    rows: int = 0
    highest: int = -1


def visit(visited: Visited, stacked: PyTree, size: int) -> Visited:
    """With `size` more batches, those of `next_batches`."""
    if size == 0:
        return visited
    index = stacked.index[:size]
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
