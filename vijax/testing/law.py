"""Q at one lam as points and weights: exact by a quadrature or a sum, else over its own draws."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.testing.averages import Average, average, exactly
from vijax.types import Array, PyTree

Quadrature = Callable[[PyTree], tuple[PyTree, Array]]
"""lam -> (z leaves [M, ...], weights [M]): E_q[f] = sum_m weights_m f(z_m)."""


class Law(NamedTuple):
    """Q at one lam: points and weights, or draws, in which case `exact` is False.

    Attributes:
      score: d log q / d lam at the points, leaves [M, ...].
    """

    lam: PyTree
    z: PyTree
    weights: Array
    log_q: Array
    score: PyTree
    exact: bool

    def mean(self, values: PyTree) -> Average:
        """Of values [M, ...] at the points."""
        if not self.exact:
            return average(values)
        return exactly(jax.tree.map(lambda leaf: jnp.tensordot(self.weights, leaf, axes=1), values))

    def slope(self, values: Array) -> Average:
        """d/dlam of the mean of fixed values [M], by E[values * score] and E[score] = 0."""
        signal = values - self.weights @ values
        return self.mean(jax.tree.map(lambda leaf: times(signal, leaf), self.score))


def times(weights: Array, leaf: Array) -> Array:
    """[S] times [S, ...]."""
    return weights.reshape(-1, *[1] * (leaf.ndim - 1)) * leaf


def flat(z: PyTree) -> Array:
    """Leaves [S, ...] -> [S, M]."""
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(z)], axis=1)


def same(ours: PyTree, theirs: PyTree) -> tuple[Average, Average]:
    """A pair of figures that nothing random is in."""
    return exactly(ours), exactly(theirs)
