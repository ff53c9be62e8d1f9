"""Families on positive numbers and counts, with implicit reparameterization where z is
continuous.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, polygamma

from vijax import densities, supports
from vijax.families.base import (
    as_shape,
    family,
    least_left,
    replace_each,
    sized,
    uniform_noise,
    vector_only,
)
from vijax.families.kinds import GammaSites, Pairs, WeakDerivative
from vijax.families.log_gamma import log_gamma
from vijax.families.traits import Entropy, Kl, Moments, Natural, Reparameterized
from vijax.types import Array, Family, Key, PyTree, Scalar


def gamma(size: int | tuple[int, ...]) -> Family:
    """Independent gamma variables on the positive reals. Implicit reparameterization, Figurnov et
    al. 2018.

    lam: `log_shape` [D], `log_rate` [D], logs of the shape a and the rate b; mean a / b. z: [D].

    The sampler works in log z, so that `transport`'s log q, which `rules.pathwise` takes, and its
    derivatives are right for any shape. z itself is a float of at least 1e-38 in float32: what is
    computed from it, the model's densities and `log_prob` in the other rules, is so from shapes of
    0.1 on, where the bound is off by 2e-3 nats per element (at 0.03 by 2). Compute in float64
    below.

    Args:
      size: D, or the shape of z and of lam's leaves: `(3, 2)`, or `()` for one number.
    """
    sites = as_shape("gamma", size)

    def init(key: Key) -> PyTree:
        return {"log_shape": 0.01 * jax.random.normal(key, sites), "log_rate": jnp.zeros(sites)}

    def transport(lam: PyTree, key: Key) -> tuple[Array, Scalar]:
        shape = jnp.exp(lam["log_shape"])
        unit = log_gamma(key, shape)  # log of z times the rate
        log_q = lam["log_rate"] - gammaln(shape) + (shape - 1.0) * unit - jnp.exp(unit)
        return positive(unit, -lam["log_rate"]), jnp.sum(log_q)

    def log_prob(lam: PyTree, z: Array) -> Scalar:
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

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> Pairs:
        # Rate: a gamma variable of shape a + 1 is one of shape a plus an exponential one. Mohamed
        # et al. 2020, table 1. Shape: the law is infinitely divisible, so dE[f]/da = int (E[f(z +
        # y)] - E[f(z)]) exp(-b y) / y dy, y drawn exponential; the measure is infinite, but the
        # difference vanishes with y.
        shape, rate = jnp.exp(lam["log_shape"]), jnp.exp(lam["log_rate"])
        unit = jax.random.exponential(key, sites)
        more, same = replace_each(z, z + unit / rate), replace_each(z, z)
        return Pairs(
            {"log_shape": more, "log_rate": same},
            {"log_shape": same, "log_rate": more},
            {"log_shape": shape / unit, "log_rate": shape},
        )

    def natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
        # eta = (a - 1, -b): its step is the inverse Fisher information of (a, b) times the slope.
        a, b = jnp.exp(lam["log_shape"]), jnp.exp(lam["log_rate"])
        slope_a, slope_b = slope["log_shape"] / a, slope["log_rate"] / b
        curvature = polygamma(1, a)
        # By its expansion for large shapes, where the difference would lose its digits.
        large = jnp.maximum(a, 100.0)
        series = 0.5 / large + 1.0 / (6.0 * large**2) - 1.0 / (30.0 * large**4)
        size = rate / jnp.where(a > 100.0, series, curvature * a - 1.0)
        step_a = size * (a * slope_a + b * slope_b)
        step_b = size * (b * slope_a + curvature * b**2 * slope_b)
        return {
            "log_shape": lam["log_shape"]
            + jnp.log(jnp.maximum(1.0 + step_a / a, least_left(rate))),
            "log_rate": lam["log_rate"] + jnp.log(jnp.maximum(1.0 + step_b / b, least_left(rate))),
        }

    def shape_of(lam: PyTree) -> Array:
        return jnp.exp(lam["log_shape"])

    def rate_of(lam: PyTree) -> Array:
        return jnp.exp(lam["log_rate"])

    return family(
        sized("gamma", sites),
        init=init,
        support=supports.positive(*sites),
        log_prob=log_prob,
        noise=jax.random.split,
        transport=transport,
        traits=[
            Reparameterized(),
            Entropy(entropy),
            Kl(kl),
            Moments(
                lambda lam: shape_of(lam) / rate_of(lam),
                lambda lam: shape_of(lam) / rate_of(lam) ** 2,
            ),
            vector_only(sites, GammaSites(shape_of, rate_of)),
            Natural(natural_step),
            WeakDerivative(weak_derivative),
        ],
    )


def exponential(size: int | tuple[int, ...]) -> Family:
    """Independent exponential variables on the positive reals.

    lam: `log_rate` [D]; mean exp(-log_rate). z: [D].

    Args:
      size: D, or the shape of z and of `log_rate`: `(3, 2)`, or `()` for one number.
    """
    shape = as_shape("exponential", size)

    def init(key: Key) -> PyTree:
        return {"log_rate": 0.01 * jax.random.normal(key, shape)}

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.exponential(key, (num_samples, *shape))

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        return noise * jnp.exp(-lam["log_rate"]), jnp.sum(lam["log_rate"] - noise)

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        inside = lam["log_rate"] - jnp.exp(lam["log_rate"]) * z
        return jnp.sum(jnp.where(z >= 0.0, inside, -jnp.inf))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        log_ratio = lam2["log_rate"] - lam["log_rate"]
        return jnp.sum(jnp.expm1(log_ratio) - log_ratio)

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> Pairs:
        more = replace_each(z, z + jax.random.exponential(key, shape) * jnp.exp(-lam["log_rate"]))
        same = replace_each(z, z)
        return Pairs({"log_rate": same}, {"log_rate": more}, {"log_rate": jnp.ones_like(z)})

    def natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
        grown = jnp.maximum(1.0 + rate * slope["log_rate"], least_left(rate))
        return {"log_rate": lam["log_rate"] + jnp.log(grown)}

    def mean(lam: PyTree) -> Array:
        return jnp.exp(-lam["log_rate"])

    return family(
        sized("exponential", shape),
        init=init,
        support=supports.positive(*shape),
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        traits=[
            Reparameterized(),
            Entropy(lambda lam: jnp.sum(1.0 - lam["log_rate"])),
            Kl(kl),
            Moments(mean, lambda lam: mean(lam) ** 2),
            Natural(natural_step),
            uniform_noise(shape, lambda uniforms: -jnp.log1p(-uniforms)),
            WeakDerivative(weak_derivative),
        ],
    )


def poisson(size: int | tuple[int, ...]) -> Family:
    """Independent Poisson counts, as floats. No differentiable sampler.

    lam: `log_rate` [D]. z: [D].

    Args:
      size: D, or the shape of z and of `log_rate`: `(3, 2)`, or `()` for one number.
    """
    shape = as_shape("poisson", size)

    def init(key: Key) -> PyTree:
        return {"log_rate": 0.01 * jax.random.normal(key, shape)}

    def sample(key: Key, lam: PyTree) -> Array:
        rate = jnp.exp(lam["log_rate"])
        return jax.random.poisson(key, rate).astype(rate.dtype)

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        return jnp.sum(jnp.where(z >= 0.0, densities.poisson(z, lam["log_rate"]), -jnp.inf))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        log_ratio = lam2["log_rate"] - lam["log_rate"]
        return jnp.sum(jnp.exp(lam["log_rate"]) * (jnp.expm1(log_ratio) - log_ratio))

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> Pairs:
        more, same = replace_each(z, z + 1.0), replace_each(z, z)
        return Pairs({"log_rate": more}, {"log_rate": same}, {"log_rate": jnp.exp(lam["log_rate"])})

    def natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
        return {"log_rate": lam["log_rate"] + rate * slope["log_rate"] * jnp.exp(-lam["log_rate"])}

    def mean(lam: PyTree) -> Array:
        return jnp.exp(lam["log_rate"])

    return family(
        sized("poisson", shape),
        init=init,
        support=supports.counts(*shape),
        log_prob=log_prob,
        sample=sample,
        traits=[
            Kl(kl),
            Moments(mean, mean),
            Natural(natural_step),
            WeakDerivative(weak_derivative),
        ],
    )


def positive(log_z: Array, log_scale: Array) -> Array:
    """exp(log_z + log_scale), kept at least at the smallest normal float: small shapes underflow,
    and log 0 is no density.
    """
    return jnp.maximum(jnp.exp(log_z + log_scale), jnp.finfo(log_z.dtype).tiny)
