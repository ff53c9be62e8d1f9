"""The hierarchical normal model: a global mean, a local mean per datum, everything exact."""

import math

import chex
import jax
import jax.numpy as jnp

from vijax import densities
from vijax.families import Entropy, diag_normal, mean, need, variance
from vijax.inference import Model, Prior
from vijax.models.base import hierarchical_model
from vijax.models.normal_prior import check_positive, isotropic_normal_prior
from vijax.models.traits import Conditionals
from vijax.types import Array, Key, PyTree, Q, Scalar


def hierarchical_normal(dim: int, *, prior_scale: float = 1.0, noise_scale: float = 1.0) -> Model:
    """W ~ Normal(0, prior_scale^2 I), z_i | w ~ Normal(w, diag(scale)^2), x_i | z_i ~ Normal(z_i,
    noise_scale^2 I).

    The one-way random-effects model, Gelman et al. 2013, section 5.4. theta: `log_scale` [D],
    between data. w, z, x: [D]. Evidence and posterior take the whole data set, x [N, D]; the
    posterior's are the exact marginals {"w": lam, "z": lam with leaves [N, D]} of `diag_normal(D)`.
    A mean-field guide is narrower: its best variances are the inverses of the joint posterior's
    precisions.

    Args:
      dim: D.
      prior_scale: known standard deviation of w, in data units.
      noise_scale: known standard deviation of x given z, in data units.
    """
    check_positive("hierarchical_normal", dim=dim, prior_scale=prior_scale, noise_scale=noise_scale)
    log_prior_scale, log_noise = math.log(prior_scale), math.log(noise_scale)

    def init(key: Key) -> PyTree:
        return {"log_scale": jnp.zeros(dim)}

    def log_lik(theta: PyTree, w: Array, z: Array, x: Array) -> Scalar:
        chex.assert_shape([w, z, x], (dim,))
        return jnp.sum(densities.normal(x, z, log_noise))

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[PyTree, Array]:
        key_w, key_z, key_x = jax.random.split(key, 3)
        w = prior_scale * jax.random.normal(key_w, (dim,))
        z = w[None, :] + jnp.exp(theta["log_scale"])[None, :] * jax.random.normal(
            key_z, (num_data, dim)
        )
        return {"w": w, "z": z}, z + noise_scale * jax.random.normal(key_x, (num_data, dim))

    def global_moments(theta: PyTree, x: Array) -> tuple[Array, Array, Array]:
        """Mean [D] and precision [D] of w given all data, and the variance [D] of one x_i given
        w.
        """
        variance = jnp.exp(2.0 * theta["log_scale"]) + noise_scale**2
        precision = prior_scale**-2 + x.shape[0] / variance
        return jnp.sum(x, axis=0) / variance / precision, precision, variance

    def log_evidence(theta: PyTree, x: Array) -> Scalar:
        mean, precision, variance = global_moments(theta, x)
        likelihood = jnp.sum(densities.normal(x, mean[None, :], 0.5 * jnp.log(variance)[None, :]))
        # p(x) = p(x, w) / p(w | x) at the mean.
        return (
            likelihood
            + jnp.sum(densities.normal(mean, 0.0, log_prior_scale))
            + 0.5 * dim * densities.LOG_2PI
            - 0.5 * jnp.sum(jnp.log(precision))
        )

    def posterior(theta: PyTree, x: Array) -> PyTree:
        mean, precision, variance = global_moments(theta, x)
        # z given w and x has mean (1 - weight) w + weight x and variance weight noise_scale^2.
        weight = jnp.exp(2.0 * theta["log_scale"]) / variance
        loc = ((1.0 - weight) * mean)[None, :] + weight[None, :] * x
        log_scale = 0.5 * jnp.log(weight * noise_scale**2 + jnp.square(1.0 - weight) / precision)
        local = {"loc": loc, "log_scale": jnp.broadcast_to(log_scale, x.shape)}
        return {"w": {"loc": mean, "log_scale": -0.5 * jnp.log(precision)}, "z": local}

    return hierarchical_model(
        isotropic_normal_prior(diag_normal(dim), scale=prior_scale),
        log_lik=log_lik,
        init=init,
        prior_z=Prior(
            diag_normal(dim), lambda theta, w: {"loc": w, "log_scale": theta["log_scale"]}
        ),
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
        traits=[_conditionals(prior_scale, noise_scale)],
    )


def _conditionals(prior_scale: float, noise_scale: float) -> Conditionals:
    """Means weighted by precisions; what a datum adds to q(w) are its precision about w and that
    times the mean of z.
    """
    precision_of_x, log_noise = noise_scale**-2, math.log(noise_scale)

    def local(theta: PyTree, lam: PyTree, x: Array) -> PyTree:
        about = jnp.exp(-2.0 * theta["log_scale"])
        precision = about + precision_of_x
        loc = (about * lam["loc"] + precision_of_x * x) / precision
        return {"loc": loc, "log_scale": -0.5 * jnp.log(precision)}

    def statistics(q: Q, x: Array) -> PyTree:
        return {"count": jnp.ones_like(x), "first": mean(q.family, q.lam)}

    def update(theta: PyTree, lam: PyTree, mean: PyTree, num_data: int) -> PyTree:
        scale = num_data * jnp.exp(-2.0 * theta["log_scale"])
        precision = prior_scale**-2 + scale * mean["count"]
        return {"loc": scale * mean["first"] / precision, "log_scale": -0.5 * jnp.log(precision)}

    def implied(theta: PyTree, lam: PyTree, num_data: int) -> PyTree:
        scale = num_data * jnp.exp(-2.0 * theta["log_scale"])
        precision = jnp.exp(-2.0 * lam["log_scale"])
        count = (precision - prior_scale**-2) / scale
        return {"count": count, "first": precision * lam["loc"] / scale}

    def bound(theta: PyTree, lam: PyTree, q: Q, x: Array) -> Scalar:
        loc, spread = mean(q.family, q.lam), variance(q.family, q.lam)
        around = spread + jnp.exp(2.0 * lam["log_scale"])
        prior = densities.normal(loc, lam["loc"], theta["log_scale"])
        prior = prior - 0.5 * around * jnp.exp(-2.0 * theta["log_scale"])
        likelihood = densities.normal(x, loc, log_noise) - 0.5 * spread * precision_of_x
        return jnp.sum(prior + likelihood) + need(q.family, Entropy).value(q.lam)

    return Conditionals(local, statistics, update, implied, bound)
