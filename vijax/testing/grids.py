"""Exact expectations of small problems: sums over finite supports, Gauss-Hermite quadrature over
normals, grids elsewhere.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.families import Blocks, FiniteSupport, log_probs, transports
from vijax.types import Array, Family, Objective, PyTree, Scalar


class Grid(NamedTuple):
    """Fixed points on the support, for families whose density, and not their sampler, says where q
    is.

    Attributes:
      z: [M, D].
      measure: [M] what each point stands for: the density is multiplied by it.
    """

    z: np.ndarray
    measure: np.ndarray

    def power(self, dim: int) -> "Grid":
        """The product grid of `dim` such coordinates; this one has one."""
        places = np.stack(
            np.meshgrid(*[np.arange(len(self.z))] * dim, indexing="ij"), axis=-1
        ).reshape(-1, dim)
        return Grid(self.z[places, 0], np.prod(self.measure[places], axis=1))


def half_line(step: float, low: float = -3.8, high: float = 4.4) -> Grid:
    """Points z = exp(s - exp(-s)) with s evenly spaced, double-exponential: right for
    z^(a - 1) exp(-b z) with a >= 0.3, b near 1.
    """
    s = np.arange(low, high, step)[:, None]
    z = np.exp(s - np.exp(-s))
    return Grid(z, (step * z * (1.0 + np.exp(-s)))[:, 0])


def unit_simplex(num_classes: int, step: float, reach: float) -> Grid:
    """Points z = softmax(t, 0) with t evenly spaced in [-reach, reach]^(C - 1), for densities whose
    shapes are all at least 1.
    """
    t = np.meshgrid(*[np.arange(-reach, reach, step)] * (num_classes - 1), indexing="ij")
    log_z = np.stack([*t, np.zeros_like(t[0])], axis=-1).reshape(-1, num_classes)
    z = np.exp(log_z) / np.exp(log_z).sum(axis=1, keepdims=True)
    return Grid(z, step ** (num_classes - 1) * np.prod(z, axis=1))


def unit_interval(step: float, reach: float) -> Grid:
    """Points z = sigmoid(t) with t evenly spaced; both shapes at least 1."""
    simplex = unit_simplex(2, step, reach)
    return Grid(simplex.z[:, :1], simplex.measure)


def real_line(step: float, reach: float) -> Grid:
    """Points z = sinh(t) with t evenly spaced: tails that fall like a power of z."""
    t = np.arange(-reach, reach, step)[:, None]
    return Grid(np.sinh(t), (step * np.cosh(t))[:, 0])


def circle(num: int) -> Grid:
    """Evenly spaced angles."""
    return Grid(
        np.linspace(-np.pi, np.pi, num, endpoint=False)[:, None], np.full(num, 2.0 * np.pi / num)
    )


def counts(most: int) -> Grid:
    """0 ... most."""
    return Grid(np.arange(most + 1.0)[:, None], np.ones(most + 1))


def quadrature(family: Family, lam: PyTree, nodes: int | Grid) -> tuple[PyTree, Array]:
    """(z leaves [M, ...], weights [M]) such that E_q[f] = sum_m weights_m f(z_m), differentiable in
    lam.

    Args:
      nodes: Gauss-Hermite points per dimension, moved to q by its sampler, whose noise must be
        standard normal [D]; or a grid, weighted by q's density. Not looked at where the support is
        finite.
    """
    if finite := family.traits.get(FiniteSupport):
        z = finite.values()
        return z, jnp.exp(log_probs(family, lam, z))
    if blocks := family.traits.get(Blocks):
        # The nodes of the blocks so far; each grows a grid of the next block
        z, weights = {}, jnp.ones(1)
        for name, block in blocks.families.items():
            place = jax.vmap(lambda z, name=name: blocks.lam(name, lam, z), axis_size=len(weights))
            next_z, next_weights = jax.vmap(
                lambda part, block=block: quadrature(block, part, nodes)
            )(place(z))
            size = next_weights.shape[1]
            z = jax.tree.map(lambda leaf, size=size: jnp.repeat(leaf, size, axis=0), z)
            z[name] = next_z.reshape(-1, *next_z.shape[2:])
            weights = jnp.repeat(weights, size) * next_weights.ravel()
        return z, weights
    if isinstance(nodes, Grid):
        z = jnp.asarray(nodes.z, jnp.result_type(float))
        return z, jnp.asarray(nodes.measure, z.dtype) * jnp.exp(log_probs(family, lam, z))
    dim = jax.eval_shape(lambda: family.noise(jax.random.key(0), 1)).shape[1]
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    noise = jnp.asarray(list(itertools.product(points, repeat=dim)))
    z, _ = transports(family, lam, noise)
    return z, jnp.asarray(
        np.prod(list(itertools.product(weights / weights.sum(), repeat=dim)), axis=1)
    )


def expectation(objective: Objective, num_samples: int, weights: Array, log_w: Array) -> Scalar:
    """Exact E[objective(log_w of K independent draws)] from the values [M] at quadrature points
    with weights [M].
    """
    if objective.linear:
        return jnp.vdot(weights, log_w)
    tuples = np.indices((len(weights),) * num_samples).reshape(num_samples, -1).T
    return jnp.vdot(jnp.prod(weights[tuples], axis=1), jax.vmap(objective.value)(log_w[tuples]))
