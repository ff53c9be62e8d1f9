"""What the batteries of families look at: one compiled program of draws and one of exact figures
for each entry of the registry, in float64.
"""

import functools
from typing import Any, NamedTuple

import exact
import jax
import jax.numpy as jnp
import numpy as np
from checks import FAST_COMPILE, compiled
from registry import FAMILIES

from vijax.families import Entropy, Kl, Moments, Natural, WeakDerivative, lam_like, log_probs, need

NUM_DRAWS = 20_000
NAMES = [name for name, fixture in FAMILIES.items() if not fixture.per_block]
RATES = (1.0, 0.3)


def having(*kinds):
    """Names of the families that have all these traits."""
    return [
        name
        for name in NAMES
        if all(FAMILIES[name].family.traits.get(kind) is not None for kind in kinds)
    ]


def point(name, number=0):
    """Lam of a fixture, in the float type in force."""
    lams = FAMILIES[name].lams
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[number], jnp.result_type(float)), lams)


def generic_lam(family, seed=0):
    """Random lam of any family."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.7 * random.normal(size=leaf.shape), jnp.result_type(float)),
        lam_like(family),
    )


def fine_quadrature(fixture, lam):
    nodes = fixture.nodes if fixture.fine is None else fixture.fine
    return exact.quadrature(fixture.family, lam, nodes)


def rounding(name):
    """What an exact figure of the family may be off by: a grid has its own error."""
    return 1e-6 if isinstance(FAMILIES[name].nodes, exact.Grid) else 1e-12


def moments(name, z):
    """([S, M] what is seen of z, [S, M, M] its products)."""
    seen = FAMILIES[name].seen
    shown = jax.tree.leaves(z if seen is None else seen(z))
    flat = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in shown], axis=1)
    return flat, flat[:, :, None] * flat[:, None, :]


class Drawn(NamedTuple):
    """Draws at a fixture's first point.

    Attributes:
      z: leaves [S, ...].
      values: [S, 3] the integrand, transport's log q, and log_prob there.
      slopes: of the values in lam through the sampler, leaves [S, 3, ...].
      moments: what is seen of z and its products, see `moments`.
      elsewhere: [S] log_prob of z at the parameters `generic_lam(family, seed=1)`.
    """

    z: Any
    values: np.ndarray
    slopes: Any
    moments: Any
    elsewhere: np.ndarray


@functools.cache
def _program(name):
    fixture = FAMILIES[name]
    same = (fixture.family.name, fixture.f)
    first = next(n for n in NAMES if (FAMILIES[n].family.name, FAMILIES[n].f) == same)
    if first != name:  # other parameters of the same
        return _program(first)

    def one(lam, noise):
        def three(lam):
            z, log_q = fixture.family.transport(lam, noise)
            log_p = fixture.family.log_prob(lam, z)
            values = jnp.stack([fixture.f(fixture.theta, z), log_q, log_p])
            return values, (z, values)

        slopes, (z, values) = jax.jacrev(three, has_aux=True)(lam)
        return z, values, slopes

    def many(lam, noise):
        z, values, slopes = jax.vmap(one, (None, 0))(lam, noise)
        elsewhere = log_probs(fixture.family, generic_lam(fixture.family, seed=1), z)
        return Drawn(z, values, slopes, moments(name, z), elsewhere)

    return jax.jit(many, compiler_options=FAST_COMPILE)


def drawn_from(name, noise):
    """`Drawn` from the noise of S samples."""
    return jax.device_get(_program(name)(point(name), noise))


@functools.cache
def drawn(name):
    """`Drawn` from noise of the family's own."""
    with jax.enable_x64(True):
        return drawn_from(name, FAMILIES[name].family.noise(jax.random.key(3), NUM_DRAWS))


@functools.cache
def weak_slopes(name):
    """[S, ...] draws of dE[f]/dlam by the family's pairs, leaves as lam's."""
    fixture = FAMILIES[name]
    family, pairs_of = fixture.family, need(fixture.family, WeakDerivative).pairs

    def one(lam, noise, key):
        pairs = pairs_of(key, lam, family.transport(lam, noise)[0])

        def slope(leaf, plus, minus, scale):
            def at(points):
                flat = points.reshape(leaf.size, *points.shape[leaf.ndim :])
                return jax.vmap(lambda z: fixture.f(fixture.theta, z))(flat).reshape(leaf.shape)

            return scale * (at(plus) - at(minus))

        return jax.tree.map(slope, lam, pairs.plus, pairs.minus, pairs.scale)

    with jax.enable_x64(True):
        noise = family.noise(jax.random.key(3), NUM_DRAWS)
        keys = jax.random.split(jax.random.key(4), NUM_DRAWS)
        return compiled(jax.vmap(one, (None, 0, 0)), point(name), noise, keys)


@functools.cache
def facts(name):
    """Exact figures at a fixture's points by quadrature or enumeration, and the family's own: pairs
    (ours, exact) but for `mass` and `mean` [P], `score` (0), `moments` and `f_slope`.
    """
    fixture = FAMILIES[name]

    def compute(lams, lam, lam2):
        def seen(lam):
            z, weights = exact.quadrature(fixture.family, lam, fixture.nodes)
            return jnp.sum(weights), weights @ moments(name, z)[0]

        found = dict(zip(("mass", "mean"), jax.vmap(seen)(lams), strict=True))
        return found | _expectations(name, lam, lam2) | _of_natural_steps(fixture, lam, lam2)

    with jax.enable_x64(True):
        lams = jax.tree.map(jnp.asarray, fixture.lams)
        given = lams, point(name), generic_lam(fixture.family, seed=1)
        return compiled(compute, *given)


def _expectations(name, lam, lam2):
    fixture = FAMILIES[name]
    family = fixture.family

    def of_logs(lam, lam2):
        z, weights = fine_quadrature(fixture, lam)
        log_q, log_q2 = log_probs(family, lam, z), log_probs(family, lam2, z)
        f = jax.vmap(lambda z: fixture.f(fixture.theta, z))(z)
        values = jnp.stack([weights @ f, -weights @ log_q, weights @ (log_q - log_q2)])
        return values, (z, weights, values)

    def mean(tree):
        return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), tree)

    slopes, (z, weights, values) = jax.jacrev(of_logs, (0, 1), has_aux=True)(lam, lam2)
    of_f, of_entropy, of_kl = (jax.tree.map(lambda leaf, i=i: leaf[i], slopes) for i in range(3))
    scores = jax.vmap(jax.grad(family.log_prob), (None, 0))(lam, z)
    found = {"score": mean(scores), "moments": mean(moments(name, z)), "f_slope": of_f[0]}
    if known := family.traits.get(Entropy):
        found["entropy"] = jax.value_and_grad(known.value)(lam), (values[1], of_entropy[0])
    if known := family.traits.get(Kl):
        ours = jax.value_and_grad(known.value, (0, 1))
        found |= {"kl": (ours(lam, lam2), (values[2], of_kl)), "own_kl": ours(lam, lam)}
    if known := family.traits.get(Moments):
        first, second = mean(z), mean(jax.tree.map(jnp.square, z))
        variance = jax.tree.map(lambda m, s: s - m**2, first, second)
        found["closed_moments"] = (known.mean(lam), known.variance(lam)), (first, variance)
    return found


def _of_natural_steps(fixture, lam, lam2):
    """{rate: (log q at the nodes after a step along -KL(. || q(lam2)), where it should be)}: on the
    straight line between the natural parameters, at rate 1 in lam2 itself.
    """
    family = fixture.family
    if (known := family.traits.get(Natural)) is None:
        return {}
    z, _ = fine_quadrature(fixture, lam)
    slope = jax.grad(lambda lam: -need(family, Kl).value(lam, lam2))(lam)
    start, end = log_probs(family, lam, z), log_probs(family, lam2, z)

    def after(rate):
        new = log_probs(family, known.step(lam, slope, jnp.asarray(rate)), z)
        line = (1.0 - rate) * start + rate * end
        # But for the normaliser, of which nothing is left where the step ends in lam2.
        return (new, line) if rate == 1.0 else (new - new[0], line - line[0])

    return {"natural": {rate: after(rate) for rate in RATES}}
