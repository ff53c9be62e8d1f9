"""Exact expectation over a finite support: no sampling, no variance."""

import jax
import jax.numpy as jnp

from vijax.rules.base import evaluate, rule
from vijax.types import Aux, Requirements, Rule, Sample


def enumerated() -> Rule:
    """Sum over every value of z, weighted by q(z); differentiated exactly.

    `num_samples` means nothing to it: nested under or over sampling rules, those draw the samples.

    Unbiased for: the gradient of the ELBO (zero variance when it stands alone), in theta and phi.
    Requires:     a support of at most 65,536 points; a linear objective.
    State:        none.
    Cost:         one evaluation of the integrand per point of the support.
    """

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        z = family.support()
        log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, z)
        values, aux = evaluate(integrand, Sample(z, log_q, jax.random.split(key, log_q.shape[0])))
        probs = jnp.exp(log_q)
        averaged = jax.tree.map(
            lambda leaf: jax.lax.stop_gradient(jnp.tensordot(probs, leaf, axes=1)), aux
        )
        return jnp.vdot(probs, values), Aux((), averaged)

    advice = "Write score() instead."
    requires = Requirements(
        paper="exact",
        evaluations="S",
        finite_support=True,
        linear_objective=True,
        draws=False,
        advice=advice,
    )
    return rule("enumerated()", requires, surrogate)
