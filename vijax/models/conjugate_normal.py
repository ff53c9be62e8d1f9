"""The conjugate normal model: the smallest model in which everything is known exactly."""

import math

import chex
import jax
import jax.numpy as jnp

from vijax import densities
from vijax.families import diag_normal, mean, variance
from vijax.inference import Model, Prior
from vijax.models.base import latent_model
from vijax.models.normal_prior import check_positive
from vijax.models.traits import SufficientStatistics
from vijax.types import Array, Key, PyTree, Q, Scalar


def conjugate_normal(dim: int, *, noise_scale: float = 1.0) -> Model:
    """Z ~ Normal(loc, diag(scale)^2), x | z ~ Normal(z, noise_scale^2 I), with loc and scale
    learned.

    theta: `loc` [D], `log_scale` [D]. z: [D]. x: [D]. Posterior: `diag_normal(D)`. The evidence,
    Normal(x; loc, scale^2 + noise_scale^2), is largest at the data's mean and its variance less the
    noise's.

    Args:
      dim: D.
      noise_scale: known standard deviation of x given z, in data units.
    """
    check_positive("conjugate_normal", dim=dim, noise_scale=noise_scale)
    log_noise = math.log(noise_scale)

    def init(key: Key) -> PyTree:
        return {"loc": jnp.zeros(dim), "log_scale": jnp.zeros(dim)}

    def log_lik(theta: PyTree, z: Array, x: Array) -> Scalar:
        chex.assert_shape([z, x], (dim,))
        return jnp.sum(densities.normal(x, z, log_noise))

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[Array, Array]:
        key_z, key_x = jax.random.split(key)
        z = theta["loc"][None, :] + jnp.exp(theta["log_scale"])[None, :] * jax.random.normal(
            key_z, (num_data, dim)
        )
        return z, z + noise_scale * jax.random.normal(key_x, (num_data, dim))

    def log_evidence(theta: PyTree, x: Array) -> Scalar:
        log_scale = 0.5 * jnp.log(jnp.exp(2.0 * theta["log_scale"]) + noise_scale**2)
        return jnp.sum(densities.normal(x, theta["loc"], log_scale))

    def posterior(theta: PyTree, x: Array) -> PyTree:
        precision = jnp.exp(-2.0 * theta["log_scale"]) + noise_scale**-2
        loc = (theta["loc"] * jnp.exp(-2.0 * theta["log_scale"]) + x * noise_scale**-2) / precision
        return {"loc": loc, "log_scale": -0.5 * jnp.log(precision)}

    prior = Prior(
        diag_normal(dim), lambda theta: {"loc": theta["loc"], "log_scale": theta["log_scale"]}
    )
    return latent_model(
        init,
        log_lik=log_lik,
        prior=prior,
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
        traits=[SufficientStatistics(_statistics, _maximize, _expected)],
    )


def _statistics(q: Q, x: Array) -> PyTree:
    loc = mean(q.family, q.lam)
    return {"first": loc, "second": jnp.square(loc) + variance(q.family, q.lam)}


def _expected(theta: PyTree) -> PyTree:
    loc = theta["loc"]
    return {"first": loc, "second": jnp.square(loc) + jnp.exp(2.0 * theta["log_scale"])}


def _maximize(theta: PyTree, mean: PyTree) -> PyTree:
    loc = mean["first"]
    return {"loc": loc, "log_scale": 0.5 * jnp.log(mean["second"] - jnp.square(loc))}
