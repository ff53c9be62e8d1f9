"""Differentiate a learned critic through the sampler, and log q for what the critic misses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax.families import Density, Reparameterized, log_probs, transports
from vijax.networks import as_network
from vijax.rules.base import evaluate_at, learned_gradient, no_aux, rule, stopped
from vijax.types import Aux, Integrand, Key, PyTree, Q, Requirements, Rule, Scalar, Setting


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

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        family, fixed = stopped(q)
        noise_key, value_key = jax.random.split(key)
        noise = family.noise(noise_key, setting.num_samples)
        z, _ = transports(family, fixed, noise)
        values, aux = evaluate_at(integrand, q, z, value_key)
        seen, datum = jax.lax.stop_gradient((values, setting.x))

        def gradient(control: PyTree) -> PyTree:
            def judge(z: PyTree) -> Scalar:
                return jnp.reshape(net.apply(control, inputs(z, datum)), ())

            left = seen - jax.vmap(judge)(z)

            def total(lam: PyTree) -> Scalar:
                log_q = log_probs(family, lam, z)
                moved, _ = transports(family, lam, noise)
                return jnp.mean(left * log_q + jax.vmap(judge)(moved))

            return jax.grad(total)(fixed)

        value = learned_gradient(jnp.mean(values), q.lam, setting.control, gradient)
        return value, no_aux(aux)

    requires = Requirements(
        needs=(Reparameterized, Density),
        linear=True,
        paper="Grathwohl et al. 2018",
        advice="Write score() for it.",
    )
    return rule("lax()", requires, surrogate, init=net.init)
