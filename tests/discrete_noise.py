"""Exact means of rules for discrete latents: sums over all states, and over all the noise that a
rule can draw.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from checks import FAST_COMPILE

import vijax as vj
from vijax import families
from vijax.families import BernoulliSites, FiniteSupport, log_probs, need
from vijax.objectives import elbo
from vijax.rules import coupled

B3, C4 = families.bernoulli(3), families.categorical(4)
THETA = np.array([0.7, -1.2, 0.9, 0.4])
# Random, edges, ties
BERNOULLI_LOGITS = np.array([[0.4, -1.1, 2.0], [0.0, 12.0, -12.0], [0.0, 0.0, 0.0]])
CATEGORICAL_LOGITS = np.array(
    [[0.4, -1.1, 2.0, 0.3], [0.0, 12.0, -12.0, 12.0], [0.0, 0.0, 0.0, 0.0]]
)
ROUNDING = 1e-10


def nonlinear(theta, z):
    """A smooth function of real z that is no polynomial, with every interaction."""
    weights = theta[: z.shape[-1]]
    return (
        jnp.sum(jnp.sin(2.1 * z * weights) + weights * z)
        + 1.3 * jnp.prod(1.0 + 0.5 * z * weights)
        + theta[0] * z[-1] * z[0]
    )


def affine(theta, z):
    return 1.7 + jnp.vdot(theta[: z.shape[-1]], z)


def support_of(family):
    """Every value of z [S, ...]."""
    return need(family, FiniteSupport).values()


def one_draw(
    rule,
    family,
    *,
    objective=elbo,
    num_samples=1,
    f=nonlinear,
    noise=None,
    control=None,
    density=True,
    **given,
):
    """(theta, logits, control, key) -> gradient of the surrogate in all three. `given`: a
    state, x.
    """
    fixed = family if noise is None else family._replace(noise=lambda key, count: noise)

    def value(theta, logits, control, key):
        def integrand(s):
            return f(theta, s.z) - (s.log_q if density else 0.0)

        return vj.expect(
            key,
            fixed,
            {"logits": logits},
            integrand,
            rule=rule,
            objective=objective,
            num_samples=num_samples,
            control=control,
            **given,
        )[0]

    return jax.grad(value, argnums=(0, 1, 2))


def exact_gradient(
    family, theta, logits, *, objective=elbo, num_samples=1, f=nonlinear, density=True
):
    """The gradient of E[objective(log_w)] in theta and logits, by summing over all K-tuples of
    states.
    """

    def expectation(theta, logits):
        z = support_of(family)
        log_q = log_probs(family, {"logits": logits}, z)
        log_w = jax.vmap(lambda z: f(theta, z))(z) - (log_q if density else 0.0)
        states = np.array(list(itertools.product(range(z.shape[0]), repeat=num_samples)))
        return jnp.sum(
            jnp.exp(jnp.sum(log_q[states], axis=1)) * jax.vmap(objective.value)(log_w[states])
        )

    return jax.grad(expectation, argnums=(0, 1))(theta, logits)


def run(function, *arguments):
    """Compile without optimisation (the programs run once) and run."""
    return jax.device_get(jax.jit(function).lower(*arguments).compile(FAST_COMPILE)(*arguments))


def perturbed(rule, size=0.3):
    """Control parameters away from their initial values, where most learned parts are silent."""
    control = rule.init(jax.random.key(3))
    leaves, tree = jax.tree.flatten(control)
    keys = jax.random.split(jax.random.key(9), max(len(leaves), 1))
    moved = [
        leaf + size * jax.random.normal(k, leaf.shape, leaf.dtype)
        for leaf, k in zip(leaves, keys, strict=False)
    ]
    return jax.tree.unflatten(tree, moved)


def assert_equal(left, right, tolerance=ROUNDING):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def states_noise(family, num_samples):
    """The family's noise that leads to each K-tuple of states [S^K, K, D], and the states' indices
    [S^K, K].
    """
    z = np.asarray(support_of(family))
    index = np.array(list(itertools.product(range(len(z)), repeat=num_samples)))
    return noise_of(family, z)[index], index


def noise_of(family, z):
    """Noise whose transport is the state z, whatever the logits here are."""
    return 1.0 - z if family.traits.get(BernoulliSites) is not None else 1e3 * z


def enumerated_moments(rule, family, logits, *, num_samples=1, **settings):
    """Mean and, per element, variance of the gradient over all K-tuples of states, for each row of
    logits.
    """
    noise, index = states_noise(family, num_samples)
    control, key = perturbed(rule), jax.random.key(0)

    def moments(logits):
        log_q = log_probs(family, {"logits": logits}, support_of(family))
        weights = jnp.exp(jnp.sum(log_q[index], axis=1))

        def at(noise):
            gradient = one_draw(rule, family, num_samples=num_samples, noise=noise, **settings)
            return gradient(jnp.asarray(THETA), logits, control, key)[:2]

        draws = jax.vmap(at)(jnp.asarray(noise))
        mean = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), draws)
        variance = jax.tree.map(
            lambda leaf, m: jnp.tensordot(weights, jnp.square(leaf - m[None]), axes=1), draws, mean
        )
        return mean, variance

    return run(jax.vmap(moments), jnp.asarray(logits))


def exact_rows(family, logits, **settings):
    return run(
        jax.vmap(lambda row: exact_gradient(family, jnp.asarray(THETA), row, **settings)),
        jnp.asarray(logits),
    )


def pair_noise(logits, num_groups, nodes):
    """Every outcome of antithetic uniforms, by Gauss-Legendre `nodes` in each cell where the pair
    does not change.

    Returns uniforms [S, K, 2, D] and weights [S]: sums are exact for rules of degree 2 * nodes - 1
    in the uniforms.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    points, weights = (points + 1.0) / 2.0, weights / 2.0
    columns = []
    for p in np.tile(1.0 / (1.0 + np.exp(np.abs(logits))), num_groups):
        edges = np.array([0.0, p, 1.0 - p, 1.0])
        widths = np.diff(edges)
        columns.append(
            (
                (edges[:-1, None] + widths[:, None] * points).ravel(),
                (widths[:, None] * weights).ravel(),
            )
        )
    first, chance = _product(columns)
    first = first.reshape(-1, num_groups, 1, len(logits))
    return np.concatenate([first, 1.0 - first], axis=2), chance


def group_noise(logits, size):
    """Every pattern of rare values in one group of a Dirichlet copula, as uniforms [S, 1, n, D] of
    0 and 1, and weights.
    """
    # [P, n], 1 where the value is the rare one
    patterns = np.array(list(itertools.product((0, 1), repeat=size)))
    columns = []
    for p in 1.0 / (1.0 + np.exp(np.abs(logits))):
        root = p ** (1.0 / (size - 1))
        # P(j given draws are all rare) = max(j p^(1/(n-1)) - (j - 1), 0)^(n-1); patterns by
        # inclusion and exclusion.
        joint = [1.0] + [max(j * root - (j - 1), 0.0) ** (size - 1) for j in range(1, size + 1)]
        chance = []
        for pattern in patterns:
            ones, zeros = int(pattern.sum()), int(size - pattern.sum())
            chance.append(
                sum(
                    (-1) ** extra * math.comb(zeros, extra) * joint[ones + extra]
                    for extra in range(zeros + 1)
                )
            )
        columns.append((np.arange(len(patterns)), np.array(chance)))
    index, chance = _product(columns)
    uniforms = 1.0 - patterns[index.astype(int)]  # [S, D, n]
    return np.swapaxes(uniforms, 1, 2)[:, None], chance


def coupled_moments(monkeypatch, rule, logits, noise, *, num_samples=1, **settings):
    """Mean and variance of the gradient of a coupled rule over the given (uniforms, weights)."""
    uniforms, weights = (jnp.asarray(part) for part in noise)
    gradient = one_draw(rule, families.bernoulli(len(logits)), num_samples=num_samples, **settings)

    def at(uniforms, logits):
        monkeypatch.setattr(coupled, "copula", lambda key, num_groups, size, like: uniforms)
        return gradient(jnp.asarray(THETA), logits, (), jax.random.key(0))[:2]

    def moments(uniforms, weights, logits):
        draws = jax.vmap(at, in_axes=(0, None))(uniforms, logits)
        mean = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), draws)
        return mean, jax.tree.map(lambda leaf, m: weights @ jnp.square(leaf - m[None]), draws, mean)

    return run(moments, uniforms, weights, jnp.asarray(logits))


def _product(columns):
    """All combinations of the columns' (values, weights): [S, columns] and [S]."""
    values = np.stack(
        [grid.ravel() for grid in np.meshgrid(*(column[0] for column in columns), indexing="ij")],
        axis=1,
    )
    weights = np.stack(
        [grid.ravel() for grid in np.meshgrid(*(column[1] for column in columns), indexing="ij")],
        axis=1,
    )
    return values, np.prod(weights, axis=1)
