"""Exact answers for multi-sample objectives and rules: every K-tuple of a discrete latent is
enumerated, every K-tuple of Gaussian noise runs over a quadrature grid, so that comparisons are to
rounding in float64. Test files import `precise`.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax import baselines, objectives, path_weights, rules
from vijax.families import (
    FiniteSupport,
    bernoulli,
    categorical,
    chain,
    diag_normal,
    log_probs,
    need,
    transports,
)

BETAS = (0.0, 0.1, 0.4, 1.0)
B2, B3, C4 = bernoulli(2), bernoulli(3), categorical(4)
SCORE, PATHWISE, DOUBLY, WAKE = (
    rules.score(),
    rules.pathwise(),
    rules.doubly_reparameterized(),
    rules.wake(),
)
GENERALIZED = rules.generalized_doubly_reparameterized()
STICKING, WAKE_PATHS, MIXED_PATHS = (
    rules.doubly_reparameterized(weights)
    for weights in (path_weights.sticking(), path_weights.wake(), path_weights.interpolated(0.3))
)


@pytest.fixture(autouse=True)
def precise(x64):
    """Everything runs in float64, and is compiled often but run once: with few optimisations."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Toy(NamedTuple):
    """One latent with all its noise: `noise` gives every K-tuple, `weigh` its probability (under
    lam, if discrete).

    Attributes:
      log_joint: (theta, z) -> []
      noise: K -> [T, K, ...]
      weigh: (lam, noise [T, K, ...]) -> [T]
      prior: theta -> eta
    """

    family: vj.Family
    log_joint: Callable
    noise: Callable
    weigh: Callable
    prior: Callable = lambda theta: None
    prior_family: Any = None


def support_of(family: vj.Family):
    """Every value of z [S, ...]."""
    return need(family, FiniteSupport).values()


def injected(toy: Toy, noise) -> vj.Family:
    """The family, drawing this noise [K, ...] whatever the key."""
    return toy.family._replace(noise=lambda key, num_samples: noise)


@functools.cache
def discrete(family: vj.Family) -> Toy:
    """Log p(x, z) is a table over the states, theta itself; the noise is z."""
    states = np.asarray(support_of(family))
    by_value = family._replace(transport=lambda lam, z: (z, family.log_prob(lam, z)))

    def log_joint(theta, z):
        match = jnp.all(z[None] == states, axis=tuple(range(1, states.ndim)))
        return jnp.vdot(match.astype(theta.dtype), theta)

    def noise(num_samples):
        return jnp.asarray(
            states[np.array(list(itertools.product(range(len(states)), repeat=num_samples)))]
        )

    def weigh(lam, z):
        return jnp.exp(jnp.sum(jax.vmap(lambda z: log_probs(family, lam, z))(z), axis=1))

    return Toy(by_value, log_joint, noise, weigh)


def hermite(num_nodes: int, dim: int):
    """Nodes [T, dim] and weights [T] for a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    grid = np.stack([g.ravel() for g in np.meshgrid(*[points] * dim, indexing="ij")], axis=-1)
    mass = np.prod(
        np.stack([g.ravel() for g in np.meshgrid(*[weights] * dim, indexing="ij")]), axis=0
    )
    return grid, mass / (2.0 * math.pi) ** (dim / 2)


@functools.cache
def line(num_nodes: int) -> Toy:
    """One Gaussian latent, Gaussian prior with parameters, a curved mean of x."""

    def log_joint(theta, z):
        mean = theta["slope"] * z[0] + 0.3 * jnp.sin(z[0])
        return diag_normal(1).log_prob(theta["prior"], z) - jnp.square(0.7 - mean) / 0.8

    def noise(num_samples):
        return jnp.asarray(hermite(num_nodes, num_samples)[0])[:, :, None]

    def weigh(lam, noise):
        return jnp.asarray(hermite(num_nodes, noise.shape[1])[1])

    return Toy(
        diag_normal(1), log_joint, noise, weigh, lambda theta: theta["prior"], diag_normal(1)
    )


def step_down(first: str, then: str) -> vj.Family:
    """A Gaussian chain in the order of its names: the mean of the second is affine in the first."""

    def locate(lam, before):
        return {"loc": lam["shift"] + lam["slope"] * before, "log_scale": lam["log_scale"]}

    def init(key):
        return {"shift": jnp.zeros(1), "slope": jnp.ones(1), "log_scale": jnp.zeros(1)}

    return chain((first, diag_normal(1)), (then, diag_normal(1)), locate, init)


@functools.cache
def two_levels(num_nodes: int = 12) -> Toy:
    """(H2) q(z1) q(z2 | z1) against p(z2) p(z1 | z2) p(x | z1): both are chains, in opposite
    order.
    """
    family, prior = step_down("z1", "z2"), step_down("z2", "z1")

    def log_joint(theta, z):
        return prior.log_prob(theta["prior"], z) - 0.5 * jnp.sum(jnp.square(theta["x"] - z["z1"]))

    def noise(num_samples):
        nodes = jnp.asarray(hermite(num_nodes, 2 * num_samples)[0]).reshape(-1, num_samples, 2)
        return {"z1": nodes[..., :1], "z2": nodes[..., 1:]}

    def weigh(lam, noise):
        return jnp.asarray(hermite(num_nodes, 2 * noise["z1"].shape[1])[1])

    return Toy(family, log_joint, noise, weigh, lambda theta: theta["prior"], prior)


def linear(shift, slope, log_scale):
    return {
        "shift": jnp.array([shift]),
        "slope": jnp.array([slope]),
        "log_scale": jnp.array([log_scale]),
    }


def normal(loc, log_scale):
    return {"loc": jnp.array([loc]), "log_scale": jnp.array([log_scale])}


def surrogate_of(toy: Toy, rule, objective, num_samples):
    """(theta, lam, noise of one K-tuple) -> the surrogate."""

    def value(theta, lam, noise, key=None):
        family = toy.family if noise is None else injected(toy, noise)
        return vj.expect(
            jax.random.key(0) if key is None else key,
            family,
            lam,
            lambda s: toy.log_joint(theta, s.z) - s.log_q,
            rule=rule,
            objective=objective,
            num_samples=num_samples,
            prior=toy.prior(theta),
        )[0]

    return value


@functools.cache
def compiled_gradients(toy: Toy, rule, objective, num_samples):
    grad = jax.grad(surrogate_of(toy, rule, objective, num_samples), argnums=(0, 1))

    @jax.jit
    def run(theta, lam):
        noise = toy.noise(num_samples)
        return jax.vmap(grad, in_axes=(None, None, 0))(theta, lam, noise), toy.weigh(lam, noise)

    return run


def every_gradient(toy: Toy, rule, objective, num_samples, theta, lam):
    """Gradients in (theta, lam), leaves [T, ...], at every K-tuple, and the tuples' probabilities
    [T].
    """
    return jax.device_get(compiled_gradients(toy, rule, objective, num_samples)(theta, lam))


def mean_gradient(toy, rule, objective, num_samples, theta, lam):
    draws, probs = every_gradient(toy, rule, objective, num_samples, theta, lam)
    return jax.tree.map(lambda leaf: np.tensordot(probs, leaf, axes=1), draws)


@functools.cache
def compiled_expectation(toy: Toy, objective, num_samples):
    def value(theta, lam):
        noise = toy.noise(num_samples)

        def log_w(noise):
            z, log_q = toy.family.transport(lam, noise)
            return toy.log_joint(theta, z) - log_q

        return jnp.vdot(
            toy.weigh(lam, noise), jax.vmap(objective.value)(jax.vmap(jax.vmap(log_w))(noise))
        )

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


def expected(toy, objective, num_samples, theta, lam):
    """E[objective(log_w)], exact."""
    return compiled_expectation(toy, objective, num_samples)(theta, lam)[0]


def exact_gradient(toy, objective, num_samples, theta, lam):
    """Its gradient in (theta, lam)."""
    return jax.device_get(compiled_expectation(toy, objective, num_samples)(theta, lam)[1])


def wake_term(toy, objective, num_samples, theta, lam):
    """E[sum_k R_k dlog q(z_k)/dlam], exact, by its definition."""
    noise = toy.noise(num_samples)
    fixed = jax.lax.stop_gradient(lam)

    def one(lam, noise):
        z, log_q = jax.lax.stop_gradient(transports(toy.family, fixed, noise))
        weights = jax.grad(objective.value)(jax.vmap(lambda z: toy.log_joint(theta, z))(z) - log_q)
        return jnp.vdot(weights, log_probs(toy.family, lam, z))

    per_tuple = jax.jit(jax.vmap(jax.grad(one), in_axes=(None, 0)))(lam, noise)
    return jax.tree.map(lambda leaf: jnp.tensordot(toy.weigh(lam, noise), leaf, axes=1), per_tuple)


def bits(seed=0):
    key1, key2 = jax.random.split(jax.random.key(seed))
    return jax.random.normal(key1, (8,)) - 1.0, {"logits": 0.7 * jax.random.normal(key2, (3,))}


def line_point():
    return {"slope": jnp.array(0.6), "prior": normal(0.2, 0.1)}, normal(0.5, -0.3)


def chain_point():
    prior = {"z2": normal(0.1, 0.2), "z1": linear(0.3, 0.7, -0.2)}
    return {"prior": prior, "x": jnp.array([0.8])}, {
        "z1": normal(0.4, -0.4),
        "z2": linear(-0.1, 0.5, -0.1),
    }


def bits_points():
    """Random, tied (equal weights everywhere but one) and saturated parameters."""
    theta, lam = bits()
    tied = jnp.zeros(8).at[3].set(0.5), {"logits": jnp.zeros(3)}
    saturated = theta, {"logits": jnp.array([12.0, -12.0, 0.0])}
    return [(theta, lam), tied, saturated]


OBJECTIVES = {
    "iwae": objectives.iwae,
    "renyi": objectives.renyi(0.5),
    "jackknife": objectives.jackknife(),
    "cubo": objectives.cubo(2.0),
    "exp_cubo": objectives.exp_cubo(2.0, reference=-1.0),
    "thermodynamic": objectives.thermodynamic(BETAS),
}
SCORES = {
    "none": baselines.none(),
    "geometric": baselines.leave_one_out(),
    "arithmetic": baselines.leave_one_out(objectives.iwae),
    "ovis": baselines.ovis(0.0),
}
SCORE_RULES = {name: rules.score(baseline) for name, baseline in SCORES.items()}
OVIS_ONE = rules.score(baselines.ovis(1.0))
