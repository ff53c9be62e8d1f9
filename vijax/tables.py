"""Tables, the leaves of params with one row per datum: telling them from the rest, and keeping
their rows packed.

Packed, everything that belongs to a datum (its row of every table and of their optimiser state)
lies side by side as words of 32 bits: a step reads and writes one contiguous stretch of memory per
datum, whatever the number of leaves.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.types import Array, PyTree


class Layout(NamedTuple):
    """How a tree of leaves [N, ...] is packed; hashable.

    Attributes:
      tree: a treedef
      shapes: of one row of each leaf
    """

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]


def split(mask: PyTree, tree: PyTree) -> tuple[PyTree, PyTree]:
    """(tables, rest): `tree` twice, with None where the bool `mask` (same structure) is False,
    respectively True.
    """
    tables = jax.tree.map(lambda is_table, leaf: leaf if is_table else None, mask, tree)
    rest = jax.tree.map(lambda is_table, leaf: None if is_table else leaf, mask, tree)
    return tables, rest


def join(first: PyTree, second: PyTree) -> PyTree:
    """The inverse of `split`: the leaf that is not None."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None
    )


def gather(tables: PyTree, index: Array) -> PyTree:
    """Rows `index` [B] of every leaf [N, ...]."""
    return jax.tree.map(lambda leaf: leaf[index], tables)


def layout(tree: PyTree) -> Layout:
    """The layout of a tree whose leaves are arrays or shapes [N, ...]."""
    leaves, structure = jax.tree.flatten(tree)
    return Layout(
        structure,
        tuple(leaf.shape[1:] for leaf in leaves),
        tuple(np.dtype(leaf.dtype) for leaf in leaves),
    )


def pack(tree: PyTree) -> Array:
    """Leaves [N, ...] -> words [N, W], bit for bit."""
    return jnp.concatenate(
        [_words(leaf.reshape(leaf.shape[0], -1)) for leaf in jax.tree.leaves(tree)], axis=1
    )


def unpack(words: Array, layout: Layout) -> PyTree:
    """The inverse of `pack`, of all rows or of some: words [B, W] -> leaves [B, ...]."""
    sizes = [
        int(np.prod(s)) * max(1, d.itemsize // 4)
        for s, d in zip(layout.shapes, layout.dtypes, strict=True)
    ]
    parts = jnp.split(words, np.cumsum(sizes)[:-1], axis=1)
    leaves = [
        _numbers(part, dtype).reshape(words.shape[0], *shape)
        for part, shape, dtype in zip(parts, layout.shapes, layout.dtypes, strict=True)
    ]
    return jax.tree.unflatten(layout.tree, leaves)


def _words(numbers: Array) -> Array:
    """[N, n] of any number type -> [N, W] uint32."""
    size = numbers.dtype.itemsize
    if size >= 4:
        return jax.lax.bitcast_convert_type(numbers, jnp.uint32).reshape(numbers.shape[0], -1)
    return jax.lax.bitcast_convert_type(numbers, jnp.uint16 if size == 2 else jnp.uint8).astype(
        jnp.uint32
    )


def _numbers(words: Array, dtype: np.dtype) -> Array:
    if dtype.itemsize >= 4:
        pairs = (
            words if dtype.itemsize == 4 else words.reshape(words.shape[0], -1, dtype.itemsize // 4)
        )
        return jax.lax.bitcast_convert_type(pairs, dtype)
    return jax.lax.bitcast_convert_type(
        words.astype(jnp.uint16 if dtype.itemsize == 2 else jnp.uint8), dtype
    )
