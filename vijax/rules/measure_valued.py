"""Differentiate the measure: the derivative of q's density is a difference of two densities, and f
is compared between them.
"""

import jax
import jax.numpy as jnp

from vijax.families import Density, WeakDerivative, need
from vijax.rules.base import draw, evaluate, evaluate_at, from_gradient, no_aux, rule, stopped
from vijax.types import Array, Aux, Integrand, Key, PyTree, Q, Requirements, Rule, Scalar, Setting


def measure_valued() -> Rule:
    """Measure-valued gradient, one coupled pair per number in lam: scale (f(plus) - f(minus)).
    Pflug 1989; Rosca et al. 2019; Mohamed et al. 2020, section 6.

    The pairs come from the family (its trait `WeakDerivative`): normal means by Weibull steps and
    scales by Maxwell against normal ones, gamma, exponential, Poisson, Bernoulli. Constants and
    linear parts in f's other coordinates cancel by the coupling.

    Unbiased for: the gradient of the ELBO, in theta and phi; f needs no derivative in z.
    Requires:     a family with the WeakDerivative trait; a linear objective.
    State:        none.
    Cost:         (1 + 2 P) K evaluations of the integrand per datum, P the numbers in lam; no
                  derivative in z.
    """

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        draw_key, pair_key = jax.random.split(key)
        drawn = draw(draw_key, stopped(q), setting.num_samples)
        values, aux = evaluate(integrand, drawn)
        weak = need(q.family, WeakDerivative)

        def one(keys: Key, z: PyTree) -> PyTree:
            lam = stopped(q).lam
            pairs = weak.pairs(keys[0], lam, z)

            def difference(leaf: Array, plus: PyTree, minus: PyTree, scale: Array) -> Array:
                def at(points: PyTree) -> Array:
                    flat = jax.tree.map(
                        lambda p: p.reshape((leaf.size, *p.shape[leaf.ndim :])), points
                    )
                    # Both points of a pair see the same randomness inside the integrand.
                    return evaluate_at(integrand, q, flat, keys[1])[0].reshape(leaf.shape)

                return scale * (at(plus) - at(minus))

            return jax.tree.map(difference, lam, pairs.plus, pairs.minus, pairs.scale)

        keys = jax.vmap(jax.random.split)(jax.random.split(pair_key, setting.num_samples))
        gradient = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(one)(keys, drawn.z))
        return from_gradient(jnp.mean(values), q.lam, gradient), no_aux(aux)

    requires = Requirements(
        needs=(WeakDerivative, Density),
        linear=True,
        evaluations="(1+2P)K",
        paper="Pflug 1989; Rosca et al. 2019",
        advice=(
            "Write score() for it, or rules per block so that only blocks that have one use "
            "this rule."
        ),
    )
    return rule("measure_valued()", requires, surrogate)
