"""The sets that latents live in, by name and shape: what a family covers, what a prior allows."""

import jax
from flax.core import unfreeze

from vijax.types import PyTree, Support

INSIDE_REAL = ("real", "positive", "interval", "ordered", "circle")


def real(*shape: int) -> Support:
    """Real numbers; `real()` is one of them, `real(8)` a vector."""
    return Support("real", shape)


def positive(*shape: int) -> Support:
    """Positive numbers."""
    return Support("positive", shape)


def interval(low: float, high: float, *shape: int) -> Support:
    """Numbers strictly between two ends.

    Raises:
      ValueError: if low is not below high.
    """
    if not low < high:
        raise ValueError(f"interval({low}, {high}): the lower end must come first.")
    return Support("interval", shape, (float(low), float(high)))


def ordered(size: int) -> Support:
    """Real vectors whose entries increase."""
    return Support("ordered", (size,))


def simplex(*shape: int) -> Support:
    """Positive vectors of sum 1 over the last axis, with the density of all but its last entry."""
    return Support("simplex", shape)


def correlation_cholesky(dim: int) -> Support:
    """Cholesky factors [dim, dim] of correlation matrices."""
    return Support("correlation_cholesky", (dim, dim))


def circle(*shape: int) -> Support:
    """Angles in [-pi, pi], the two ends being one point."""
    return Support("circle", shape)


def binary(*shape: int) -> Support:
    """Zeros and ones."""
    return Support("binary", shape)


def one_hot(*shape: int) -> Support:
    """One-hot vectors over the last axis."""
    return Support("one_hot", shape)


def counts(*shape: int) -> Support:
    """Whole numbers from 0."""
    return Support("counts", shape)


def moving() -> Support:
    """A set that depends on the family's parameters, such as the interval up to a learned end."""
    return Support("moving")


def is_moving(support: PyTree) -> bool:
    """Does any part of it move with the parameters?"""
    return any(part.name == "moving" for part in parts(support))


def parts(support: PyTree) -> list[Support]:
    """The leaves of a tree of supports."""
    return jax.tree.leaves(support, is_leaf=lambda part: isinstance(part, Support))


def contains(outer: PyTree, inner: PyTree) -> bool:
    """Is every value of `inner` one of `outer`, under the same base measure?"""

    def one(outer: Support, inner: Support) -> bool:
        if outer.shape != inner.shape:
            return False
        inside = inner.bounds and inner.bounds[0] >= 0.0
        return (
            outer == inner
            or (outer.name == "real" and inner.name in INSIDE_REAL)
            or (outer.name == "positive" and inner.name == "interval" and bool(inside))
        )

    leaf = {"is_leaf": lambda part: isinstance(part, Support)}
    if jax.tree.structure(outer, **leaf) != jax.tree.structure(inner, **leaf):
        return False
    return all(one(a, b) for a, b in zip(parts(outer), parts(inner), strict=True))


def describe(support: PyTree) -> str:
    """In words, for error messages."""

    def one(part: Support) -> str:
        sizes = ", ".join(f"{number:.12g}" for number in (*part.bounds, *part.shape))
        return f"{part.name}({sizes})"

    words = jax.tree.map(one, support, is_leaf=lambda part: isinstance(part, Support))
    return str(unfreeze(words)).replace("'", "")
