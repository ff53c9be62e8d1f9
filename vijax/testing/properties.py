"""What a family promises, as pairs of figures that must agree: one traced function makes them all.

Every figure of q is an expectation under its law: exact where a quadrature is given or the support
can be summed, else over draws and points of our own, with standard errors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax import supports
from vijax.families import (
    Density,
    FiniteSupport,
    Reparameterized,
    UniformNoise,
    log_probs,
    transports,
)
from vijax.testing.averages import Average, average, exactly
from vijax.testing.coverage import can_cover, cover, inside
from vijax.testing.law import Law, Quadrature, flat, same, times
from vijax.testing.traits import Function, Pairs, formulas, kinds, structure
from vijax.types import Array, Family, Key, PyTree


def pairs_of(
    family: Family, f: Function, quadrature: Quadrature | None, num_draws: int
) -> Callable[[Key, PyTree, PyTree], Pairs]:
    """(key, lam, another lam) -> {property: (the family's own figure, what it must be)}."""
    traits, known = family.traits, family.traits.get(Density) is not None
    exact = quadrature or _sum(family)

    def measure(key: Key, lam: PyTree, other: PyTree) -> Pairs:
        keys = jax.random.split(key, 4)
        drawn, slopes = _draw(family, f, lam, family.noise(keys[0], num_draws))
        z, logs = drawn
        found = {"support": (_inside(family, z), exactly(jnp.ones(())))}
        if not known:
            return found
        found["log_q"] = same(logs[1], logs[2])
        if supports.is_moving(family.support):
            return found
        if exact is not None:
            points, weights = exact(lam)
        else:
            points, _ = transports(family, lam, family.noise(keys[1], num_draws))
            weights = jnp.full(num_draws, 1.0 / num_draws)
        law = Law(
            lam=lam,
            z=points,
            weights=weights,
            log_q=log_probs(family, lam, points),
            score=jax.vmap(jax.grad(family.log_prob), (None, 0))(lam, points),
            exact=exact is not None,
        )
        found["score"] = law.mean(law.score), exactly(jax.tree.map(jnp.zeros_like, lam))
        features = _covered(keys[2], family, law, z, found)
        if features is not None:
            found["sampler"] = average(_features(z, family, raw=law.exact)), features
            if uniform := traits.get(UniformNoise):
                shape = num_draws, uniform.num_uniforms
                numbers = jax.random.uniform(keys[3], shape, minval=1e-15)
                made, _ = transports(family, lam, jax.vmap(uniform.from_uniform)(numbers))
                found["uniform"] = average(_features(made, family, raw=law.exact)), features
        if slopes is not None:
            found["log_q_slope"] = same(_pick(slopes, 1), _pick(slopes, 2))
            if traits.get(Reparameterized) is not None:
                right = law.slope(jax.vmap(f)(law.z))
                found["reparameterized"] = average(_pick(slopes, 0)), right
        found |= formulas(family, law, other) | kinds(family, law)
        return found | structure(keys[3], family, f, law, z)

    return measure


def _sum(family: Family) -> Quadrature | None:
    """Over a finite support."""
    finite = family.traits.get(FiniteSupport)
    if finite is None or family.traits.get(Density) is None:
        return None
    return lambda lam: (finite.values(), jnp.exp(log_probs(family, lam, finite.values())))


def _draw(family: Family, f: Function, lam: PyTree, noise: PyTree) -> tuple[tuple, PyTree]:
    """((z leaves [S, ...], (f, log q, log_prob) each [S]), their slopes in lam through the sampler,
    leaves [S, 3, ...], or None where it cannot be differentiated).
    """
    known = family.traits.get(Density) is not None

    def three(lam: PyTree, noise: PyTree) -> tuple[Array, tuple[PyTree, Array]]:
        z, log_q = family.transport(lam, noise)
        values = jnp.stack([f(z), log_q, family.log_prob(lam, z) if known else log_q])
        return values, (z, values)

    slopes = None
    try:
        slopes, (z, values) = jax.vmap(jax.jacrev(three, has_aux=True), (None, 0))(lam, noise)
    except (TypeError, ValueError, NotImplementedError):  # what JAX raises for integers and loops
        if family.traits.get(Reparameterized) is not None:
            raise
        _, (z, values) = jax.vmap(three, (None, 0))(lam, noise)
    return (z, tuple(values.T)), slopes


def _covered(key: Key, family: Family, law: Law, z: PyTree, found: dict) -> Average | None:
    """The mean features under log_prob, and on the way its mass; None where nobody can say."""
    one = exactly(jnp.ones(()))
    if law.exact:
        found["mass"] = exactly(jnp.sum(law.weights)), one
        return law.mean(_features(law.z, family, raw=True))
    if not can_cover(family.support):
        return None
    num = law.weights.shape[0]
    points, log_density = cover(key, family.support, z, num)
    log_w = log_probs(family, law.lam, points) - log_density
    weights = jnp.where(jnp.isnan(log_w), 0.0, jnp.exp(log_w))
    found["mass"] = average(weights), one
    seen = _features(points, family, raw=False)
    return average(jax.tree.map(lambda leaf: times(weights, leaf), seen))


def _inside(family: Family, z: PyTree) -> Average:
    parts = zip(supports.parts(family.support), jax.tree.leaves(z), strict=True)
    each = jnp.stack([inside(part, leaf) for part, leaf in parts])
    return exactly(jnp.all(each).astype(float))


def _features(z: PyTree, family: Family, *, raw: bool) -> tuple[Array, Array]:
    """[S, M] the elements themselves, or sines and cosines, which are bounded and, on a circle,
    continuous; [S, M, M] their products.
    """
    names = [part.name for part in supports.parts(family.support)]
    numbers = [flat(leaf) for leaf in jax.tree.leaves(z)]
    seen = [
        n if raw and name != "circle" else jnp.concatenate([jnp.sin(n), jnp.cos(n)], axis=1)
        for name, n in zip(names, numbers, strict=True)
    ]
    joined = jnp.concatenate(seen, axis=1)
    return joined, joined[:, :, None] * joined[:, None, :]


def _pick(slopes: PyTree, number: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[:, number], slopes)
