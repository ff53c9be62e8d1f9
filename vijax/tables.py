"""Splitting a pytree into its table leaves (one row per datum) and the rest, and reading and writing rows."""

import jax

from vijax.types import Array, PyTree


def split(mask: PyTree, tree: PyTree) -> tuple[PyTree, PyTree]:
    """(tables, rest): `tree` twice, with None where the bool `mask` (same structure) is False, respectively True."""
    tables = jax.tree.map(lambda is_table, leaf: leaf if is_table else None, mask, tree)
    rest = jax.tree.map(lambda is_table, leaf: None if is_table else leaf, mask, tree)
    return tables, rest


def join(first: PyTree, second: PyTree) -> PyTree:
    """The inverse of `split`: the leaf that is not None."""
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=lambda leaf: leaf is None)


def gather(tables: PyTree, index: Array) -> PyTree:
    """Rows `index` [B] of every leaf [N, ...]."""
    return jax.tree.map(lambda leaf: leaf[index], tables)


def scatter(tables: PyTree, index: Array, rows: PyTree) -> PyTree:
    """Every leaf [N, ...] with rows `index` [B] replaced."""
    return jax.tree.map(lambda leaf, row: leaf.at[index].set(row), tables, rows)
