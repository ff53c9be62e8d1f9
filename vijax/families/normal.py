"""Normal families: diagonal and full covariance."""

import math

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import ndtri

from vijax import densities
from vijax.families.base import family, replace_each
from vijax.types import Array, Family, Key, PyTree, Scalar, WeakDerivative


def diag_normal(dim: int, *, init_scale: float = 1.0) -> Family:
    """Normal with diagonal covariance on R^dim.

    lam: `loc` [D], `log_scale` [D], the log of the standard deviations. z: [D].

    Args:
      dim: D, at least 1.
      init_scale: standard deviation at `init`; the means start near 0.
    """
    _check_size("diag_normal", dim, init_scale)

    def init(key: Key) -> PyTree:
        return _init_normal(key, dim, init_scale)

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.normal(key, (num_samples, dim))

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        z = lam["loc"] + jnp.exp(lam["log_scale"]) * noise
        return z, jnp.sum(densities.standard_normal(noise)) - jnp.sum(lam["log_scale"])

    def inverse(lam: PyTree, z: Array) -> Array:
        return jnp.exp(-lam["log_scale"]) * (z - lam["loc"])

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (dim,))
        return jnp.sum(densities.normal(z, lam["loc"], lam["log_scale"]))

    def entropy(lam: PyTree) -> Scalar:
        return jnp.sum(lam["log_scale"]) + 0.5 * dim * (1.0 + densities.LOG_2PI)

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        log_ratio = lam["log_scale"] - lam2["log_scale"]
        shift = (lam["loc"] - lam2["loc"]) * jnp.exp(-lam2["log_scale"])
        # expm1 keeps the digits when the two scales are nearly equal.
        return 0.5 * jnp.sum(jnp.expm1(2.0 * log_ratio) - 2.0 * log_ratio + jnp.square(shift))

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> WeakDerivative:
        # Mean: a Weibull step to either side. Scale: a double-sided Maxwell step against the normal
        # step coupled to it. Mohamed et al. 2020, table 1; coupling by Rosca et al. 2019.
        keys = jax.random.split(key, 3)
        scale = jnp.exp(lam["log_scale"])
        weibull = scale * jnp.sqrt(2.0 * jax.random.exponential(keys[0], (dim,)))
        maxwell = scale * jax.random.double_sided_maxwell(keys[1], 0.0, 1.0, (dim,))
        normal = jax.random.uniform(keys[2], (dim,)) * maxwell
        loc = lam["loc"]
        return WeakDerivative(
            {"loc": replace_each(z, loc + weibull), "log_scale": replace_each(z, loc + maxwell)},
            {"loc": replace_each(z, loc - weibull), "log_scale": replace_each(z, loc + normal)},
            {"loc": 1.0 / (scale * math.sqrt(2.0 * math.pi)), "log_scale": jnp.ones_like(scale)},
        )

    return family(
        f"diag_normal({dim})",
        init=init,
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        reparameterized=True,
        entropy=entropy,
        kl=kl,
        inverse=inverse,
        num_uniforms=dim,
        from_uniform=ndtri,
        weak_derivative=weak_derivative,
        normal_moments=lambda lam: (lam["loc"], jnp.diag(jnp.exp(2.0 * lam["log_scale"]))),
    )


def full_normal(dim: int, *, init_scale: float = 1.0) -> Family:
    """Normal with full covariance L L^T on R^dim, stored as L = diag(d) (I + U), U strictly lower
    triangular.

    In this form a step changes correlations and scales separately: an optimiser with one learning
    rate serves both.

    lam: `loc` [D], `log_scale` [D] = log d, `lower` [D, D] = U (only its strictly lower triangle is
    read). z: [D].

    Args:
      dim: D, at least 1.
      init_scale: standard deviation at `init`, without correlation.
    """
    _check_size("full_normal", dim, init_scale)

    def init(key: Key) -> PyTree:
        return _init_normal(key, dim, init_scale) | {"lower": jnp.zeros((dim, dim))}

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.normal(key, (num_samples, dim))

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        mixed = noise + jnp.tril(lam["lower"], -1) @ noise
        z = lam["loc"] + jnp.exp(lam["log_scale"]) * mixed
        return z, jnp.sum(densities.standard_normal(noise)) - jnp.sum(lam["log_scale"])

    def whiten(lam: PyTree, shift: Array) -> Array:
        # Shift: [D] or [D, columns]
        scale = jnp.exp(lam["log_scale"]).reshape(dim, *(1,) * (shift.ndim - 1))
        return solve_triangular(
            jnp.tril(lam["lower"], -1), shift / scale, lower=True, unit_diagonal=True
        )

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (dim,))
        white = whiten(lam, z - lam["loc"])
        return jnp.sum(densities.standard_normal(white)) - jnp.sum(lam["log_scale"])

    def entropy(lam: PyTree) -> Scalar:
        return jnp.sum(lam["log_scale"]) + 0.5 * dim * (1.0 + densities.LOG_2PI)

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        ratio = whiten(lam2, cholesky(lam))  # inverse(L2) L
        shift = whiten(lam2, lam["loc"] - lam2["loc"])
        log_ratio = jnp.sum(lam["log_scale"] - lam2["log_scale"])
        return 0.5 * (jnp.sum(jnp.square(ratio)) - dim + jnp.sum(jnp.square(shift))) - log_ratio

    return family(
        f"full_normal({dim})",
        init=init,
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        reparameterized=True,
        entropy=entropy,
        kl=kl,
        inverse=lambda lam, z: whiten(lam, z - lam["loc"]),
        num_uniforms=dim,
        from_uniform=ndtri,
        normal_moments=lambda lam: (lam["loc"], cholesky(lam) @ cholesky(lam).T),
    )


def cholesky(lam: PyTree) -> Array:
    """[D, D] Cholesky factor L of a `full_normal`'s covariance, lower triangular with positive
    diagonal.
    """
    unit = jnp.eye(lam["loc"].shape[0], dtype=lam["lower"].dtype) + jnp.tril(lam["lower"], -1)
    return jnp.exp(lam["log_scale"])[:, None] * unit


def from_covariance(loc: Array, covariance: Array) -> PyTree:
    """Lam of the `full_normal` with this mean [D] and positive definite covariance [D, D]."""
    factor = jnp.linalg.cholesky(covariance)
    scale = jnp.diagonal(factor)
    return {"loc": loc, "log_scale": jnp.log(scale), "lower": jnp.tril(factor / scale[:, None], -1)}


def _init_normal(key: Key, dim: int, init_scale: float) -> PyTree:
    return {
        "loc": 0.01 * jax.random.normal(key, (dim,)),
        "log_scale": jnp.full((dim,), math.log(init_scale)),
    }


def _check_size(name: str, dim: int, init_scale: float) -> None:
    if dim < 1 or not init_scale > 0.0:
        raise ValueError(
            f"{name}(dim={dim}, init_scale={init_scale}): dim must be at least 1 and init_scale "
            f"positive."
        )
