"""The Gaussian mixture with its assignment as a local latent: exact by enumeration."""

import math

import chex
import jax
import jax.numpy as jnp

from vijax import densities
from vijax.families import categorical, mean
from vijax.inference import Model, Prior
from vijax.models.base import latent_model
from vijax.models.normal_prior import check_positive
from vijax.models.traits import SufficientStatistics
from vijax.types import Array, Key, PyTree, Q, Scalar


def gaussian_mixture(num_components: int, observed_dim: int, *, init_spread: float = 1.0) -> Model:
    """Z ~ Categorical(softmax(logits)), x | z = c ~ Normal(loc_c, diag(scale_c)^2). Bishop 2006,
    section 9.2.

    theta: `logits` [C], `loc` [C, P], `log_scale` [C, P]. z: one-hot [C]. x: [P]. Posterior:
    `categorical(C)`, the responsibilities. Extended linearly to relaxed z, as relaxations need.
    With learned scales the evidence is unbounded: a component may collapse on one datum. EM's
    variances are differences of second moments: in float32 centre the data first.

    Args:
      num_components: C, at least 2.
      observed_dim: P.
      init_spread: standard deviation of the initial component means, in data units; their scales
        start at it too.
    """
    check_positive(
        "gaussian_mixture",
        num_components=num_components,
        observed_dim=observed_dim,
        init_spread=init_spread,
    )
    shape = (num_components, observed_dim)

    def init(key: Key) -> PyTree:
        loc = init_spread * jax.random.normal(key, shape)
        return {
            "logits": jnp.zeros(num_components),
            "loc": loc,
            "log_scale": jnp.full(shape, math.log(init_spread)),
        }

    def log_components(theta: PyTree, x: Array) -> Array:
        """[C] log p(x | z = c)."""
        chex.assert_shape(x, (observed_dim,))
        return jnp.sum(densities.normal(x[None, :], theta["loc"], theta["log_scale"]), axis=1)

    def log_lik(theta: PyTree, z: Array, x: Array) -> Scalar:
        return z @ log_components(theta, x)

    def log_joints(theta: PyTree, x: Array) -> Array:
        return jax.nn.log_softmax(theta["logits"]) + log_components(theta, x)

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[Array, Array]:
        key_z, key_x = jax.random.split(key)
        classes = jax.random.categorical(key_z, theta["logits"], shape=(num_data,))
        noise = jax.random.normal(key_x, (num_data, observed_dim))
        x = theta["loc"][classes] + jnp.exp(theta["log_scale"])[classes] * noise
        return jax.nn.one_hot(classes, num_components, dtype=x.dtype), x

    return latent_model(
        init,
        log_lik=log_lik,
        prior=Prior(categorical(num_components), lambda theta: {"logits": theta["logits"]}),
        simulate=simulate,
        log_evidence=lambda theta, x: jax.nn.logsumexp(log_joints(theta, x)),
        posterior=lambda theta, x: {"logits": log_joints(theta, x)},
        traits=[SufficientStatistics(_statistics, _maximize, _expected)],
    )


def _statistics(q: Q, x: Array) -> PyTree:
    return _moments(mean(q.family, q.lam), x[None, :], jnp.square(x)[None, :])


def _expected(theta: PyTree) -> PyTree:
    loc, variance = theta["loc"], jnp.exp(2.0 * theta["log_scale"])
    return _moments(jax.nn.softmax(theta["logits"]), loc, jnp.square(loc) + variance)


def _moments(share: Array, first: Array, second: Array) -> PyTree:
    each = share[:, None]
    return {"share": share, "first": each * first, "second": each * second}


def _maximize(theta: PyTree, mean: PyTree) -> PyTree:
    least = jnp.finfo(mean["share"].dtype).tiny
    share = jnp.maximum(mean["share"], least)
    loc = mean["first"] / share[:, None]
    log_scale = 0.5 * jnp.log(mean["second"] / share[:, None] - jnp.square(loc))
    there = (mean["share"] > least)[:, None]
    return {
        "logits": jnp.log(share),
        "loc": jnp.where(there, loc, theta["loc"]),
        "log_scale": jnp.where(there, log_scale, theta["log_scale"]),
    }
