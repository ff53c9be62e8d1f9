"""Doubly reparameterize the prior's parameters too, from samples that are not the prior's own."""

from typing import Any

import jax
import jax.numpy as jnp

from vijax.families import Density, Inverse, Reparameterized, log_probs, need, transports
from vijax.noise import IID, Noise
from vijax.path_weights import derivatives, exact
from vijax.rules.base import draw, evaluate, rule, stopped, zero_valued
from vijax.rules.doubly_reparameterized import path_derivative
from vijax.types import (
    Array,
    Aux,
    Family,
    Integrand,
    Key,
    Objective,
    PyTree,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
)


def generalized_doubly_reparameterized(
    prior_family: Family | None = None, *, noise: Noise = IID
) -> Rule:
    """`doubly_reparameterized()` for q, with the score of the prior's parameters p(z; eta)
    rewritten as a path as well: sum_k R_k dlog p(z_k; eta)/deta becomes sum_k (R_kk dlog_w_k/dz_k +
    R_k dlog(q/p)(z_k)/dz_k) dT(e_k; eta)/deta, where T is the prior's own sampler and e_k the noise
    that it would need for z_k. GDReG, Bauer and Mnih 2021, eq. 9-10.

    phi's gradient is zero, sample by sample, where q is the posterior, eta's where q is the prior
    as well. For a hierarchical q or prior (`families.chain`) the paths run through all of its
    levels. Other parameters of the model keep R_k.

    Args:
      prior_family: of the model's prior (its `Prior.family`); default q's own.
      noise: how the K samples are drawn together, see `vijax.noise`; for the ELBO alone if they
        depend on each other.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     what `doubly_reparameterized` does; an integrand with the term log p(z; eta),
                  once; eta as `prior=`, which the estimator takes from the model; a prior whose
                  sampler can be inverted (normals, their products, chains).
    State:        none.
    Cost:         K evaluations of the integrand per datum, two backward passes, K^2 scalars.
    """
    advice = "Write doubly_reparameterized(), which leaves the prior's parameters to the score."
    settings = ([] if prior_family is None else [prior_family.name]) + (
        [] if noise is IID else [f"noise={noise.name}"]
    )
    name = f"generalized_doubly_reparameterized({', '.join(settings)})"

    def check(family: Family, objective: Objective, num_samples: Any, prior: Family | None) -> None:
        ours = family if prior_family is None else prior_family
        if prior is None:
            raise ValueError(
                f"{name}: the model states no prior for this latent as a family (prior=None). "
                f"{advice}"
            )
        if prior is not family and prior.name != ours.name:
            raise ValueError(
                f"{name} expects a prior {ours.name}, but the model's is {prior.name}: give it as "
                f"prior_family."
            )
        if ours.traits.get(Inverse) is None:
            raise ValueError(
                f"{name}: the sampler of {ours.name} has no inverse, so no noise is known for q's "
                f"samples. {advice}"
            )

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        objective = setting.objective
        prior = Q(q.family if prior_family is None else prior_family, setting.prior)
        drawn = draw(key, q, setting.num_samples, noise)

        def at(z: PyTree) -> Sample:
            return drawn._replace(z=z, log_q=log_probs(q.family, stopped(q).lam, z))

        def log_weights(z: PyTree) -> Array:
            return evaluate(integrand, at(z))[0]

        z = jax.lax.stop_gradient(drawn.z)
        first, second = derivatives(objective, jax.lax.stop_gradient(log_weights(z)))

        def path(z: PyTree) -> Scalar:
            ratio = log_probs(*stopped(q), z) - log_probs(*stopped(prior), z)
            return jnp.vdot(second, log_weights(z)) + jnp.vdot(first, ratio)

        inverse = need(prior.family, Inverse).noise
        implied = jax.vmap(inverse, in_axes=(None, 0))(stopped(prior).lam, z)
        moved, _ = transports(*prior, implied)
        push = jax.lax.stop_gradient(jax.grad(path)(z))
        by_path = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, push, moved)))
        # What the integrand's own log p(z; eta) contributes.
        by_score = jnp.vdot(first, log_probs(*prior, z))
        value, aux = path_derivative(objective, exact(), integrand, at, drawn.z)
        return value + zero_valued(by_path - by_score), aux

    requires = Requirements(
        needs=(Reparameterized, Density),
        in_z=True,
        smooth=True,
        unbiased=noise.unbiased,
        paper="Bauer and Mnih 2021",
        advice=advice,
    )
    return rule(name, requires, surrogate, check=check, noise=noise)
