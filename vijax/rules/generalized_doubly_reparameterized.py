"""Doubly reparameterize the prior's parameters too, from samples that are not the prior's own."""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp

from vijax.noise import IID, Noise
from vijax.path_weights import derivatives, exact
from vijax.rules.base import check_noise, check_requirements, draw, evaluate, rule
from vijax.rules.doubly_reparameterized import path_derivative
from vijax.types import Family, PyTree, Requirements, Rule


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
    requires = Requirements(
        paper="Bauer and Mnih 2021",
        differentiates_z=True,
        reparameterized=True,
        unbiased=noise.unbiased,
        advice=advice,
    )

    def check(family, objective, num_samples, prior):
        check_requirements(name, requires, family, objective, num_samples, prior)
        check_noise(name, requires, noise, family, objective, num_samples)
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
        if inverse_of(ours) is None:
            raise ValueError(
                f"{name}: the sampler of {ours.name} has no inverse, so no noise is known for q's "
                f"samples. {advice}"
            )

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        ours = family if prior_family is None else prior_family
        drawn = draw(key, family, lam, num_samples, noise)
        stopped_lam, stopped_prior = jax.lax.stop_gradient((lam, prior))
        each_log_q, each_log_p = (jax.vmap(f.log_prob, in_axes=(None, 0)) for f in (family, ours))

        def log_weights(z):
            return evaluate(integrand, drawn._replace(z=z, log_q=each_log_q(stopped_lam, z)))

        z = jax.lax.stop_gradient(drawn.z)
        first, second = derivatives(objective, jax.lax.stop_gradient(log_weights(z)[0]))

        def path(z):
            ratio = each_log_q(stopped_lam, z) - each_log_p(stopped_prior, z)
            return jnp.vdot(second, log_weights(z)[0]) + jnp.vdot(first, ratio)

        implied = jax.vmap(cast(Callable, inverse_of(ours)), in_axes=(None, 0))(stopped_prior, z)
        moved = jax.vmap(ours.transport, in_axes=(None, 0))(prior, implied)[0]
        push = jax.lax.stop_gradient(jax.grad(path)(z))
        by_path = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, push, moved)))
        by_score = jnp.vdot(
            first, each_log_p(prior, z)
        )  # what the integrand's own log p(z; eta) contributes
        value, aux = path_derivative(objective, exact(), log_weights, drawn.z)
        change = by_path - by_score
        return value + (change - jax.lax.stop_gradient(change)), aux

    settings = ([] if prior_family is None else [prior_family.name]) + (
        [] if noise is IID else [f"noise={noise.name}"]
    )
    name = f"generalized_doubly_reparameterized({', '.join(settings)})"
    return rule(name, requires, surrogate, check=check, noise=noise)


def inverse_of(family: Family) -> Callable[[PyTree, PyTree], PyTree] | None:
    """(lam, z) -> the noise that the family's `transport` takes to z, block by block; None if a
    part has no inverse.
    """
    if family.inverse is not None or family.blocks is None or family.block_lam is None:
        return family.inverse
    parts = {name: inverse_of(block) for name, block in family.blocks.items()}
    if any(part is None for part in parts.values()):
        return None
    block_lam = family.block_lam
    return lambda lam, z: {
        name: cast(Callable, part)(block_lam(name, lam, z), z[name]) for name, part in parts.items()
    }
