"""Probabilistic principal component analysis: exact evidence, posterior, and a known maximum of the
evidence.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from vijax import densities
from vijax.families import NormalMoments, from_covariance, full_normal, need
from vijax.inference import Model
from vijax.models.base import latent_model
from vijax.models.normal_prior import check_positive, isotropic_normal_prior
from vijax.models.traits import SufficientStatistics
from vijax.types import Array, Family, Key, PyTree, Q, Scalar


def probabilistic_pca(
    observed_dim: int, latent_dim: int, *, prior_family: Callable[[int], Family] = full_normal
) -> Model:
    """Z ~ Normal(0, I_D), x | z ~ Normal(W z + b, s^2 I_P). Tipping and Bishop 1999, eq. 2-3.

    theta: `weights` [P, D] = W, `bias` [P] = b, `log_noise` [] = log s. z: [D]. x: [P], in data
    units. Posterior: `full_normal(D)`. The evidence does not change when W is multiplied by a
    rotation from the right: compare W W^T + s^2 I.

    Args:
      observed_dim: P.
      latent_dim: D.
      prior_family: `full_normal` or `diag_normal`, that of the guide, for closed-form KL.
    """
    check_positive("probabilistic_pca", observed_dim=observed_dim, latent_dim=latent_dim)

    def init(key: Key) -> PyTree:
        weights = 0.1 * jax.random.normal(key, (observed_dim, latent_dim))
        return {"weights": weights, "bias": jnp.zeros(observed_dim), "log_noise": jnp.zeros(())}

    def log_lik(theta: PyTree, z: Array, x: Array) -> Scalar:
        chex.assert_shape(theta["weights"], (*x.shape, *z.shape))
        mean = theta["weights"] @ z + theta["bias"]
        return jnp.sum(densities.normal(x, mean, theta["log_noise"]))

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[Array, Array]:
        key_z, key_x = jax.random.split(key)
        z = jax.random.normal(key_z, (num_data, latent_dim))
        noise = jnp.exp(theta["log_noise"]) * jax.random.normal(key_x, (num_data, observed_dim))
        return z, z @ theta["weights"].T + theta["bias"][None, :] + noise

    def log_evidence(theta: PyTree, x: Array) -> Scalar:
        factor, mean = posterior_moments(theta["weights"], theta["log_noise"], x - theta["bias"])
        # p(x) = p(x, z) / p(z | x) at the mean: D x D algebra, stable for small s.
        return (
            log_lik(theta, mean, x)
            + jnp.sum(densities.standard_normal(mean))
            + 0.5 * latent_dim * densities.LOG_2PI
            - jnp.sum(jnp.log(jnp.diagonal(factor)))
        )

    def posterior(theta: PyTree, x: Array) -> PyTree:
        factor, mean = posterior_moments(theta["weights"], theta["log_noise"], x - theta["bias"])
        return from_covariance(
            mean, jax.scipy.linalg.cho_solve((factor, True), jnp.eye(latent_dim, dtype=x.dtype))
        )

    prior = isotropic_normal_prior(prior_family(latent_dim))
    return latent_model(
        init,
        log_lik=log_lik,
        prior=prior,
        simulate=simulate,
        log_evidence=log_evidence,
        posterior=posterior,
        traits=[SufficientStatistics(_statistics, _maximize, _expected)],
    )


def posterior_moments(weights: Array, log_noise: Array, residual: Array) -> tuple[Array, Array]:
    """Of z ~ Normal(0, I) given residual ~ Normal(weights z, s^2 I): Cholesky factor of the
    precision [D, D], mean [D].
    """
    inverse_variance = jnp.exp(-2.0 * log_noise)
    precision = (
        jnp.eye(weights.shape[1], dtype=weights.dtype) + inverse_variance * weights.T @ weights
    )
    factor = jnp.linalg.cholesky(precision)
    return factor, jax.scipy.linalg.cho_solve(
        (factor, True), inverse_variance * weights.T @ residual
    )


def regression_statistics(q: Q, x: Array) -> PyTree:
    """Of x [P] on z and a constant: `cross` E[x (z, 1)'] [P, D+1], `second` E[(z, 1) (z, 1)'] [D+1,
    D+1].
    """
    moments = need(q.family, NormalMoments)
    loc = jnp.append(moments.mean(q.lam), 1.0)
    covariance = jnp.pad(moments.covariance(q.lam), (0, 1))
    return {"cross": jnp.outer(x, loc), "second": jnp.outer(loc, loc) + covariance}


def _statistics(q: Q, x: Array) -> PyTree:
    return regression_statistics(q, x) | {"square": x @ x}


def _expected(theta: PyTree) -> PyTree:
    observed_dim, latent_dim = theta["weights"].shape
    cross = jnp.column_stack([theta["weights"], theta["bias"]])
    second = jnp.eye(latent_dim + 1, dtype=cross.dtype)
    square = jnp.sum(jnp.square(cross)) + observed_dim * jnp.exp(2.0 * theta["log_noise"])
    return {"cross": cross, "second": second, "square": square}


def _maximize(theta: PyTree, mean: PyTree) -> PyTree:
    """Tipping and Bishop 1999, eq. 27-28 with the bias as one more weight."""
    both = jnp.linalg.solve(mean["second"], mean["cross"].T).T
    variance = (mean["square"] - jnp.sum(both * mean["cross"])) / both.shape[0]
    return {"weights": both[:, :-1], "bias": both[:, -1], "log_noise": 0.5 * jnp.log(variance)}
