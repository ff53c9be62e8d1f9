"""Shape checks at the door, for mistakes that broadcasting would hide."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

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


def check_batch(batch: Any) -> None:
    """Refuse what is no batch, an empty one, and one whose leaves differ in their leading axis."""
    sizes = {leaf.shape[0] if leaf.ndim else None for leaf in jax.tree.leaves(as_batch(batch))}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(
            f"the leaves of a batch differ in their leading axis: {sorted(map(str, sizes))}."
        )
    if 0 in sizes:
        raise ValueError("the batch is empty: the gradient of no data has no N / B scale.")
