"""Bayesian logistic regression: no exact evidence, the standard test of global-latent inference."""

from collections.abc import Callable

import chex
import jax

from vijax import densities
from vijax.families import diag_normal
from vijax.inference import Model
from vijax.models.base import bayes_model
from vijax.models.data import check_bits
from vijax.models.normal_prior import check_positive, isotropic_normal_prior
from vijax.types import Array, Family, Key, PyTree, Scalar


def logistic_regression(
    dim: int, *, prior_scale: float = 1.0, prior_family: Callable[[int], Family] = diag_normal
) -> Model:
    """W ~ Normal(0, prior_scale^2 I), label | w ~ Bernoulli(sigmoid(features . w)). Jaakkola and
    Jordan 2000.

    theta: (). w: [D]. x: {"features": [D], "label": [] in {0, 1}, float}; append a 1 to the
    features for an intercept.

    Args:
      dim: D.
      prior_scale: standard deviation of each weight.
      prior_family: `diag_normal` or `full_normal`, that of the guide, for closed-form KL.
    """
    check_positive("logistic_regression", dim=dim, prior_scale=prior_scale)

    def log_lik(theta: PyTree, w: Array, x: PyTree) -> Scalar:
        chex.assert_shape([w, x["features"]], (dim,))
        return densities.bernoulli(x["label"], x["features"] @ w)

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[Array, PyTree]:
        key_w, key_features, key_label = jax.random.split(key, 3)
        w = prior_scale * jax.random.normal(key_w, (dim,))
        features = jax.random.normal(key_features, (num_data, dim))
        label = jax.random.bernoulli(key_label, jax.nn.sigmoid(features @ w)).astype(features.dtype)
        return w, {"features": features, "label": label}

    def check(x: PyTree) -> None:
        check_bits(x["label"], "logistic_regression: labels", "For -1 and 1 write (label + 1) / 2.")

    prior = isotropic_normal_prior(prior_family(dim), scale=prior_scale)
    return bayes_model(prior, log_lik, simulate=simulate, check=check)
