"""Exact expectation over a finite support: no sampling, no variance."""

import jax
import jax.numpy as jnp

from vijax.families import Density, FiniteSupport, log_probs, need
from vijax.rules.base import evaluate, rule
from vijax.types import (
    Array,
    Aux,
    Integrand,
    Key,
    PyTree,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
)


def enumerated() -> Rule:
    """Sum over every value of z, weighted by q(z); differentiated exactly.

    `num_samples` means nothing to it: nested under or over sampling rules, those draw the samples.

    Unbiased for: the gradient of the ELBO (zero variance when it stands alone), in theta and phi.
    Requires:     a support of at most 65,536 points; a linear objective.
    State:        none.
    Cost:         one evaluation of the integrand per point of the support.
    """

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        z, log_q = weighed_support(q)
        values, aux = evaluate(integrand, Sample(z, log_q, jax.random.split(key, log_q.shape[0])))
        probs = jnp.exp(log_q)
        return jnp.vdot(probs, values), Aux((), weighted_aux(probs, aux))

    requires = Requirements(
        needs=(FiniteSupport, Density),
        linear=True,
        draws=False,
        twice=True,
        affine=False,
        evaluations="S",
        paper="exact",
        advice="Write score() instead.",
    )
    return rule("enumerated()", requires, surrogate)


def weighed_support(q: Q) -> tuple[PyTree, Array]:
    """Every value of z, leaves [S, ...], and log q of each [S], live in lam."""
    z = need(q.family, FiniteSupport).values()
    return z, log_probs(q.family, q.lam, z)


def weighted_aux(weights: Array, aux: PyTree) -> PyTree:
    """The integrand's aux, leaves [K, ...], summed with these weights [K]; no derivative flows
    through it.
    """
    return jax.tree.map(
        lambda leaf: jax.lax.stop_gradient(jnp.tensordot(weights, leaf, axes=1)), aux
    )
