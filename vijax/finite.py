"""Is everything in a tree finite? Exact, at the cost of one dot product per leaf."""

import jax
import jax.numpy as jnp

from vijax.types import Array, PyTree


def all_finite(tree: PyTree) -> Array:
    """[] bool: is every element of every floating leaf finite?

    A dot product with a tiny constant vector: it cannot overflow, a NaN or an infinity survives it,
    and unlike a reduction of bools it is vectorised on CPU.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.isfinite(sum((_probe(leaf) for leaf in leaves), jnp.zeros(())))


def _probe(leaf: Array) -> Array:
    """[] something finite exactly if every element is."""
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _probe(leaf.real) + _probe(leaf.imag)
    wide = leaf if leaf.dtype.itemsize >= 4 else leaf.astype(jnp.float32)
    if wide.ndim == 0:
        return wide * jnp.finfo(wide.dtype).tiny
    tiny = jnp.full(wide.shape[-1], jnp.finfo(wide.dtype).tiny, wide.dtype)
    return jnp.sum(wide @ tiny)
