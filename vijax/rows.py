"""Rows of tables, the leaves of params with one row per datum: telling them from the rest, taking
those of a batch, and keeping them packed.

Packed, everything that belongs to a datum (its row of every table and of their optimiser state)
lies side by side as words of 32 bits: a step reads and writes one contiguous stretch of memory per
datum, whatever the number of leaves.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from vijax.host import Place, by_blocks, table_at
from vijax.types import Array, Batch, PyTree, Scalar


class Rows(NamedTuple):
    """A view of phi in which every table holds the batch's rows alone, [B, ...]."""

    phi: PyTree


class Lam(NamedTuple):
    """q's own parameters in the place of phi: {"w": lam}, {"z": lam of leaves [B, ...]}, or both.

    The gradient of an estimate there is per datum, and free of an encoder's weights.
    """

    lam: PyTree


def stored(phi: PyTree) -> PyTree:
    """Phi as a tree of the guide's own structure, out of either view that has it."""
    return phi.phi if isinstance(phi, Rows) else phi


def scale(num_data: int, batch: Batch) -> float:
    """N / B: the one factor between a minibatch's sum and that of the whole data set."""
    return num_data / batch.index.shape[0]


def weight(num_data: int, batch: Batch) -> Scalar | float:
    """`scale`, or NaN if a row of the batch is not one of [0, N): what is multiplied by it says so,
    where the indexing of an array would take another row without a word.
    """
    inside = (batch.index >= 0) & (batch.index < num_data)
    return jnp.where(jnp.all(inside), scale(num_data, batch), jnp.nan)


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


def check_tables(tables: PyTree, num_data: int) -> None:
    """Refuse tables of another size than the data, whose rows would be other data's.

    Raises:
      ValueError: if a leaf has not num_data rows.
    """
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(tables)}
    if sizes - {num_data}:
        raise ValueError(
            f"params.phi has tables of {sorted(sizes)} rows, but the guide was built for "
            f"num_data={num_data}: make them by estimator.init_params(key)."
        )


def gather(mask: PyTree, tree: PyTree, index: Array) -> PyTree:
    """The tree with rows `index` [B] of every leaf [N, ...] that `mask` says is a table."""
    return jax.tree.map(lambda is_table, leaf: leaf[index] if is_table else leaf, mask, tree)


def scatter(mask: PyTree, tree: PyTree, index: Array, rows: PyTree) -> PyTree:
    """The tree with those rows of its tables replaced by the ones of `rows`; all else is theirs."""
    return jax.tree.map(
        lambda is_table, leaf, new: leaf.at[index].set(new) if is_table else new, mask, tree, rows
    )


class Layout(NamedTuple):
    """How a tree of leaves [N, ...] is packed; hashable.

    Attributes:
      tree: a treedef.
      shapes: of one row of each leaf.
    """

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]


@struct.dataclass
class Packed:
    """A tree of leaves [N, ...] as words [N, W], and how to take it apart again.

    Attributes:
      words: numpy's, of a table that is not on the device.
      ids: [M] which rows of the table `words` [M, W] holds, ascending; None: all.
      place: where the table lives if it is not on the device; its rows come and go by chunks.
    """

    words: Any
    layout: Layout = struct.field(pytree_node=False)
    ids: Array | None = None
    place: Place | None = struct.field(pytree_node=False, default=None)


def pack(tree: PyTree) -> Packed:
    """Leaves [N, ...] -> words [N, W], bit for bit."""
    leaves, structure = jax.tree.flatten(tree)
    layout = Layout(
        structure,
        tuple(leaf.shape[1:] for leaf in leaves),
        tuple(np.dtype(leaf.dtype) for leaf in leaves),
    )
    words = [_words(leaf.reshape(leaf.shape[0], -1)) for leaf in leaves]
    return Packed(jnp.concatenate(words, axis=1), layout)


def pack_at(make: Callable[[PyTree], PyTree], tables: PyTree, place: Place | None) -> Packed:
    """`pack(make(tables))`, for a `make` that treats every row alone, in that place (None: on the
    device), by blocks of rows if it is on the host. Traced, it has the shapes alone.
    """

    def packed(tables: PyTree) -> Packed:
        return dataclasses.replace(pack(make(tables)), place=place)

    if place is None or any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tables)):
        return packed(tables)
    like = jax.eval_shape(packed, tables)
    made = functools.partial(_words_of, make=make)
    return dataclasses.replace(
        like,
        words=table_at(place, like.words.shape, lambda words: by_blocks(made, tables, out=words)),
    )


@functools.partial(jax.jit, static_argnames="make")
def _words_of(tables: PyTree, *, make: Callable[[PyTree], PyTree]) -> Array:
    return pack(make(tables)).words


def unpack_at(make: Callable[..., PyTree], packed: Packed, *args: Any) -> PyTree:
    """`make(packed, *args)`, of all rows: by blocks, and as numpy leaves, of a table on the host.

    Raises:
      ValueError: if only some of the rows are there, in the midst of a chunk.
    """
    if packed.ids is not None:
        raise ValueError(
            "params: of a table on the host, only the rows of some batches are on the device while "
            "steps run, so nothing there can be made of all parameters, such as their average. "
            "Leave averaging out, or rowwise.on_host."
        )
    if isinstance(packed.words, np.ndarray):
        return by_blocks(jax.jit(make), packed, *args)
    return make(packed, *args)


def take(packed: Packed, index: Array) -> Packed:
    """Those rows of the table alone, words [B, W]."""
    return Packed(packed.words[_slots(packed, index)], packed.layout)


def put(packed: Packed, index: Array, words: Array) -> Packed:
    """The table with the words [B, W] of those rows replaced."""
    return dataclasses.replace(packed, words=packed.words.at[_slots(packed, index)].set(words))


def _slots(packed: Packed, index: Array) -> Array:
    return index if packed.ids is None else jnp.searchsorted(packed.ids, index)


def unpack(packed: Packed) -> PyTree:
    """The inverse of `pack`, of all rows or of some: words [B, W] -> leaves [B, ...]."""
    words, layout = packed.words, packed.layout
    kinds = list(zip(layout.shapes, layout.dtypes, strict=True))
    sizes = [int(np.prod(shape)) * max(1, dtype.itemsize // 4) for shape, dtype in kinds]
    parts = jnp.split(words, np.cumsum(sizes)[:-1], axis=1)
    leaves = [
        _numbers(part, dtype).reshape(words.shape[0], *shape)
        for part, (shape, dtype) in zip(parts, kinds, strict=True)
    ]
    return jax.tree.unflatten(layout.tree, leaves)


def _words(numbers: Array) -> Array:
    """[N, n] of any number type -> [N, W] uint32."""
    size = numbers.dtype.itemsize
    if size >= 4:
        words = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
        return words.reshape(numbers.shape[0], -1)
    small = jnp.uint16 if size == 2 else jnp.uint8
    return jax.lax.bitcast_convert_type(numbers, small).astype(jnp.uint32)


def _numbers(words: Array, dtype: np.dtype) -> Array:
    if dtype.itemsize >= 4:
        per_number = dtype.itemsize // 4
        grouped = words if per_number == 1 else words.reshape(words.shape[0], -1, per_number)
        return jax.lax.bitcast_convert_type(grouped, dtype)
    small = jnp.uint16 if dtype.itemsize == 2 else jnp.uint8
    return jax.lax.bitcast_convert_type(words.astype(small), dtype)
