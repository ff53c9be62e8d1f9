"""What the traits of a family say, each against its meaning, as figures that must agree."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax.families import (
    BernoulliSites,
    Blocks,
    CategoricalSites,
    Density,
    Entropy,
    GammaSites,
    Inverse,
    Kl,
    Moments,
    Natural,
    NormalMoments,
    Pushforward,
    WeakDerivative,
    log_probs,
    transports,
)
from vijax.testing.averages import Average, average, exactly
from vijax.testing.law import Law, flat, same
from vijax.types import Array, Family, Key, PyTree, Scalar

Function = Callable[[PyTree], Scalar]
Pairs = dict[str, tuple[Average, Average]]
"""{property: (the family's own figure, what it must be)}"""

FEW = 50


def formulas(family: Family, law: Law, other: PyTree) -> Pairs:
    """Entropy, KL, moments, natural steps."""
    traits, lam, found = family.traits, law.lam, {}
    log_q2 = log_probs(family, other, law.z)
    if known := traits.get(Entropy):
        found["entropy"] = exactly(known.value(lam)), law.mean(-law.log_q)
        found["entropy_slope"] = exactly(jax.grad(known.value)(lam)), law.slope(-law.log_q)
    if known := traits.get(Kl):
        slopes = jax.grad(known.value, (0, 1))
        score2 = jax.vmap(jax.grad(family.log_prob), (None, 0))(other, law.z)
        found["kl"] = exactly(known.value(lam, other)), law.mean(law.log_q - log_q2)
        ours, theirs = slopes(lam, other)
        found["kl_slope"] = exactly(ours), law.slope(law.log_q - log_q2)
        found["kl_slope_2"] = exactly(theirs), law.mean(jax.tree.map(jnp.negative, score2))
        zero = jax.tree.map(jnp.zeros_like, lam)
        found["own_kl"] = (
            exactly((known.value(lam, lam), slopes(lam, lam))),
            exactly((jnp.zeros(()), (zero, zero))),
        )
    if known := traits.get(Moments):
        mean = known.mean(lam)
        spread = jax.tree.map(lambda leaf, m: jnp.square(leaf - m[None]), law.z, mean)
        found["mean"] = exactly(mean), law.mean(law.z)
        found["variance"] = exactly(known.variance(lam)), law.mean(spread)
    if (known := traits.get(Natural)) and (kl := traits.get(Kl)):
        few = jax.tree.map(lambda leaf: leaf[:FEW], law.z)
        slope = jax.grad(lambda lam: -kl.value(lam, other))(lam)
        for name, rate in {"natural": 1.0, "natural_line": 0.3}.items():
            new = log_probs(family, known.step(lam, slope, jnp.asarray(rate)), few)
            line = (1.0 - rate) * law.log_q[:FEW] + rate * log_q2[:FEW]
            # But for the normaliser, of which nothing is left where the step ends in `other`.
            off = 0.0 if rate == 1.0 else new[0] - line[0]
            found[name] = same(new - off, line)
    return found


def kinds(family: Family, law: Law) -> Pairs:
    """The traits that name parameters, against the moments of z."""
    traits, lam, found = family.traits, law.lam, {}
    if bits := traits.get(BernoulliSites):
        found["BernoulliSites"] = exactly(jax.nn.sigmoid(bits.logits(lam))), law.mean(law.z)
    if classes := traits.get(CategoricalSites):
        probs = jax.nn.softmax(classes.logits(lam))
        found["CategoricalSites"] = exactly(probs.ravel()), law.mean(flat(law.z))
    if gammas := traits.get(GammaSites):
        shape, rate = gammas.shape(lam), gammas.rate(lam)
        square = jnp.square(law.z - (shape / rate)[None])
        found["GammaSites"] = exactly((shape / rate, shape / rate**2)), law.mean((law.z, square))
    if normal := traits.get(NormalMoments):
        centred = law.z - normal.mean(lam)[None]
        products = centred[:, :, None] * centred[:, None, :]
        ours = normal.mean(lam), normal.covariance(lam)
        found["NormalMoments"] = exactly(ours), law.mean((law.z, products))
    return found


def structure(key: Key, family: Family, f: Function, law: Law, z: PyTree) -> Pairs:
    """The traits that are identities at a point, and pairs of points."""
    traits, lam, found = family.traits, law.lam, {}
    few = jax.tree.map(lambda leaf: leaf[:FEW], z)
    log_q = log_probs(family, lam, few)
    if blocks := traits.get(Blocks):

        def total(z: PyTree) -> Scalar:
            parts = [
                part.log_prob(blocks.lam(name, lam, z), z[name])
                for name, part in blocks.families.items()
            ]
            return jnp.sum(jnp.stack(parts))

        found["Blocks"] = same(jax.vmap(total)(few), log_q)
    if (push := traits.get(Pushforward)) and push.base.traits.get(Density) is not None:
        u, log_base = transports(push.base, lam, push.base.noise(key, FEW))
        moved = log_probs(family, lam, jax.vmap(push.forward)(u))
        found["Pushforward"] = same(moved, log_base - jax.vmap(push.log_det)(u))
    if inverse := traits.get(Inverse):
        noise = family.noise(key, FEW)
        made, _ = transports(family, lam, noise)
        found["inverse"] = same(jax.vmap(inverse.noise, (None, 0))(lam, made), noise)
    if weak := traits.get(WeakDerivative):

        def slope(key: Key, z: PyTree) -> PyTree:
            def one(leaf: Array, plus: PyTree, minus: PyTree, scale: Array) -> Array:
                def at(points: PyTree) -> Array:
                    rows = jax.tree.map(lambda p: p.reshape(-1, *p.shape[leaf.ndim :]), points)
                    return jax.vmap(f)(rows).reshape(leaf.shape)

                return scale * (at(plus) - at(minus))

            made = weak.pairs(key, lam, z)
            return jax.tree.map(one, lam, made.plus, made.minus, made.scale)

        keys = jax.random.split(key, jax.tree.leaves(z)[0].shape[0])
        found["pairs"] = average(jax.vmap(slope)(keys, z)), law.slope(jax.vmap(f)(law.z))
    return found
