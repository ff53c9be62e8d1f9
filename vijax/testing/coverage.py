"""Points over a whole support, with their density: what a family's mass is summed over when nothing
is known of the family but its draws, its log_prob and its support.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.core import unfreeze
from jax.scipy.special import gammaln, logsumexp

from vijax import supports
from vijax.bijectors import MAPS, onto
from vijax.types import Array, Key, PyTree, Support

NUM_CENTRES = 64
DEGREES = 4.0


def inside(part: Support, z: Array) -> Array:
    """[] bool: do all values z [S, *shape] lie in the support? True where it is of a kind of its
    owner's.
    """
    ones = jnp.abs(jnp.sum(z, axis=-1) - 1.0) < 1e-5 if z.ndim > 1 else jnp.ones(())
    bits = jnp.all((z == 0.0) | (z == 1.0))
    known = {
        "real": lambda: jnp.all(jnp.isfinite(z)),
        "positive": lambda: jnp.all(z > 0.0),
        "interval": lambda: jnp.all((z > part.bounds[0]) & (z < part.bounds[1])),
        "ordered": lambda: jnp.all(jnp.diff(z, axis=-1) > 0.0),
        "simplex": lambda: jnp.all(z > 0.0) & jnp.all(ones),
        "circle": lambda: jnp.all(jnp.abs(z) <= jnp.pi),
        "binary": lambda: bits,
        "one_hot": lambda: bits & jnp.all(ones),
        "counts": lambda: jnp.all((z >= 0.0) & (z == jnp.round(z))),
    }
    return known[part.name]() if part.name in known else bits | ~bits


class _Law(NamedTuple):
    """Draws of one part of z, and their log density with respect to that part's base measure."""

    z: PyTree
    log_density: Array


def can_cover(support: PyTree) -> bool:
    """Is every part of the support one that `cover` knows?"""
    return all(part.name in MAPS or part.name in DISCRETE for part in supports.parts(support))


def cover(key: Key, support: PyTree, z: PyTree, num: int) -> tuple[PyTree, Array]:
    """(points leaves [num, ...], their log density [num]): heavier tails than those of the draws z
    [S, ...] that they are made from, so that E[q(point) / density] is the mass of q.

    Parts that a bijector reaches are drawn together, as a mixture of Student's t around draws;
    discrete parts and circles each alone.
    """
    leaves, tree = jax.tree.flatten(
        unfreeze(support), is_leaf=lambda part: isinstance(part, Support)
    )
    values = tree.flatten_up_to(z)
    smooth = [i for i, part in enumerate(leaves) if part.name not in DISCRETE]
    keys = jax.random.split(key, len(leaves) + 1)
    found: list[PyTree] = [None] * len(leaves)
    total = jnp.zeros(num)
    if smooth:
        bijector = onto([leaves[i] for i in smooth])
        u = jax.vmap(bijector.inverse)([values[i] for i in smooth])
        law = _around(keys[-1], u, num)
        log_det = jax.vmap(bijector.log_det)(law.z)
        total = total + law.log_density - log_det
        for i, leaf in zip(smooth, jax.vmap(bijector.forward)(law.z), strict=True):
            found[i] = leaf
    for i, part in enumerate(leaves):
        if part.name in DISCRETE:
            law = DISCRETE[part.name](keys[i], values[i], num)
            found[i], total = law.z, total + law.log_density
    return tree.unflatten(found), total


def _around(key: Key, u: Array, num: int) -> _Law:
    """A mixture of multivariate t around some of the draws u [S, D]. Silverman's bandwidth."""
    size = u.shape[1]
    key_centre, key_normal, key_scale = jax.random.split(key, 3)
    covariance = jnp.atleast_2d(jnp.cov(u, rowvar=False))
    jitter = 1e-8 * jnp.diag(jnp.diagonal(covariance) + 1e-30)
    factor = jnp.linalg.cholesky(covariance + jitter)
    factor = factor * (4.0 / (size + 2) / NUM_CENTRES) ** (1.0 / (size + 4))
    centres = u[:NUM_CENTRES]
    centre = centres[jax.random.randint(key_centre, (num,), 0, NUM_CENTRES)]
    normal = jax.random.normal(key_normal, (num, size))
    squares = 2.0 * jax.random.gamma(key_scale, DEGREES / 2.0, (num, 1))
    points = centre + normal @ factor.T * jnp.sqrt(DEGREES / squares)

    def log_density(point: Array) -> Array:
        white = jax.scipy.linalg.solve_triangular(factor, (point[None] - centres).T, lower=True)
        kernel = -0.5 * (DEGREES + size) * jnp.log1p(jnp.sum(white**2, axis=0) / DEGREES)
        return logsumexp(kernel) - jnp.log(NUM_CENTRES)

    constant = gammaln((DEGREES + size) / 2.0) - gammaln(DEGREES / 2.0)
    constant -= 0.5 * size * jnp.log(DEGREES * jnp.pi)
    constant -= jnp.sum(jnp.log(jnp.diagonal(factor)))
    return _Law(points, jax.lax.map(log_density, points, batch_size=1000) + constant)


def _bits(key: Key, z: Array, num: int) -> _Law:
    probs = _repeat(0.1 + 0.8 * jnp.mean(z, axis=0), num)
    bits = jax.random.bernoulli(key, probs)
    log_density = jnp.where(bits, jnp.log(probs), jnp.log1p(-probs))
    return _Law(bits.astype(z.dtype), _rest(log_density))


def _classes(key: Key, z: Array, num: int) -> _Law:
    log_probs = _repeat(jnp.log(0.1 / z.shape[-1] + 0.9 * jnp.mean(z, axis=0)), num)
    classes = jax.random.categorical(key, log_probs)
    one_hot = jax.nn.one_hot(classes, z.shape[-1], dtype=z.dtype)
    return _Law(one_hot, _rest(jnp.sum(one_hot * log_probs, axis=-1)))


def _counts(key: Key, z: Array, num: int) -> _Law:
    success = _repeat(1.0 / (2.0 + jnp.mean(z, axis=0)), num)
    uniform = jax.random.uniform(key, success.shape, minval=1e-12)
    counts = jnp.floor(jnp.log(uniform) / jnp.log1p(-success))
    return _Law(counts.astype(z.dtype), _rest(jnp.log(success) + counts * jnp.log1p(-success)))


def _angles(key: Key, z: Array, num: int) -> _Law:
    angles = jax.random.uniform(key, (num, *z.shape[1:]), z.dtype, -jnp.pi, jnp.pi)
    return _Law(angles, _rest(jnp.full(angles.shape, -jnp.log(2.0 * jnp.pi))))


def _repeat(leaf: Array, num: int) -> Array:
    return jnp.broadcast_to(leaf, (num, *leaf.shape))


def _rest(terms: Array) -> Array:
    """[S, ...] -> [S]."""
    return jnp.sum(terms.reshape(terms.shape[0], -1), axis=1)


DISCRETE: dict[str, Callable[[Key, Array, int], _Law]] = {
    "binary": _bits,
    "one_hot": _classes,
    "counts": _counts,
    "circle": _angles,
}
"""Parts that no bijector reaches: circles are among them."""
