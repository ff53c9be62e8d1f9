"""The mean of a statistic over the data, when only a batch of them is seen at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.types import Array, PyTree, Scalar


class Running(NamedTuple):
    """The mean as it stands.

    Attributes:
      mean: tree.
      unseen: the same tree: what a datum counts as before it is first seen.
    """

    mean: PyTree
    unseen: PyTree


def averaged(running: Running, after: PyTree, rate: Scalar) -> Running:
    """With a step of that size towards a batch's statistics, leaves [B, ...]. Cappe and Moulines
    2009, eq. 11; Hoffman et al. 2013, eq. 33.
    """

    def mix(old: Array, new: Array) -> Array:
        share = rate.astype(old.dtype)
        return (1.0 - share) * old + share * jnp.mean(new, axis=0)

    return running._replace(mean=jax.tree.map(mix, running.mean, after))


def exchanged(
    running: Running, before: PyTree, after: PyTree, seen: Array, num_data: int
) -> Running:
    """With a batch's former statistics taken off and its new ones put on, leaves [B, ...]: the
    exact mean once every datum was seen. Neal and Hinton 1998, section 4.

    Args:
      seen: [B] bool: was the datum seen before? If not, `unseen` is taken off.
    """
    size = seen.shape[0]
    if size == num_data:
        return running._replace(mean=jax.tree.map(lambda new: jnp.mean(new, axis=0), after))

    def exchange(mean: Array, unseen: Array, old: Array, new: Array) -> Array:
        known = seen.reshape(seen.shape + (1,) * (old.ndim - 1))
        change = new - jnp.where(known, old, unseen[None])
        return mean + jnp.sum(change, axis=0) / num_data

    return running._replace(
        mean=jax.tree.map(exchange, running.mean, running.unseen, before, after)
    )
