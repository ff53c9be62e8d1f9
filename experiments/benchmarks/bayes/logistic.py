"""Bayesian logistic regression: data, model, and gradients worked out on paper."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_breast_cancer

import vijax as vj
from vijax import densities


class Regression(NamedTuple):
    """Logistic regression data.

    Attributes:
      x: [N, D], standardised.
      y: [N] in {0, 1}.
    """

    x: jax.Array
    y: jax.Array


def cancer() -> Regression:
    """The 569 tumours of scikit-learn, 30 features."""
    x, y = load_breast_cancer(return_X_y=True)
    x = np.asarray(x)
    return Regression(
        jnp.asarray((x - x.mean(0)) / x.std(0), jnp.float32), jnp.asarray(y, jnp.float32)
    )


def synthetic(num_data: int, dim: int) -> Regression:
    """Simulated from the model."""
    random = np.random.default_rng(0)
    x = random.normal(size=(num_data, dim))
    y = random.random(num_data) < 1.0 / (1.0 + np.exp(-x @ random.normal(size=dim)))
    return Regression(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))


def logistic_model() -> vj.Model:
    """W ~ Normal(0, I), y ~ Bernoulli(sigmoid(w x)). `w @ x`, not `x @ w`: over samples and data it
    becomes [K, N].
    """
    return vj.models.bayes_model(
        lambda theta, w: jnp.sum(densities.standard_normal(w)),
        lambda theta, w, d: densities.bernoulli(d.y, w @ d.x),
    )


def logistic_score(z: jax.Array, data: Regression, scale: float = 1.0) -> jax.Array:
    """[K, D] derivative of the log-joint in z [K, D]."""
    return scale * (data.y - jax.nn.sigmoid(z @ data.x.T)) @ data.x - z


def mean_field_gradient(score: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Minus the ELBO's pathwise gradient, by hand."""

    def gradient(lam: Any, noise: jax.Array, *data: Any) -> Any:
        scale = jnp.exp(lam["log_scale"])
        slope = score(lam["loc"] + scale * noise, *data)
        return {"loc": -slope.mean(0), "log_scale": -scale * (slope * noise).mean(0) - 1.0}

    return gradient


def full_rank_gradient(lam: Any, noise: jax.Array, data: Regression) -> Any:
    """The same for z = loc + d (I + U) noise."""
    scale, lower = jnp.exp(lam["log_scale"]), jnp.tril(lam["lower"], -1)
    mixed = noise + noise @ lower.T
    slope = logistic_score(lam["loc"] + scale * mixed, data)
    outer = jnp.tril((slope * scale).T @ noise / noise.shape[0], -1)
    return {
        "loc": -slope.mean(0),
        "log_scale": -scale * (slope * mixed).mean(0) - 1.0,
        "lower": -outer,
    }
