"""Families on positive numbers and counts, with implicit reparameterization where z is
continuous.
"""

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from vijax import densities
from vijax.families.base import family, replace_each
from vijax.types import Array, Family, Key, PyTree, Scalar, WeakDerivative


def gamma(dim: int) -> Family:
    """Independent gamma variables on the positive reals. Implicit reparameterization, Figurnov et
    al. 2018.

    lam: `log_shape` [D], `log_rate` [D], logs of the shape a and the rate b; mean a / b. z: [D].
    """
    _check_dim("gamma", dim)

    def init(key: Key) -> PyTree:
        return {"log_shape": 0.01 * jax.random.normal(key, (dim,)), "log_rate": jnp.zeros((dim,))}

    def sample(key: Key, lam: PyTree) -> Array:
        shape = jnp.exp(lam["log_shape"])
        return positive(jax.random.loggamma(key, shape), -lam["log_rate"])

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (dim,))
        shape, rate = jnp.exp(lam["log_shape"]), jnp.exp(lam["log_rate"])
        return jnp.sum(
            shape * lam["log_rate"] - gammaln(shape) + (shape - 1.0) * jnp.log(z) - rate * z
        )

    def entropy(lam: PyTree) -> Scalar:
        shape = jnp.exp(lam["log_shape"])
        return jnp.sum(shape - lam["log_rate"] + gammaln(shape) + (1.0 - shape) * digamma(shape))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        shape, shape2 = jnp.exp(lam["log_shape"]), jnp.exp(lam2["log_shape"])
        log_ratio = lam2["log_rate"] - lam["log_rate"]
        shapes = (shape - shape2) * digamma(shape) - gammaln(shape) + gammaln(shape2)
        return jnp.sum(shapes - shape2 * log_ratio + shape * jnp.expm1(log_ratio))

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> WeakDerivative:
        # Rate: a gamma variable of shape a + 1 is one of shape a plus an exponential one. Mohamed
        # et al. 2020, table 1. Shape: the law is infinitely divisible, so dE[f]/da = int (E[f(z +
        # y)] - E[f(z)]) exp(-b y) / y dy, y drawn exponential; the measure is infinite, but the
        # difference vanishes with y.
        shape, rate = jnp.exp(lam["log_shape"]), jnp.exp(lam["log_rate"])
        unit = jax.random.exponential(key, (dim,))
        more, same = replace_each(z, z + unit / rate), jnp.broadcast_to(z, (dim, dim))
        return WeakDerivative(
            {"log_shape": more, "log_rate": same},
            {"log_shape": same, "log_rate": more},
            {"log_shape": shape / unit, "log_rate": shape},
        )

    return family(
        f"gamma({dim})",
        init=init,
        log_prob=log_prob,
        sample=sample,
        reparameterized=True,
        entropy=entropy,
        kl=kl,
        weak_derivative=weak_derivative,
        gamma_parameters=lambda lam: (jnp.exp(lam["log_shape"]), jnp.exp(lam["log_rate"])),
    )


def exponential(dim: int) -> Family:
    """Independent exponential variables on the positive reals.

    lam: `log_rate` [D]; mean exp(-log_rate). z: [D].
    """
    _check_dim("exponential", dim)

    def init(key: Key) -> PyTree:
        return {"log_rate": 0.01 * jax.random.normal(key, (dim,))}

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.exponential(key, (num_samples, dim))

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        return noise * jnp.exp(-lam["log_rate"]), jnp.sum(lam["log_rate"] - noise)

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (dim,))
        return jnp.sum(lam["log_rate"] - jnp.exp(lam["log_rate"]) * z)

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        log_ratio = lam2["log_rate"] - lam["log_rate"]
        return jnp.sum(jnp.expm1(log_ratio) - log_ratio)

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> WeakDerivative:
        more = replace_each(z, z + jax.random.exponential(key, (dim,)) * jnp.exp(-lam["log_rate"]))
        same = jnp.broadcast_to(z, (dim, dim))
        return WeakDerivative(
            {"log_rate": same}, {"log_rate": more}, {"log_rate": jnp.ones((dim,), z.dtype)}
        )

    return family(
        f"exponential({dim})",
        init=init,
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        reparameterized=True,
        entropy=lambda lam: jnp.sum(1.0 - lam["log_rate"]),
        kl=kl,
        num_uniforms=dim,
        from_uniform=lambda uniforms: -jnp.log1p(-uniforms),
        weak_derivative=weak_derivative,
    )


def poisson(dim: int) -> Family:
    """Independent Poisson counts, as floats. No differentiable sampler.

    lam: `log_rate` [D]. z: [D].
    """
    _check_dim("poisson", dim)

    def init(key: Key) -> PyTree:
        return {"log_rate": 0.01 * jax.random.normal(key, (dim,))}

    def sample(key: Key, lam: PyTree) -> Array:
        rate = jnp.exp(lam["log_rate"])
        return jax.random.poisson(key, rate).astype(rate.dtype)

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (dim,))
        return jnp.sum(densities.poisson(z, lam["log_rate"]))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        log_ratio = lam2["log_rate"] - lam["log_rate"]
        return jnp.sum(jnp.exp(lam["log_rate"]) * (jnp.expm1(log_ratio) - log_ratio))

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> WeakDerivative:
        more, same = replace_each(z, z + 1.0), jnp.broadcast_to(z, (dim, dim))
        return WeakDerivative(
            {"log_rate": more}, {"log_rate": same}, {"log_rate": jnp.exp(lam["log_rate"])}
        )

    return family(
        f"poisson({dim})",
        init=init,
        log_prob=log_prob,
        sample=sample,
        kl=kl,
        weak_derivative=weak_derivative,
    )


def positive(log_z: Array, log_scale: Array) -> Array:
    """exp(log_z + log_scale), kept at least at the smallest normal float: small shapes underflow,
    and log 0 is no density.
    """
    return jnp.maximum(jnp.exp(log_z + log_scale), jnp.finfo(log_z.dtype).tiny)


def _check_dim(name: str, dim: int) -> None:
    if dim < 1:
        raise ValueError(f"{name}(dim={dim}): dim must be at least 1.")
