"""Normal families: diagonal and full covariance."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import ndtri

from vijax import densities, supports
from vijax.families.base import (
    as_shape,
    check_positive,
    family,
    least_left,
    replace_each,
    sized,
    uniform_noise,
    vector_only,
)
from vijax.families.kinds import NormalMoments, Pairs, WeakDerivative
from vijax.families.traits import Entropy, Inverse, Kl, Moments, Natural, Reparameterized
from vijax.shapes import is_concrete, same_shapes
from vijax.types import Array, Family, Key, PyTree, Scalar


def diag_normal(size: int | tuple[int, ...], *, init_scale: float = 1.0) -> Family:
    """Independent normal variables.

    lam: `loc` [D], `log_scale` [D], the log of the standard deviations. z: [D].

    Args:
      size: D, or the shape of z and of lam's leaves: `(3, 2)`, or `()` for one number.
      init_scale: standard deviation at `init`; the means start near 0.
    """
    shape = as_shape("diag_normal", size, init_scale=init_scale)

    def init(key: Key) -> PyTree:
        return _init_normal(key, shape, init_scale)

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.normal(key, (num_samples, *shape))

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        z = lam["loc"] + jnp.exp(lam["log_scale"]) * noise
        return z, jnp.sum(densities.standard_normal(noise)) - jnp.sum(lam["log_scale"])

    def inverse(lam: PyTree, z: Array) -> Array:
        return jnp.exp(-lam["log_scale"]) * (z - lam["loc"])

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        return jnp.sum(densities.normal(z, lam["loc"], lam["log_scale"]))

    def entropy(lam: PyTree) -> Scalar:
        return jnp.sum(lam["log_scale"] + 0.5 * (1.0 + densities.LOG_2PI))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        log_ratio = lam["log_scale"] - lam2["log_scale"]
        shift = (lam["loc"] - lam2["loc"]) * jnp.exp(-lam2["log_scale"])
        # expm1 keeps the digits when the two scales are nearly equal.
        return 0.5 * jnp.sum(jnp.expm1(2.0 * log_ratio) - 2.0 * log_ratio + jnp.square(shift))

    def natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
        # Precision - 2 rate dL/dvariance, then the mean with the new variance: eta + rate dL/dmu.
        shrink = jnp.maximum(1.0 - rate * slope["log_scale"], least_left(rate))
        log_scale = lam["log_scale"] - 0.5 * jnp.log(shrink)
        loc = lam["loc"] + rate * jnp.exp(2.0 * log_scale) * slope["loc"]
        return {"loc": loc, "log_scale": log_scale}

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> Pairs:
        # Mean: a Weibull step to either side. Scale: a double-sided Maxwell step against the normal
        # step coupled to it. Mohamed et al. 2020, table 1; coupling by Rosca et al. 2019.
        keys = jax.random.split(key, 3)
        scale = jnp.exp(lam["log_scale"])
        weibull = scale * jnp.sqrt(2.0 * jax.random.exponential(keys[0], shape))
        maxwell = scale * jax.random.double_sided_maxwell(keys[1], 0.0, 1.0, shape)
        normal = jax.random.uniform(keys[2], shape) * maxwell
        loc = lam["loc"]
        return Pairs(
            {"loc": replace_each(z, loc + weibull), "log_scale": replace_each(z, loc + maxwell)},
            {"loc": replace_each(z, loc - weibull), "log_scale": replace_each(z, loc + normal)},
            {"loc": 1.0 / (scale * math.sqrt(2.0 * math.pi)), "log_scale": jnp.ones_like(scale)},
        )

    def variance(lam: PyTree) -> Array:
        return jnp.exp(2.0 * lam["log_scale"])

    return family(
        sized("diag_normal", shape),
        init=init,
        support=supports.real(*shape),
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        traits=[
            Reparameterized(),
            Entropy(entropy),
            Kl(kl),
            Moments(lambda lam: lam["loc"], variance),
            vector_only(
                shape, NormalMoments(lambda lam: lam["loc"], lambda lam: jnp.diag(variance(lam)))
            ),
            Natural(natural_step),
            Inverse(inverse),
            uniform_noise(shape, ndtri),
            WeakDerivative(weak_derivative),
        ],
    )


def full_normal(dim: int, *, init_scale: float = 1.0) -> Family:
    """Normal with full covariance L L^T on R^dim, stored as L = diag(d) (I + U), U strictly lower
    triangular.

    In this form a step changes correlations and scales separately: an optimiser with one learning
    rate serves both.

    lam: `loc` [D], `log_scale` [D] = log d, `lower` [D, D] = U (only its strictly lower triangle is
    read). z: [D].

    Args:
      dim: D, at least 1. For z of another shape: `families.over(supports.real(3, 2), full_normal)`.
      init_scale: standard deviation at `init`, without correlation.

    Raises:
      ValueError: if dim is no int of at least 1, or init_scale is not positive.
    """
    if not isinstance(dim, int) or dim < 1:
        raise ValueError(
            f"full_normal(dim={dim!r}): dim must be an int of at least 1. For a z of any shape "
            "write families.over(supports.real(3, 2), families.full_normal)."
        )
    check_positive("full_normal", init_scale=init_scale)

    def init(key: Key) -> PyTree:
        return _init_normal(key, (dim,), init_scale) | {"lower": jnp.zeros((dim, dim))}

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
        white = whiten(lam, z - lam["loc"])
        return jnp.sum(densities.standard_normal(white)) - jnp.sum(lam["log_scale"])

    def entropy(lam: PyTree) -> Scalar:
        return jnp.sum(lam["log_scale"]) + 0.5 * dim * (1.0 + densities.LOG_2PI)

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        ratio = whiten(lam2, cholesky(lam))  # inverse(L2) L
        shift = whiten(lam2, lam["loc"] - lam2["loc"])
        log_ratio = jnp.sum(lam["log_scale"] - lam2["log_scale"])
        return 0.5 * (jnp.sum(jnp.square(ratio)) - dim + jnp.sum(jnp.square(shift))) - log_ratio

    def covariance(lam: PyTree) -> Array:
        factor = cholesky(lam)
        return factor @ factor.T

    return family(
        f"full_normal({dim})",
        init=init,
        support=supports.real(dim),
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        traits=[
            Reparameterized(),
            Entropy(entropy),
            Kl(kl),
            Moments(lambda lam: lam["loc"], lambda lam: jnp.sum(cholesky(lam) ** 2, axis=1)),
            NormalMoments(lambda lam: lam["loc"], covariance),
            Natural(_natural_step),
            Inverse(lambda lam, z: whiten(lam, z - lam["loc"])),
            uniform_noise((dim,), ndtri),
        ],
    )


def cholesky(lam: PyTree) -> Array:
    """[D, D] Cholesky factor L of a `full_normal`'s covariance, lower triangular with positive
    diagonal.
    """
    unit = jnp.eye(lam["loc"].shape[0], dtype=lam["lower"].dtype) + jnp.tril(lam["lower"], -1)
    return jnp.exp(lam["log_scale"])[:, None] * unit


def from_covariance(loc: Array, covariance: Array) -> PyTree:
    """Lam of the `full_normal` with this mean [D] and positive definite covariance [D, D].

    Raises:
      ValueError: where the covariance is no such matrix; in a traced program lam is then NaN.
    """
    same_shapes(covariance, jnp.outer(loc, loc), "from_covariance(loc, covariance): covariance")
    factor = jnp.linalg.cholesky(covariance)
    if is_concrete(factor):
        off = float(jnp.max(jnp.abs(covariance - covariance.T)))
        if not bool(jnp.all(jnp.isfinite(factor))) or off > 1e-3 * float(jnp.max(covariance)):
            raise ValueError(
                "from_covariance: the covariance is not symmetric and positive definite (its "
                f"Cholesky factor is {factor}). Give E[(z - loc)(z - loc)'], with a little added "
                "to its diagonal if it is estimated, or from_cholesky(loc, factor)."
            )
    return from_cholesky(loc, factor)


def from_cholesky(loc: Array, factor: Array) -> PyTree:
    """Lam of the `full_normal` with this mean [D] and Cholesky factor [D, D] of the covariance."""
    scale = jnp.diagonal(factor)
    lower = jnp.tril(factor / scale[:, None], -1)
    return {"loc": loc, "log_scale": jnp.log(scale), "lower": lower}


def _natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
    """Precision - 2 rate dL/dcovariance, then the mean with the new covariance, in the coordinates
    in which the old covariance is I: nothing is inverted but what the step itself changes.
    """
    factor, scale = cholesky(lam), jnp.exp(lam["log_scale"])
    below = jnp.tril(slope["lower"], -1) / scale[:, None]
    diagonal = (slope["log_scale"] - jnp.sum(below * factor, axis=1)) / scale
    pulled = factor.T @ (below + jnp.diag(diagonal))  # L^T dL/dL
    half = jnp.tril(pulled, -1) + 0.5 * jnp.diag(jnp.diagonal(pulled))
    values, vectors = jnp.linalg.eigh(jnp.eye(scale.size) - rate * (half + half.T))
    root = factor @ (
        vectors / jnp.sqrt(jnp.maximum(values, least_left(rate)))[None, :]
    )  # root root^T: new
    triangle = jnp.linalg.qr(root.T, mode="r").T
    signs = jnp.where(jnp.diagonal(triangle) < 0.0, -1.0, 1.0)
    loc = lam["loc"] + rate * (root @ (root.T @ slope["loc"]))
    return from_cholesky(loc, triangle * signs[None, :])


def _init_normal(key: Key, shape: tuple[int, ...], init_scale: float) -> PyTree:
    return {
        "loc": 0.01 * jax.random.normal(key, shape),
        "log_scale": jnp.full(shape, math.log(init_scale)),
    }
