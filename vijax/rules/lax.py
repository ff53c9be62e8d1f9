"""Differentiate a learned critic through the sampler, and log q for what the critic misses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax.networks import as_network
from vijax.rules.base import evaluate_at, from_gradient, mean_aux, reduce_variance, rule
from vijax.types import Aux, PyTree, Requirements, Rule, Scalar


def lax(
    critic: object,
    *,
    example: PyTree = None,
    inputs: Callable[[PyTree, PyTree], PyTree] = lambda z, x: z,
) -> Rule:
    """(f(z) - c(z)) dlog q(z)/dlam + dc(z)/dz dz/dlam, the critic c trained on the variance.
    Grathwohl et al. 2018, eq. 6.

    For integrands without a useful derivative in z. With c = f it is the path derivative, with c =
    0 the score function.

    Args:
      critic: `inputs(z, x)` -> one number; a flax module or an (init, apply) pair, see
        `networks.as_network`.
      example: one such input (or its `jax.ShapeDtypeStruct`), for modules that are initialised by a
        call.
      inputs: what the critic sees of a draw and its datum; default z alone.

    Unbiased for: the gradient of the ELBO, in theta and phi, whatever the critic.
    Requires:     a differentiable sampler; a linear objective.
    State:        none; the critic's parameters are in `params.control`.
    Cost:         K evaluations of the integrand per datum, no derivative in z; the critic's second
                  derivatives.
    """
    net = as_network(critic, example)

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        noise_key, value_key = jax.random.split(key)
        fixed, noise = jax.lax.stop_gradient(lam), family.noise(noise_key, num_samples)
        z, _ = jax.vmap(family.transport, in_axes=(None, 0))(fixed, noise)
        values, aux = evaluate_at(integrand, family, lam, z, value_key)
        stopped, datum = jax.lax.stop_gradient(values), jax.lax.stop_gradient(x)

        def gradient(control: PyTree) -> PyTree:
            def judge(z: PyTree) -> Scalar:
                return jnp.reshape(net.apply(control, inputs(z, datum)), ())

            left = stopped - jax.vmap(judge)(z)

            def total(lam: PyTree) -> Scalar:
                log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, z)
                moved, _ = jax.vmap(family.transport, in_axes=(None, 0))(lam, noise)
                return jnp.mean(left * log_q + jax.vmap(judge)(moved))

            return jax.grad(total)(fixed)

        value = from_gradient(jnp.mean(values), lam, gradient(control))
        return reduce_variance(value, control, gradient), Aux((), mean_aux(aux))

    requires = Requirements(
        paper="Grathwohl et al. 2018",
        reparameterized=True,
        linear_objective=True,
        advice="Write score() for it.",
    )
    return rule("lax()", requires, surrogate, init=net.init)
