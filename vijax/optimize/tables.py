"""Tables on the host: the rows that a chunk of steps touches go to the device before it, and back
after it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vijax.host import Place, check_stamp, make_way, rows_of, stamp, table_at
from vijax.inference import Algorithm
from vijax.optimize.loop import Carry, fresh_copy, start
from vijax.optimize.loop import params_of as device_params_of
from vijax.rows import Packed
from vijax.types import Key, Params, PyTree

NO_ROW = np.iinfo(np.int32).max  # ascends after every row


def is_table(node: Any) -> bool:
    """Is it a packed table, wherever it lives?"""
    return isinstance(node, Packed)


def tables_of(tree: PyTree) -> list[Packed]:
    """The packed tables in a state."""
    return list(filter(is_table, jax.tree.leaves(tree, is_leaf=is_table)))


def on_host(tree: PyTree) -> bool:
    """Has it a table that is not on the device?"""
    return any(table.place is not None for table in tables_of(tree))


def begin(key: Key, params: Params, algorithm: Algorithm, *, over: bool) -> Carry:
    """The carry before the first step, its tables where they belong.

    Args:
      over: may a file of the same shape be written over?
    """
    like = start.eval_shape(key, params, algorithm=algorithm)
    if not on_host(like):
        return start(key, params, algorithm=algorithm)
    for table in tables_of(like):
        if table.place is not None:
            make_way(table.place, table.words.shape, over=over)
    zero = jnp.zeros((), jnp.int32)
    return _apart(Carry(algorithm.init(key, params), zero, zero - 1, zero), _strong)


def copied(carry: Carry, algorithm: Algorithm) -> Carry:
    """A copy that may be consumed, its tables where the algorithm wants them. One that is in its
    file already is gone on with there; of others a file of the same shape is written over.
    """
    if not tables_of(carry):
        return fresh_copy(carry)
    params = jax.eval_shape(algorithm.params, carry.state)
    like = jax.eval_shape(lambda params: algorithm.init(jax.random.key(0), params), params)
    if not on_host(carry) and not on_host(like):
        return fresh_copy(carry)
    places = iter([table.place for table in tables_of(like)])
    step = int(carry.step)
    return _apart(carry, fresh_copy, lambda table: _moved(table, next(places), step))


def _moved(table: Packed, place: Place | None, step: int) -> Packed:
    """A copy of the table in that place."""
    words = table.words
    if place is None:
        return dataclasses.replace(table, words=jnp.copy(jax.device_put(words)), place=None)
    if place.path is not None and getattr(words, "filename", None) == place.path:
        check_stamp(words, step)
        return dataclasses.replace(table, place=place)
    make_way(place, words.shape, over=True)
    found = np.asarray(jax.device_get(words))
    new = table_at(place, words.shape, lambda whole: np.copyto(whole, found))
    stamp(new, step)
    return dataclasses.replace(table, words=new, place=place)


def entered(carry: Carry, index: np.ndarray | None, chunk_size: int) -> Carry:
    """The carry whose tables on the host are replaced by those of their rows, on the device, that
    the steps of a chunk touch: `index` [size, B].
    """

    def enter(table: Packed) -> Packed:
        if table.place is None or index is None:
            return table
        ids = np.sort(index, axis=None)
        ids = ids[np.diff(ids, prepend=-1) > 0]
        num_rows, width = table.words.shape
        # As many as there can be, so that nothing recompiles
        size = min(num_rows, chunk_size * index.shape[-1])
        slots, words = np.full(size, NO_ROW, np.int32), np.zeros((size, width), np.uint32)
        slots[: ids.size], words[: ids.size] = ids, rows_of(table.words, ids)
        slots, words = jax.device_put((slots, words))
        return dataclasses.replace(table, words=words, ids=slots)

    return _apart(carry, lambda rest: rest, enter)


def left(carry: Carry, before: Carry) -> Carry:
    """The carry after a chunk, its tables' rows written back to those of `before`, on the host."""
    wholes, step = iter(tables_of(before)), int(carry.step)

    def leave(table: Packed) -> Packed:
        whole = next(wholes)
        if whole.place is None:
            return table
        ids, words = jax.device_get((table.ids, table.words))
        real = ids < NO_ROW
        stamp(whole.words, None)
        whole.words[ids[real]] = words[real]
        stamp(whole.words, step)
        return whole

    return _apart(carry, lambda rest: rest, leave)


def stamped(carry: Carry) -> Carry:
    """The carry, its files marked as those of its step."""
    for table in tables_of(carry):
        if table.place is not None:
            stamp(table.words, int(carry.step))
    return carry


def params_of(carry: Carry, algorithm: Algorithm) -> Params:
    """The parameters, ready for use, which further steps leave alone; tables on the host as
    numpy's.
    """
    if not on_host(carry.state):
        return device_params_of(carry.state, algorithm=algorithm)
    for table in tables_of(carry):
        check_stamp(table.words, int(carry.step))
    params = algorithm.params(carry.state)
    return jax.tree.map(
        lambda leaf: leaf if isinstance(leaf, np.ndarray) else jnp.copy(leaf), params
    )


def _apart(
    carry: Carry,
    rest: Callable[[Carry], Carry],
    table: Callable[[Packed], Packed] = lambda table: table,
) -> Carry:
    """The carry after `rest` of everything but its tables, and `table` of each of those."""
    tables = iter([table(one) for one in tables_of(carry)])
    hollow = jax.tree.map(
        lambda node: dataclasses.replace(node, words=None, ids=None) if is_table(node) else node,
        carry,
        is_leaf=is_table,
    )
    return jax.tree.map(
        lambda node: next(tables) if is_table(node) else node, rest(hollow), is_leaf=is_table
    )


@jax.jit
def _strong(carry: Carry) -> Carry:
    """Copies of strong types, as steps return them."""
    return jax.tree.map(
        lambda leaf: jax.lax.convert_element_type(jnp.copy(leaf), jnp.result_type(leaf)), carry
    )
