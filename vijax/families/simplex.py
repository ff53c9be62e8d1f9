"""Families on the unit interval and the simplex, made from gamma variables and differentiated
through them, in logarithms.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, polygamma

from vijax import supports
from vijax.families.base import as_shape, family, least_left, sized
from vijax.families.log_gamma import log_gamma
from vijax.families.traits import Entropy, Kl, Moments, Natural, Reparameterized
from vijax.types import Array, Family, Key, PyTree, Scalar


def beta(size: int | tuple[int, ...]) -> Family:
    """Independent beta variables on (0, 1). Implicit reparameterization of two gamma variables,
    Figurnov et al. 2018.

    lam: `log_alpha` [D], `log_beta` [D], logs of the two shapes; mean alpha / (alpha + beta). z:
    [D].

    The sampler works in log z and log(1 - z), so that `transport`'s log q, which `rules.pathwise`
    takes, and its derivatives are right for any shapes. z itself is a float: in float32 it stops
    6e-8 short of 1, and what is computed from it, the model's densities and `log_prob` in the other
    rules, cannot know 1 - z any better. With a beta of 0.5, 0.3, 0.2, 0.1 that puts the bound
    off by 2e-4, 0.01, 0.1, 1.5 nats per element; towards 0, an alpha of 0.1 by 2e-3. Write
    `dirichlet(2, num_sites=D)` there, whose z holds 1 - z beside z in full digits, or compute in
    float64.

    Args:
      size: D, or the shape of z and of lam's leaves: `(3, 2)`, or `()` for one number.
    """
    shape = as_shape("beta", size)

    def init(key: Key) -> PyTree:
        return {"log_alpha": 0.01 * jax.random.normal(key, shape), "log_beta": jnp.zeros(shape)}

    def shapes(lam: PyTree) -> Array:
        return jnp.exp(jnp.stack([lam["log_alpha"], lam["log_beta"]], axis=-1))  # [..., 2]

    def transport(lam: PyTree, key: Key) -> tuple[Array, Scalar]:
        log_gammas = log_gamma(key, shapes(lam))
        log_parts = jax.nn.log_softmax(log_gammas)  # log z, log(1 - z)
        z = open_unit(jax.nn.softmax(log_gammas)[..., 0])
        return z, jnp.sum(dirichlet_log_prob(shapes(lam), log_parts))

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        log_parts = jnp.stack([jnp.log(z), jnp.log1p(-z)], axis=-1)
        return jnp.sum(dirichlet_log_prob(shapes(lam), log_parts))

    def natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
        both = jnp.stack([slope["log_alpha"], slope["log_beta"]], axis=-1)
        moved = dirichlet_natural_step(shapes(lam), both, rate)
        return {"log_alpha": moved[..., 0], "log_beta": moved[..., 1]}

    def mean(lam: PyTree) -> Array:
        return jax.nn.sigmoid(lam["log_alpha"] - lam["log_beta"])

    def variance(lam: PyTree) -> Array:
        return mean(lam) * (1.0 - mean(lam)) / (1.0 + jnp.sum(shapes(lam), axis=-1))

    return family(
        sized("beta", shape),
        init=init,
        support=supports.interval(0.0, 1.0, *shape),
        log_prob=log_prob,
        noise=jax.random.split,
        transport=transport,
        traits=[
            Reparameterized(),
            Entropy(lambda lam: jnp.sum(dirichlet_entropy(shapes(lam)))),
            Kl(lambda lam, lam2: jnp.sum(dirichlet_kl(shapes(lam), shapes(lam2)))),
            Moments(mean, variance),
            Natural(natural_step),
        ],
    )


def dirichlet(num_classes: int, num_sites: int | None = None) -> Family:
    """Dirichlet distribution on the simplex: one, z [C], or `num_sites` independent ones, z [D, C].
    Implicit reparameterization of C gamma variables, Figurnov et al. 2018.

    lam: `log_concentration` of z's shape. z: positive, of sum 1 over the last axis. The density is
    that of the first C - 1 entries, and `log_prob` extends it to z off the simplex as sum (a - 1)
    log z: derivatives in z mean something along the simplex only.

    The sampler works in log z, so that `transport`'s log q, which `rules.pathwise` takes, and its
    derivatives are right for any concentrations. z itself is a float of at least 1e-38 in float32:
    what is computed from it, the model's densities and `log_prob` in the other rules, is so from
    concentrations of 0.1 on, where the bound is off by 2e-3 nats per entry (at 0.03 by 2). Compute
    in float64 below.

    Raises:
      ValueError: if there are fewer than 2 classes or 1 site.
    """
    if num_classes < 2 or (num_sites is not None and num_sites < 1):
        raise ValueError(
            f"dirichlet({num_classes}, num_sites={num_sites}): at least 2 classes and 1 site are "
            "needed."
        )
    shape = (num_classes,) if num_sites is None else (num_sites, num_classes)

    def init(key: Key) -> PyTree:
        return {"log_concentration": 0.01 * jax.random.normal(key, shape)}

    def shapes(lam: PyTree) -> Array:
        return jnp.exp(lam["log_concentration"])

    def transport(lam: PyTree, key: Key) -> tuple[Array, Scalar]:
        log_gammas = log_gamma(key, shapes(lam))
        z = jax.nn.softmax(log_gammas)
        log_q = jnp.sum(dirichlet_log_prob(shapes(lam), jax.nn.log_softmax(log_gammas)))
        return jnp.maximum(z, jnp.finfo(z.dtype).tiny), log_q

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        return jnp.sum(dirichlet_log_prob(shapes(lam), jnp.log(z)))

    def natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
        return {
            "log_concentration": dirichlet_natural_step(
                shapes(lam), slope["log_concentration"], rate
            )
        }

    def mean(lam: PyTree) -> Array:
        return jax.nn.softmax(lam["log_concentration"])

    def variance(lam: PyTree) -> Array:
        total = jnp.sum(shapes(lam), axis=-1, keepdims=True)
        return mean(lam) * (1.0 - mean(lam)) / (1.0 + total)

    sizes = f"{num_classes}" if num_sites is None else f"{num_classes}, num_sites={num_sites}"
    return family(
        f"dirichlet({sizes})",
        init=init,
        support=supports.simplex(*shape),
        log_prob=log_prob,
        noise=jax.random.split,
        transport=transport,
        traits=[
            Reparameterized(),
            Entropy(lambda lam: jnp.sum(dirichlet_entropy(shapes(lam)))),
            Kl(lambda lam, lam2: jnp.sum(dirichlet_kl(shapes(lam), shapes(lam2)))),
            Moments(mean, variance),
            Natural(natural_step),
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


def dirichlet_natural_step(shapes: Array, slope: Array, rate: Array) -> Array:
    """Log of the shapes [..., C] after a natural-gradient step, `slope` [..., C] being dL/dlog
    shapes.

    The Fisher information is diag(t(a)) - t(sum a) 1 1', t the trigamma function, inverted by
    Sherman and Morrison; what its determinant loses, 1 - t(sum a) sum 1 / t(a), is written by the
    part of 1 / t(a) that is left beside a - 1/2.
    """
    total = jnp.sum(shapes, axis=-1, keepdims=True)
    own, common = (a - 0.5 + _beside(a) for a in (shapes, total))  # 1 / trigamma
    scaled = own * slope / shapes
    left = 0.5 * (shapes.shape[-1] - 1.0) + _beside(total)
    left = left - jnp.sum(_beside(shapes), axis=-1, keepdims=True)
    step = scaled + own * jnp.sum(scaled, axis=-1, keepdims=True) / left
    grown = 1.0 + jnp.asarray(rate, shapes.dtype) * step / shapes
    return jnp.log(shapes) + jnp.log(jnp.maximum(grown, least_left(rate)))


def _beside(shapes: Array) -> Array:
    """1 / trigamma(a) - (a - 1/2), by its expansion for large shapes, where the difference loses
    its digits.
    """
    large = 1.0 / jnp.maximum(shapes, 50.0)
    terms = jnp.array([-113 / 12096, -11 / 480, -1 / 720, 1 / 24, 1 / 12, 0.0], shapes.dtype)
    near = 1.0 / polygamma(1, shapes) - (shapes - 0.5)
    return jnp.where(shapes > 50.0, jnp.polyval(terms, large), near)


def log_multivariate_beta(shapes: Array) -> Array:
    """Log of the normaliser, sum gammaln(a) - gammaln(sum a): [..., C] -> [...]."""
    return jnp.sum(gammaln(shapes), axis=-1) - gammaln(jnp.sum(shapes, axis=-1))


def open_unit(z: Array) -> Array:
    """Keep z off 0 and 1, where the log-density is infinite and rounding may put it."""
    info = jnp.finfo(z.dtype)
    return jnp.clip(z, info.tiny, 1.0 - info.epsneg)
