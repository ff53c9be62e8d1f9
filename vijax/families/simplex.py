"""Families on the unit interval and the simplex, made from gamma variables and differentiated
through them.
"""

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from vijax import supports
from vijax.families.base import check_dim, family
from vijax.families.traits import Entropy, Kl, Moments, Reparameterized
from vijax.types import Array, Family, Key, PyTree, Scalar


def beta(dim: int) -> Family:
    """Independent beta variables on (0, 1). Implicit reparameterization of two gamma variables,
    Figurnov et al. 2018.

    lam: `log_alpha` [D], `log_beta` [D], logs of the two shapes; mean alpha / (alpha + beta). z:
    [D].
    """
    check_dim("beta", dim)

    def init(key: Key) -> PyTree:
        return {"log_alpha": 0.01 * jax.random.normal(key, (dim,)), "log_beta": jnp.zeros((dim,))}

    def shapes(lam: PyTree) -> Array:
        return jnp.exp(jnp.stack([lam["log_alpha"], lam["log_beta"]], axis=-1))  # [D, 2]

    def sample(key: Key, lam: PyTree) -> Array:
        return open_unit(jax.nn.softmax(jax.random.loggamma(key, shapes(lam)))[:, 0])

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (dim,))
        return jnp.sum(
            dirichlet_log_prob(shapes(lam), jnp.stack([jnp.log(z), jnp.log1p(-z)], axis=-1))
        )

    def mean(lam: PyTree) -> Array:
        return jax.nn.sigmoid(lam["log_alpha"] - lam["log_beta"])

    def variance(lam: PyTree) -> Array:
        return mean(lam) * (1.0 - mean(lam)) / (1.0 + jnp.sum(shapes(lam), axis=-1))

    return family(
        f"beta({dim})",
        init=init,
        support=supports.interval(0.0, 1.0, dim),
        log_prob=log_prob,
        sample=sample,
        traits=[
            Reparameterized(),
            Entropy(lambda lam: jnp.sum(dirichlet_entropy(shapes(lam)))),
            Kl(lambda lam, lam2: jnp.sum(dirichlet_kl(shapes(lam), shapes(lam2)))),
            Moments(mean, variance),
        ],
    )


def dirichlet(num_classes: int) -> Family:
    """Dirichlet distribution on the simplex. Implicit reparameterization of C gamma variables,
    Figurnov et al. 2018.

    lam: `log_concentration` [C]. z: [C], positive, of sum 1. The density is that of the first C - 1
    entries, and `log_prob` extends it to z off the simplex as sum (a - 1) log z: derivatives in z
    mean something along the simplex only.
    """
    if num_classes < 2:
        raise ValueError(f"dirichlet(num_classes={num_classes}): at least 2 classes are needed.")

    def init(key: Key) -> PyTree:
        return {"log_concentration": 0.01 * jax.random.normal(key, (num_classes,))}

    def shapes(lam: PyTree) -> Array:
        return jnp.exp(lam["log_concentration"])

    def sample(key: Key, lam: PyTree) -> Array:
        z = jax.nn.softmax(jax.random.loggamma(key, shapes(lam)))
        return jnp.maximum(z, jnp.finfo(z.dtype).tiny)

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (num_classes,))
        return dirichlet_log_prob(shapes(lam), jnp.log(z))

    def mean(lam: PyTree) -> Array:
        return jax.nn.softmax(lam["log_concentration"])

    def variance(lam: PyTree) -> Array:
        return mean(lam) * (1.0 - mean(lam)) / (1.0 + jnp.sum(shapes(lam)))

    return family(
        f"dirichlet({num_classes})",
        init=init,
        support=supports.simplex(num_classes),
        log_prob=log_prob,
        sample=sample,
        traits=[
            Reparameterized(),
            Entropy(lambda lam: dirichlet_entropy(shapes(lam))),
            Kl(lambda lam, lam2: dirichlet_kl(shapes(lam), shapes(lam2))),
            Moments(mean, variance),
        ],
    )


def dirichlet_log_prob(shapes: Array, log_z: Array) -> Array:
    """Log Dirichlet density over the last axis: shapes [..., C], log z [..., C] -> [...]."""
    return jnp.sum((shapes - 1.0) * log_z, axis=-1) - log_multivariate_beta(shapes)


def dirichlet_entropy(shapes: Array) -> Array:
    """Differential entropy over the last axis, in nats: [..., C] -> [...]."""
    total = jnp.sum(shapes, axis=-1)
    spread = (total - shapes.shape[-1]) * digamma(total) - jnp.sum(
        (shapes - 1.0) * digamma(shapes), axis=-1
    )
    return log_multivariate_beta(shapes) + spread


def dirichlet_kl(shapes: Array, shapes2: Array) -> Array:
    """KL(Dirichlet(shapes) || Dirichlet(shapes2)) over the last axis: [..., C], [..., C] ->
    [...].
    """
    mean_log = digamma(shapes) - digamma(jnp.sum(shapes, axis=-1, keepdims=True))
    return (
        log_multivariate_beta(shapes2)
        - log_multivariate_beta(shapes)
        + jnp.sum((shapes - shapes2) * mean_log, axis=-1)
    )


def log_multivariate_beta(shapes: Array) -> Array:
    """Log of the normaliser, sum gammaln(a) - gammaln(sum a): [..., C] -> [...]."""
    return jnp.sum(gammaln(shapes), axis=-1) - gammaln(jnp.sum(shapes, axis=-1))


def open_unit(z: Array) -> Array:
    """Keep z off 0 and 1, where the log-density is infinite and rounding may put it."""
    info = jnp.finfo(z.dtype)
    return jnp.clip(z, info.tiny, 1.0 - info.epsneg)
