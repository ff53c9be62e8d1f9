"""Differentiate through a sampler whose noise still depends on q's parameters a little, and score
what is left of that.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, polygamma

from vijax.families import Density, GammaSites, log_probs, need
from vijax.rules.base import evaluate, from_gradient, keys, no_aux, rule, stopped
from vijax.types import (
    Array,
    Aux,
    Family,
    Integrand,
    Key,
    PyTree,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
)


class Standardization(NamedTuple):
    """A transformation z = T(noise, lam) that makes a draw's noise nearly free of lam;
    `log_density` is what remains of it.

    Attributes:
      noise: (key, family, lam) -> noise of one sample, drawn so that T(noise) ~ q
      transport: (family, lam, noise) -> z
      log_density: (family, lam, noise) -> [] log density up to lam-free terms
    """

    name: str
    noise: Callable[[Key, Family, PyTree], PyTree]
    transport: Callable[[Family, PyTree, PyTree], Array]
    log_density: Callable[[Family, PyTree, PyTree], Scalar]
    paper: str


def generalized_reparameterization(standardization: Standardization | None = None) -> Rule:
    """Path term plus the score of the noise: f'(T) dT/dlam + f(T) dlog s(noise; lam)/dlam. Ruiz et
    al. 2016, eq. 8.

    With T the transformation inside a rejection sampler it is rejection-sampling
    reparameterization, Naesseth et al. 2017, eq. 7. Both are for comparison: the gamma family has
    implicit reparameterization, which leaves no score term.

    Args:
      standardization: `marsaglia_tsang(augment)`, the default, or `log_standardized()`.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a gamma family; a linear objective.
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass and one more for phi.
    """
    chosen = marsaglia_tsang() if standardization is None else standardization

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        family, fixed = stopped(q)
        noise_key, inner_keys = keys(key, setting.num_samples)
        noise_keys = jax.random.split(noise_key, setting.num_samples)
        noise = jax.vmap(lambda k: chosen.noise(k, family, fixed))(noise_keys)
        z = jax.vmap(lambda e: chosen.transport(family, q.lam, e))(noise)
        values, aux = evaluate(integrand, Sample(z, log_probs(family, fixed, z), inner_keys))
        weights = jax.lax.stop_gradient(values)

        def scored(lam: PyTree) -> Scalar:
            log_density = jax.vmap(lambda e: chosen.log_density(family, lam, e))(noise)
            return jnp.mean(weights * log_density)

        value = from_gradient(jnp.mean(values), q.lam, jax.grad(scored)(fixed))
        return value, no_aux(aux)

    requires = Requirements(
        needs=(GammaSites, Density),
        linear=True,
        in_z=True,
        paper=chosen.paper,
        advice="Write pathwise() or score() for it.",
    )
    return rule(f"generalized_reparameterization({chosen.name})", requires, surrogate)


def log_standardized() -> Standardization:
    """Log z made of mean 0 and variance 1: e = (log z - E log z) / sd log z. Ruiz et al. 2016,
    table 1.
    """

    def noise(key: Key, family: Family, lam: PyTree) -> Array:
        shape, _ = _gamma(family, lam)
        return (jax.random.loggamma(key, shape) - digamma(shape)) / jnp.sqrt(polygamma(1, shape))

    def log_unit(family: Family, lam: PyTree, noise: Array) -> Array:
        shape, _ = _gamma(family, lam)
        return digamma(shape) + noise * jnp.sqrt(polygamma(1, shape))

    def transport(family: Family, lam: PyTree, noise: Array) -> Array:
        return jnp.exp(log_unit(family, lam, noise)) / _gamma(family, lam)[1]

    def log_density(family: Family, lam: PyTree, noise: Array) -> Scalar:
        shape, _ = _gamma(family, lam)
        log_z = log_unit(family, lam, noise)
        return jnp.sum(
            shape * log_z - jnp.exp(log_z) - gammaln(shape) + 0.5 * jnp.log(polygamma(1, shape))
        )

    return Standardization("log_standardized()", noise, transport, log_density, "Ruiz et al. 2016")


def marsaglia_tsang(augment: int = 0) -> Standardization:
    """The accepted proposal e of Marsaglia and Tsang's sampler: z = (a - 1/3) (1 + e / sqrt(9 a -
    3))^3 / rate.

    Args:
      augment: B, by how much the shape is raised: z~ of shape a + B, times u_i^(1 / (a + i - 1))
        for i = 1..B. The score term vanishes as B grows; needs a + B > 1, hence at least 1 if
        shapes may fall to 1 (then use that).
    """
    if augment < 0:
        raise ValueError(f"marsaglia_tsang(augment={augment}): must be at least 0.")

    def noise(key: Key, family: Family, lam: PyTree) -> PyTree:
        gamma_key, uniform_key = jax.random.split(key)
        shape = _gamma(family, lam)[0] + augment
        unit = jnp.exp(jax.random.loggamma(gamma_key, shape))
        proposal = jnp.sqrt(9.0 * shape - 3.0) * (jnp.cbrt(unit / (shape - 1.0 / 3.0)) - 1.0)
        log_uniform = -jax.random.exponential(uniform_key, (augment, *shape.shape), shape.dtype)
        return {"proposal": proposal, "log_uniform": log_uniform}

    def root(shape: Array, noise: PyTree) -> Array:
        return 1.0 + noise["proposal"] / jnp.sqrt(9.0 * shape - 3.0)

    def transport(family: Family, lam: PyTree, noise: PyTree) -> Array:
        shape, rate = _gamma(family, lam)
        raised = shape + augment
        steps = jnp.arange(augment, dtype=shape.dtype)[:, None]
        shrink = jnp.exp(jnp.sum(noise["log_uniform"] / (shape[None] + steps), axis=0))
        return (raised - 1.0 / 3.0) * root(raised, noise) ** 3 * shrink / rate

    def log_density(family: Family, lam: PyTree, noise: PyTree) -> Scalar:
        shape = _gamma(family, lam)[0] + augment
        cube = root(shape, noise)
        unit = (shape - 1.0 / 3.0) * cube**3
        log_slope = (
            jnp.log(shape - 1.0 / 3.0) + 2.0 * jnp.log(cube) - 0.5 * jnp.log(9.0 * shape - 3.0)
        )
        return jnp.sum((shape - 1.0) * jnp.log(unit) - unit - gammaln(shape) + log_slope)

    return Standardization(
        f"marsaglia_tsang({augment})", noise, transport, log_density, "Naesseth et al. 2017"
    )


def _gamma(family: Family, lam: PyTree) -> tuple[Array, Array]:
    sites = need(family, GammaSites)
    return sites.shape(lam), sites.rate(lam)
