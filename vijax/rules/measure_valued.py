"""Differentiate the measure: the derivative of q's density is a difference of two densities, and f
is compared between them.
"""

import jax
import jax.numpy as jnp

from vijax.rules.base import draw, evaluate, evaluate_at, from_gradient, mean_aux, rule
from vijax.types import Aux, Requirements, Rule


def measure_valued() -> Rule:
    """Measure-valued gradient, one coupled pair per number in lam: scale (f(plus) - f(minus)).
    Pflug 1989; Rosca et al. 2019; Mohamed et al. 2020, section 6.

    The pairs come from the family (`weak_derivative`): normal means by Weibull steps and scales by
    Maxwell against normal ones, gamma, exponential, Poisson, Bernoulli. Constants and linear parts
    in f's other coordinates cancel by the coupling.

    Unbiased for: the gradient of the ELBO, in theta and phi; f needs no derivative in z.
    Requires:     a family with `weak_derivative`; a linear objective.
    State:        none.
    Cost:         (1 + 2 P) K evaluations of the integrand per datum, P the numbers in lam; no
                  derivative in z.
    """

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        draw_key, pair_key = jax.random.split(key)
        fixed = jax.lax.stop_gradient(lam)
        drawn = draw(draw_key, family, fixed, num_samples)
        values, aux = evaluate(integrand, drawn)

        def one(keys, z):
            pair = family.weak_derivative(keys[0], fixed, z)

            def at(points, leaf):
                flat = jax.tree.map(lambda p: p.reshape((leaf.size, *p.shape[leaf.ndim :])), points)
                # Both points of a pair see the same randomness inside the integrand.
                return evaluate_at(integrand, family, fixed, flat, keys[1])[0].reshape(leaf.shape)

            leaves, tree = jax.tree.flatten(fixed)
            split = zip(leaves, *(tree.flatten_up_to(part) for part in pair), strict=True)
            return tree.unflatten(
                [scale * (at(plus, leaf) - at(minus, leaf)) for leaf, plus, minus, scale in split]
            )

        keys = jax.vmap(lambda k: jax.random.split(k, 2))(jax.random.split(pair_key, num_samples))
        gradient = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(one)(keys, drawn.z))
        return from_gradient(jnp.mean(values), lam, gradient), Aux((), mean_aux(aux))

    requires = Requirements(
        paper="Pflug 1989; Rosca et al. 2019",
        weak_derivative=True,
        linear_objective=True,
        evaluations="(1+2P)K",
        advice=(
            "Write score() for it, or rules per block so that only blocks that have one use "
            "this rule."
        ),
    )
    return rule("measure_valued()", requires, surrogate)
