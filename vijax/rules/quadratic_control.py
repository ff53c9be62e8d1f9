"""Control variates from a quadratic function of z, whose expectation under a normal q is known with
its gradient.

One idea: take g of a quadratic fq off the sampled gradient and add the exact gradient of E_q[fq].
Settings: where fq comes from, a surface of `vijax.rules.surfaces`, and which carrier makes the
sampled gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.families import Density, NormalMoments, Reparameterized, log_probs, need, transports
from vijax.noise import IID, Noise
from vijax.rules.base import evaluate_at, learned_gradient, no_aux, rule, stopped
from vijax.rules.surfaces import Quadratic, Surface, taylor
from vijax.types import (
    Array,
    Aux,
    Family,
    Integrand,
    Key,
    PyTree,
    Q,
    Requirements,
    Rule,
    Scalar,
    Setting,
)


class Samples(NamedTuple):
    """What a carrier sees: K draws with the integrand's values and z-derivatives there, all of them
    constants.

    Attributes:
      noise: leaves [K, ...]
      z: [K, D]
      values: [K]
      slopes: [K, D]
    """

    noise: PyTree
    z: Array
    values: Array
    slopes: Array


Carrier = Callable[[Family, PyTree, Samples, Quadratic], Scalar]
"""A scalar whose derivative in lam is the sampled gradient of the integrand less the quadratic."""


def by_path(family: Family, lam: PyTree, samples: Samples, quadratic: Quadratic) -> Scalar:
    """Through the sampler: the paths of the integrand less the quadratic."""
    slopes = samples.slopes - jax.vmap(jax.grad(quadratic.at))(samples.z)
    z, _ = transports(family, lam, samples.noise)
    return jnp.vdot(slopes, z) / samples.values.shape[0]


def by_score(family: Family, lam: PyTree, samples: Samples, quadratic: Quadratic) -> Scalar:
    """By the score function: the values of the integrand less the quadratic."""
    values = samples.values - jax.vmap(quadratic.at)(samples.z)
    return jnp.vdot(values, log_probs(family, lam, samples.z)) / samples.values.shape[0]


def quadratic_control(
    surface: Surface | None = None, *, carrier: Carrier = by_path, noise: Noise = IID
) -> Rule:
    """Gradient of (f - fq) by samples plus that of E_q[fq] exactly, fq quadratic. With `taylor()`
    the linearised-gradient control variate (Miller et al. 2017), and by the score the delta-method
    one (Paisley et al. 2012); with `learned_quadratic()` the surrogate of Geffner and Domke 2020.

    f contains -log q with q's parameters stopped, itself quadratic: with `taylor(2)` there is no
    variance at all where the log-joint is quadratic.

    Args:
      surface: where fq comes from; default `taylor()`.
      carrier: `by_path` or `by_score`.
      noise: see `vijax.noise`.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a normal family with a differentiable sampler; a linear objective.
    State:        none; `learned_quadratic` has parameters in `params.control`.
    Cost:         K evaluations of the integrand per datum with one backward pass, and those of
                  `surface`.
    """
    chosen = taylor() if surface is None else surface

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        family, fixed = stopped(q)
        noise_key, value_key, mean_key = jax.random.split(key, 3)
        eps = noise.draw(noise_key, family, setting.num_samples)
        z, _ = transports(family, fixed, eps)
        values, pull, aux = jax.vjp(
            lambda z: evaluate_at(integrand, q, z, value_key), z, has_aux=True
        )
        samples = jax.lax.stop_gradient(Samples(eps, z, values, pull(jnp.ones_like(values))[0]))
        mean = need(family, NormalMoments).mean(fixed)

        def at_mean(z: Array) -> Scalar:
            return evaluate_at(integrand, q, z[None], mean_key)[0][0]

        def gradient(control: PyTree) -> PyTree:
            quadratic = chosen.quadratic(jax.random.fold_in(key, 3), control, at_mean, mean)

            def total(lam: PyTree) -> Scalar:
                return carrier(family, lam, samples, quadratic) + quadratic.mean(family, lam)

            return jax.grad(total)(fixed)

        value = learned_gradient(jnp.mean(values), q.lam, setting.control, gradient)
        return value, no_aux(aux)

    settings = (
        [chosen.name]
        + (["by_score"] if carrier is by_score else [])
        + ([] if noise is IID else [f"noise={noise.name}"])
    )
    requires = Requirements(
        needs=(NormalMoments, Reparameterized, Density),
        linear=True,
        in_z=carrier is not by_score,
        unbiased=noise.unbiased,
        evaluations=chosen.evaluations,
        paper=chosen.paper,
        advice="Write pathwise() or score() for it.",
    )
    return rule(
        f"quadratic_control({', '.join(settings)})",
        requires,
        surrogate,
        noise=noise,
        init=chosen.init,
    )
