"""Shape checks at the door, for mistakes that broadcasting would hide."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vijax.types import Batch, PyTree, Scalar


def one_number(value: Any, what: str) -> Any:
    """The value, if it is a scalar. A forgotten sum would silently weigh the log-density against
    log q by 1 / size.
    """
    if not hasattr(value, "shape") and not isinstance(value, int | float):
        raise ValueError(
            f"{what} returned a {type(value).__name__} for one sample of one datum, but it must be "
            "one number, or for a log-density a dict {name: number} of the terms whose sum it is. "
            "Write return log_p."
        )
    if jnp.shape(value) != ():
        raise ValueError(
            f"{what} returned shape {jnp.shape(value)} for one sample of one datum, but it must be "
            "one number: sum over dimensions, as in jnp.sum(...)."
        )
    return value


def total_and_terms(value: Any, what: str) -> tuple[Scalar, dict[str, Scalar]]:
    """(total, terms by name) of a log-density that is one number, which has no terms, or a dict
    {name: term} of its terms.
    """
    if not isinstance(value, Mapping):
        return one_number(value, what), {}
    terms = {name: one_number(term, f"term {name!r} of {what}") for name, term in value.items()}
    return sum(terms.values(), jnp.zeros(())), terms


def add_terms(some: Mapping[str, Scalar], more: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Both together; terms of one name are added."""
    return {
        **some,
        **{name: some[name] + term if name in some else term for name, term in more.items()},
    }


def same_shapes(tree: PyTree, like: PyTree, what: str) -> None:
    """Refuse a tree whose structure or leaf shapes differ: a batch where one is meant, a misnamed
    or misshapen leaf.
    """
    given, wanted = jax.tree.map(jnp.shape, tree), jax.tree.map(jnp.shape, like)
    if jax.tree.structure(tree) != jax.tree.structure(like) or given != wanted:
        raise ValueError(
            f"{what} has shapes {given}, but {wanted} is needed. These functions are for one "
            f"datum; for a batch, vmap them."
        )


def as_batch(batch: Any) -> Batch:
    """The batch, if it is one."""
    if not isinstance(batch, Batch):
        raise TypeError(
            f"expected a Batch of data and their row numbers, got {type(batch).__name__}: write "
            "vijax.Batch(x, jnp.arange(N)) for a whole data set x."
        )
    return batch


def check_batch(batch: Any, num_data: int | None = None) -> None:
    """Refuse what is no batch, an empty one, and one whose leaves differ in their leading axis; of
    N = `num_data` rows also more than N, a row twice, and one that does not exist. Rows that are
    traced are not seen here: `rows.weight` makes the estimate NaN.
    """
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(as_batch(batch))}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"the leaves of a batch differ in their leading axis: {sorted(map(str, sizes))}."
        )
    if 0 in sizes:
        raise ValueError("the batch is empty: the gradient of no data has no N / B scale.")
    if num_data is not None:
        check_index(batch.index, num_data)


def check_index(index: Any, num_data: int) -> None:
    """Refuse row numbers of a batch that are not different rows of a data set of N."""
    size = index.shape[0]
    problem = f"has {size} rows" if size > num_data else ""
    if not problem and is_concrete(index):
        seen = np.asarray(index)
        if seen.min() < 0 or seen.max() >= num_data:
            problem = f"leaves [0, {num_data})"
        elif np.unique(seen).size < size:
            problem = "repeats a row"
    if problem:
        shown = f" {np.asarray(index).tolist()[:20]}" if is_concrete(index) else ""
        raise ValueError(
            f"a batch's index{shown} {problem}, but it must name different rows of the "
            f"num_data={num_data} data: a datum's noise and its row of a table are found by it. "
            "Draw without replacement, do not pad with copies, and give the row that the datum has "
            "in the whole data set."
        )


def check_key(key: Any) -> None:
    """Refuse keys under which `vmap` changes the numbers: noise would not follow its datum."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    name = str(jax.random.key_impl(key)) if typed else "rbg" if key.shape[-1] == 4 else ""
    if "rbg" in name:
        raise ValueError(
            "keys of the generator 'rbg' make other numbers under vmap than alone, so a datum's "
            "noise would depend on its batch, and the minibatches of an epoch would not add up to "
            "the whole. Write jax.random.key(seed, impl='threefry2x32')."
        )


def check_data(check: Callable[[PyTree], None] | None, x: PyTree) -> None:
    """What a model says of its data, where they are concrete."""
    if check is not None and is_concrete(x):
        check(jax.device_get(x))


def is_concrete(tree: PyTree) -> bool:
    """Are its numbers known? Look at them as numpy's, by `jax.device_get`: an operation of JAX on
    known numbers is traced all the same inside a `jit`.
    """
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
