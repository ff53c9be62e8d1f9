"""Bayesian linear regression with known noise: exact evidence and posterior."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from vijax import densities
from vijax.families import from_covariance, full_normal
from vijax.inference import Model
from vijax.models.base import bayes_model
from vijax.models.normal_prior import check_positive, isotropic_normal_prior
from vijax.types import Array, Family, Key, PyTree, Scalar


def linear_regression(
    dim: int,
    *,
    noise_scale: float = 1.0,
    prior_scale: float = 1.0,
    prior_family: Callable[[int], Family] = full_normal,
) -> Model:
    """W ~ Normal(0, prior_scale^2 I), label | w ~ Normal(features . w, noise_scale^2). Bishop 2006,
    section 3.3.

    theta: (). w: [D]. x: {"features": [D], "label": []}; append a 1 to the features for an
    intercept. Posterior: `full_normal(D)`; evidence and posterior take the whole data set, leaves
    [N, ...].

    Args:
      dim: D.
      noise_scale: standard deviation of the label.
      prior_scale: standard deviation of each weight.
      prior_family: `full_normal` or `diag_normal`, that of the guide, for closed-form KL.
    """
    check_positive("linear_regression", dim=dim, noise_scale=noise_scale, prior_scale=prior_scale)
    log_noise, log_prior_scale = math.log(noise_scale), math.log(prior_scale)

    def log_lik(theta: PyTree, w: Array, x: PyTree) -> Scalar:
        chex.assert_shape([w, x["features"]], (dim,))
        return densities.normal(x["label"], x["features"] @ w, log_noise)

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[Array, PyTree]:
        key_w, key_features, key_noise = jax.random.split(key, 3)
        w = prior_scale * jax.random.normal(key_w, (dim,))
        features = jax.random.normal(key_features, (num_data, dim))
        label = features @ w + noise_scale * jax.random.normal(key_noise, (num_data,))
        return w, {"features": features, "label": label}

    def moments(x: PyTree) -> tuple[Array, Array]:
        """The posterior's Cholesky factor of the precision [D, D] and mean [D]."""
        features, label = x["features"], x["label"]
        precision = (
            prior_scale**-2 * jnp.eye(dim, dtype=features.dtype)
            + noise_scale**-2 * features.T @ features
        )
        factor = jnp.linalg.cholesky(precision)
        return factor, jax.scipy.linalg.cho_solve(
            (factor, True), noise_scale**-2 * features.T @ label
        )

    def log_evidence(theta: PyTree, x: PyTree) -> Scalar:
        factor, mean = moments(x)
        at_mean = jnp.sum(densities.normal(x["label"], x["features"] @ mean, log_noise))
        at_mean += jnp.sum(densities.normal(mean, 0.0, log_prior_scale))
        # p(x) = p(x, w) / p(w | x) at the mean, where the posterior's density is its normalising
        # constant.
        return at_mean + 0.5 * dim * densities.LOG_2PI - jnp.sum(jnp.log(jnp.diagonal(factor)))

    def posterior(theta: PyTree, x: PyTree) -> PyTree:
        factor, mean = moments(x)
        return from_covariance(
            mean, jax.scipy.linalg.cho_solve((factor, True), jnp.eye(dim, dtype=factor.dtype))
        )

    prior = isotropic_normal_prior(prior_family(dim), scale=prior_scale)
    return bayes_model(
        prior, log_lik, simulate=simulate, log_evidence=log_evidence, posterior=posterior
    )
