"""Student's t: a normal over the root of a gamma variable."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from vijax import supports
from vijax.families.base import as_shape, family, sized
from vijax.families.log_gamma import log_gamma
from vijax.families.traits import Entropy, Moments, Reparameterized
from vijax.types import Array, Family, Key, PyTree, Scalar


def student_t(size: int | tuple[int, ...], *, init_degrees: float = 5.0) -> Family:
    """Independent Student-t variables on the real line, heavier in the tails than the normal.

    z = loc + scale e sqrt(v / (2 g)), e normal, g ~ Gamma(v/2): differentiable in all three, in the
    degrees of freedom v by implicit reparameterization of g, Figurnov et al. 2018.

    lam: `loc` [D], `log_scale` [D], `log_degrees` [D], the log of v. z: [D]; for v below 0.1 draws
    may overflow float32.

    Args:
      size: D, or the shape of z and of lam's leaves: `(3, 2)`, or `()` for one number.
      init_degrees: v at `init`.
    """
    shape = as_shape("student_t", size, init_degrees=init_degrees)

    def init(key: Key) -> PyTree:
        loc = 0.01 * jax.random.normal(key, shape)
        return {
            "loc": loc,
            "log_scale": jnp.zeros(shape),
            "log_degrees": jnp.full(shape, math.log(init_degrees)),
        }

    def sample(key: Key, lam: PyTree) -> Array:
        normal_key, gamma_key = jax.random.split(key)
        half = 0.5 * jnp.exp(lam["log_degrees"])
        widening = jnp.exp(lam["log_scale"] + 0.5 * (jnp.log(half) - log_gamma(gamma_key, half)))
        return lam["loc"] + widening * jax.random.normal(normal_key, shape)

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        degrees = jnp.exp(lam["log_degrees"])
        white = (z - lam["loc"]) * jnp.exp(-lam["log_scale"])
        tail = -0.5 * (degrees + 1.0) * jnp.log1p(jnp.square(white) / degrees)
        return jnp.sum(tail - lam["log_scale"] - log_normaliser(degrees))

    def entropy(lam: PyTree) -> Scalar:
        degrees = jnp.exp(lam["log_degrees"])
        spread = 0.5 * (degrees + 1.0) * (digamma(0.5 * (degrees + 1.0)) - digamma(0.5 * degrees))
        return jnp.sum(spread + log_normaliser(degrees) + lam["log_scale"])

    def mean(lam: PyTree) -> Array:
        return jnp.where(lam["log_degrees"] > 0.0, lam["loc"], jnp.nan)  # exists for v > 1

    def variance(lam: PyTree) -> Array:
        degrees = jnp.exp(lam["log_degrees"])
        finite = degrees > 2.0
        ratio = degrees / jnp.where(finite, degrees - 2.0, 1.0)
        return jnp.where(finite, jnp.exp(2.0 * lam["log_scale"]) * ratio, jnp.inf)

    return family(
        sized("student_t", shape),
        init=init,
        support=supports.real(*shape),
        log_prob=log_prob,
        sample=sample,
        traits=[Reparameterized(), Entropy(entropy), Moments(mean, variance)],
    )


def log_normaliser(degrees: Array) -> Array:
    """Log of the integral of (1 + t^2 / v)^(-(v + 1) / 2), elementwise."""
    return (
        gammaln(0.5 * degrees) - gammaln(0.5 * (degrees + 1.0)) + 0.5 * jnp.log(degrees * math.pi)
    )
