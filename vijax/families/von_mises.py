"""Von Mises: angles, with the sampler differentiated through the distribution function."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, i1e

from vijax import supports
from vijax.families.base import as_shape, family, sized
from vijax.families.traits import Entropy, Kl, Reparameterized
from vijax.types import Array, Family, Key, PyTree, Scalar

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


def von_mises(size: int | tuple[int, ...]) -> Family:
    """Independent angles in [-pi, pi], density exp(c cos(z - loc)) / (2 pi I0(c)). Figurnov et al.
    2018.

    lam: `loc` [D], radians, `log_concentration` [D], the log of c. z: [D], radians. Path
    derivatives are right for an integrand that is continuous on the circle, f(-pi) = f(pi): write
    it in cos z and sin z.

    Args:
      size: D, or the shape of z and of lam's leaves: `(3, 2)`, or `()` for one angle.
    """
    shape = as_shape("von_mises", size)

    def init(key: Key) -> PyTree:
        return {"loc": 0.01 * jax.random.normal(key, shape), "log_concentration": jnp.zeros(shape)}

    def sample(key: Key, lam: PyTree) -> Array:
        turned = lam["loc"] + centred_angle(key, jnp.exp(lam["log_concentration"]))
        return turned - 2.0 * math.pi * jax.lax.stop_gradient(jnp.round(turned / (2.0 * math.pi)))

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        concentration = jnp.exp(lam["log_concentration"])
        # cos - 1 by the half angle, so that the two large parts of c cos z - log I0(c) cancel on
        # paper.
        fall = 2.0 * jnp.square(jnp.sin(0.5 * (z - lam["loc"])))
        return -jnp.sum(
            concentration * fall + log_scaled_bessel(concentration) + math.log(2.0 * math.pi)
        )

    def entropy(lam: PyTree) -> Scalar:
        concentration = jnp.exp(lam["log_concentration"])
        spread = concentration * mean_fall(concentration)
        return jnp.sum(spread + log_scaled_bessel(concentration) + math.log(2.0 * math.pi))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        one, two = jnp.exp(lam["log_concentration"]), jnp.exp(lam2["log_concentration"])
        fall, turn = mean_fall(one), 2.0 * jnp.square(jnp.sin(0.5 * (lam["loc"] - lam2["loc"])))
        mean_fall_two = fall + (1.0 - fall) * turn  # E[1 - cos(z - loc2)]
        return jnp.sum(
            log_scaled_bessel(two) - log_scaled_bessel(one) + two * mean_fall_two - one * fall
        )

    return family(
        sized("von_mises", shape),
        init=init,
        support=supports.circle(*shape),
        log_prob=log_prob,
        sample=sample,
        traits=[Reparameterized(), Entropy(entropy), Kl(kl)],
    )


def centred_angle(key: Key, concentration: Array) -> Array:
    """Angles around 0 by rejection from a normal truncated to [-pi, pi], differentiable in the
    concentration [D].

    1 - cos t >= 2 (t / pi)^2 makes exp(-2 c (t / pi)^2) an envelope; at least 2/pi of the proposals
    are accepted, for any c.
    """
    fixed = jax.lax.stop_gradient(concentration)
    scale = 0.5 * math.pi / jnp.sqrt(fixed)

    def step(carry: tuple[Key, Array, Array]) -> tuple[Key, Array, Array]:
        key, angle, done = carry
        key, proposal_key, accept_key = jax.random.split(key, 3)
        bound = math.pi / scale
        proposal = scale * jax.random.truncated_normal(
            proposal_key, -bound, bound, fixed.shape, fixed.dtype
        )
        excess = 2.0 * (jnp.square(jnp.sin(0.5 * proposal)) - jnp.square(proposal / math.pi))
        accept = jax.random.exponential(accept_key, fixed.shape, fixed.dtype) >= fixed * excess
        return key, jnp.where(done, angle, proposal), done | accept

    start = (key, jnp.zeros_like(fixed), jnp.zeros(fixed.shape, bool))
    _, angle, _ = jax.lax.while_loop(lambda carry: ~jnp.all(carry[2]), step, start)
    return with_derivative(angle, concentration)


@jax.custom_jvp
def with_derivative(angle: Array, concentration: Array) -> Array:
    """The angle around 0, whose derivative in the concentration is -(dF/dc) / (dF/dangle), F the
    distribution function.
    """
    return angle


@with_derivative.defjvp
def _with_derivative_jvp(primals, tangents):
    angle, concentration = primals
    return angle, angle_derivative(angle, concentration) * tangents[1] + tangents[0]


def angle_derivative(angle: Array, concentration: Array) -> Array:
    """-int_0^z exp(c (cos t - cos z)) (cos t - E cos) dt, elementwise; the integral to pi vanishes.

    Inside the angle where cos z = E cos it is taken from 0, outside from pi: the integrand has one
    sign, nothing cancels.
    """
    z, fall = jnp.abs(angle), mean_fall(concentration)
    falling = 2.0 * jnp.square(jnp.sin(0.5 * z))  # 1 - cos z
    inside = falling < fall
    # Beyond `far` the integrand is below exp(-40) of its start.
    far = 2.0 * jnp.arcsin(jnp.sqrt(jnp.clip(0.5 * falling + 20.0 / concentration, 0.0, 1.0)))
    low, high = jnp.where(inside, 0.0, z), jnp.where(inside, z, far)
    half = 0.5 * (high - low)

    def at(node: Array, weight: Array) -> Array:
        falls = 2.0 * jnp.square(jnp.sin(0.5 * (low + half * (1.0 + node))))
        return weight * jnp.exp(concentration * (falling - falls)) * (fall - falls)

    terms = jax.vmap(at)(jnp.asarray(NODES, z.dtype), jnp.asarray(WEIGHTS, z.dtype))  # [64, ...]
    integral = half * jnp.sum(terms, axis=0)
    return -jnp.sign(angle) * jnp.where(inside, integral, -integral)


@jax.custom_jvp
def log_scaled_bessel(concentration: Array) -> Array:
    """Log I0(c) - c, elementwise; its derivative is minus `mean_fall`, without cancellation."""
    return jnp.log(i0e(concentration))


@log_scaled_bessel.defjvp
def _log_scaled_bessel_jvp(primals, tangents):
    return log_scaled_bessel(primals[0]), -mean_fall(primals[0]) * tangents[0]


def mean_fall(concentration: Array) -> Array:
    """1 - I1(c) / I0(c) = E[1 - cos], elementwise; for large c by its expansion, where the quotient
    would lose its digits.
    """
    small = jnp.minimum(concentration, 100.0)
    inverse = 1.0 / jnp.maximum(concentration, 100.0)
    # Of inverse^6 ... inverse^0
    coefficients = (1073 / 1024, 13 / 32, 25 / 128, 1 / 8, 1 / 8, 1 / 2, 0.0)
    expansion = jnp.polyval(jnp.asarray(coefficients, inverse.dtype), inverse)
    return jnp.where(concentration <= 100.0, (i0e(small) - i1e(small)) / i0e(small), expansion)
