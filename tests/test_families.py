"""Families against scipy, enumeration and quadrature: densities, entropies, divergences, samplers,
edge derivatives.
"""

import exact as exact_bounds
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import scipy.stats
from checks import assert_close, assert_unbiased

from vijax import families

DIAG, FULL, BITS, CLASSES, SITES = (
    families.diag_normal(2),
    families.full_normal(3),
    families.bernoulli(3),
    families.categorical(4),
    families.categorical(3, num_sites=2),
)
PRODUCT = families.product(
    c=families.categorical(3), b=families.bernoulli(2), z=families.diag_normal(1)
)
CHAIN = problems.normal_chain()
ALL = [DIAG, FULL, BITS, CLASSES, SITES, PRODUCT, CHAIN]
FINITE = [BITS, CLASSES, SITES, families.product(c=CLASSES, b=BITS)]
WITH_KL = [DIAG, FULL, BITS, CLASSES, SITES, PRODUCT]
named = {"ids": lambda family: family.name}


def generic_lam(family, seed=0):
    like = families.lam_like(family)
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.7 * random.normal(size=leaf.shape), jnp.result_type(float)), like
    )


def scipy_log_prob(family, lam, z):
    """[S] by another library, z leaves [S, ...]."""
    if family is DIAG:
        return scipy.stats.norm(lam["loc"], np.exp(lam["log_scale"])).logpdf(z).sum(axis=-1)
    if family is FULL:
        factor = np.exp(lam["log_scale"])[:, None] * (np.eye(3) + np.tril(lam["lower"], -1))
        return scipy.stats.multivariate_normal(lam["loc"], factor @ factor.T).logpdf(z)
    if family is BITS:
        return scipy.stats.bernoulli(scipy.special.expit(lam["logits"])).logpmf(z).sum(axis=-1)
    probs = scipy.special.softmax(lam["logits"], axis=-1)
    return np.log(np.sum(probs * z, axis=-1)).reshape(len(z), -1).sum(axis=-1)


@pytest.mark.parametrize("family", [DIAG, FULL, BITS, CLASSES, SITES], **named)
def test_log_prob_equals_scipy(family, x64):
    lam = generic_lam(family)
    z = jax.vmap(family.sample, (0, None))(jax.random.split(jax.random.key(1), 20), lam)
    numbers = jax.tree.map(np.asarray, (lam, z))
    assert_close(
        jax.vmap(family.log_prob, (None, 0))(lam, z),
        scipy_log_prob(family, *numbers),
        tolerance=1e-13,
    )


@pytest.mark.parametrize("family", ALL, **named)
def test_transport_returns_the_log_prob_of_what_it_draws(family, x64):
    """In value and in every derivative."""
    lam = generic_lam(family)
    noise = jax.tree.map(lambda leaf: leaf[0], family.noise(jax.random.key(2), 1))
    moved = jax.value_and_grad(lambda lam: family.transport(lam, noise)[1])(lam)
    direct = jax.value_and_grad(lambda lam: family.log_prob(lam, family.transport(lam, noise)[0]))(
        lam
    )
    assert_close(moved, direct, tolerance=1e-12)


@pytest.mark.parametrize("family", ALL, **named)
def test_sampler_matches_log_prob(family, x64):
    """First and second moments of z under the sampler against quadrature or enumeration under
    log_prob.
    """
    lam = generic_lam(family)
    noise = family.noise(jax.random.key(3), 20_000)
    drawn, _ = jax.jit(jax.vmap(family.transport, (None, 0)))(lam, noise)
    z, weights = exact_bounds.quadrature(family, lam, 5)

    def moments(z):
        flat = jnp.concatenate(
            [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(z)], axis=1
        )
        return flat, flat[:, :, None] * flat[:, None, :]

    exact = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), moments(z))
    assert_unbiased(moments(drawn), exact)
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, exact)
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(moments(drawn), shifted)


@pytest.mark.parametrize("family", ALL, **named)
def test_density_is_normalised_under_the_quadrature(family, x64):
    """E_q[dlog q] = 0, which the score rule and its direct term rest on."""
    lam = generic_lam(family)
    z, weights = exact_bounds.quadrature(family, lam, 6)
    scores = jax.vmap(jax.grad(family.log_prob), (None, 0))(lam, z)
    mean = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, axes=1), scores)
    assert_close(mean, jax.tree.map(jnp.zeros_like, mean), tolerance=1e-12)


@pytest.mark.parametrize("family", WITH_KL, **named)
def test_entropy_and_kl_are_exact(family, x64):
    """Values and derivatives, against the sum or the quadrature of log q (exact: it is
    quadratic).
    """
    lam, lam2 = generic_lam(family), generic_lam(family, seed=1)

    def entropy(lam):
        z, weights = exact_bounds.quadrature(family, lam, 4)
        return -weights @ jax.vmap(family.log_prob, (None, 0))(lam, z)

    def kl(lam, lam2):
        z, weights = exact_bounds.quadrature(family, lam, 4)
        return -entropy(lam) - weights @ jax.vmap(family.log_prob, (None, 0))(lam2, z)

    assert_close(
        jax.value_and_grad(family.entropy)(lam), jax.value_and_grad(entropy)(lam), tolerance=1e-12
    )
    both = (
        jax.value_and_grad(family.kl, (0, 1))(lam, lam2),
        jax.value_and_grad(kl, (0, 1))(lam, lam2),
    )
    assert_close(*both, tolerance=1e-12)
    assert abs(family.kl(lam, lam)) < 1e-14


def test_entropy_equals_scipy(x64):
    lam = jax.tree.map(np.asarray, generic_lam(FULL))
    factor = np.exp(lam["log_scale"])[:, None] * (np.eye(3) + np.tril(lam["lower"], -1))
    assert_close(
        FULL.entropy(lam),
        scipy.stats.multivariate_normal(lam["loc"], factor @ factor.T).entropy(),
        tolerance=1e-13,
    )
    assert_close(families.cholesky(lam), factor, tolerance=1e-15)
    back = families.from_covariance(lam["loc"], jnp.asarray(factor @ factor.T))
    assert_close(back, lam | {"lower": np.tril(lam["lower"], -1)}, tolerance=1e-12)


@pytest.mark.parametrize("family", FINITE, **named)
def test_support_has_every_value_once(family, x64):
    z = jax.vmap(lambda z: jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(z)]))(
        family.support()
    )
    assert len(np.unique(z, axis=0)) == family.support_size == len(z)
    lam = generic_lam(family)
    assert_close(
        jnp.sum(jnp.exp(jax.vmap(family.log_prob, (None, 0))(lam, family.support()))),
        1.0,
        tolerance=1e-14,
    )


@pytest.mark.parametrize("logits", [[0.0, 0.0, 0.0], [12.0, -12.0, 0.0], [40.0, -40.0, 0.0]])
def test_bernoulli_derivatives_at_the_edges(logits, x64):
    """log q: b - p and -p(1 - p). Entropy: -logit p(1 - p). Exact, at logit 0 as elsewhere."""
    logits, z = jnp.array(logits), jnp.array([1.0, 0.0, 1.0])
    prob = 1.0 / (1.0 + np.exp(-np.asarray(logits)))
    slope = (
        prob * (1.0 - prob)
        if abs(logits).max() < 40
        else np.array([np.exp(-40.0), np.exp(-40.0), 0.25])
    )
    log_prob, entropy = (
        (lambda a: BITS.log_prob({"logits": a}, z)),
        (lambda a: BITS.entropy({"logits": a})),
    )
    assert_close(jax.grad(log_prob)(logits), z - prob, tolerance=1e-15)
    assert_close(jax.hessian(log_prob)(logits), np.diag(-slope), tolerance=1e-15)
    assert_close(jax.grad(entropy)(logits), -np.asarray(logits) * slope, tolerance=1e-14)
    curvature = -slope * (1.0 + np.asarray(logits) * (1.0 - 2.0 * prob))
    assert_close(jax.hessian(entropy)(logits), np.diag(curvature), tolerance=1e-14)


@pytest.mark.parametrize(
    "logits", [[0.0, 0.0, 0.0, 0.0], [3.0, 3.0, -1.0, -1.0], [12.0, -12.0, 0.0, 0.0]]
)
def test_categorical_derivatives_at_ties_and_edges(logits, x64):
    """log q: e_z - pi and pi pi^T - diag(pi)."""
    logits, z = jnp.array(logits), jnp.eye(4)[1]
    probs = scipy.special.softmax(np.asarray(logits))
    log_prob = lambda a: CLASSES.log_prob({"logits": a}, z)  # noqa: E731
    assert_close(jax.grad(log_prob)(logits), z - probs, tolerance=1e-15)
    assert_close(
        jax.hessian(log_prob)(logits), np.outer(probs, probs) - np.diag(probs), tolerance=1e-15
    )
    third = jax.jacfwd(jax.hessian(log_prob))(logits)
    # A shift of all logits changes nothing
    assert np.all(np.isfinite(third)) and abs(third.sum(axis=0)).max() < 1e-14


def test_normal_second_derivatives(x64):
    """Sampler and density at scale exp(0): d2 log q / dloc2 = -1, d2 / dlog_scale2 = -2 ((z - m) /
    s)^2.
    """
    lam, z = {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}, jnp.array([0.0, 1.5])
    hessian = jax.hessian(DIAG.log_prob)(lam, z)
    assert_close(hessian["loc"]["loc"], -np.eye(2), tolerance=1e-15)
    assert_close(
        hessian["log_scale"]["log_scale"], np.diag(-2.0 * np.asarray(z) ** 2), tolerance=1e-15
    )


def test_product_is_the_sum_of_its_blocks(x64):
    lam = generic_lam(PRODUCT)
    z = PRODUCT.sample(jax.random.key(0), lam)
    parts = PRODUCT.blocks or {}
    assert_close(
        PRODUCT.log_prob(lam, z),
        sum(block.log_prob(lam[n], z[n]) for n, block in parts.items()),
        tolerance=1e-15,
    )
    assert (
        PRODUCT.reparameterized == {"c": False, "b": False, "z": True} and PRODUCT.support is None
    )
    assert PRODUCT.name == "product(c=categorical(3), b=bernoulli(2), z=diag_normal(1))"


def test_chain_is_the_joint_normal(x64):
    """q(z1) q(z2 | z1) with an affine mean is a bivariate normal."""
    lam = jax.tree.map(lambda leaf: np.asarray(leaf)[0], generic_lam(CHAIN))
    first, second = lam["first"], lam["second"]
    mean = [first["loc"], second["slope"] * first["loc"] + second["loc"]]
    variance = np.exp(2 * first["log_scale"])
    covariance = second["slope"] * variance
    joint = [
        [variance, covariance],
        [covariance, second["slope"] * covariance + np.exp(2 * second["log_scale"])],
    ]
    z = CHAIN.sample(jax.random.key(1), generic_lam(CHAIN))
    expected = scipy.stats.multivariate_normal(mean, joint).logpdf([z["first"][0], z["second"][0]])
    assert_close(CHAIN.log_prob(generic_lam(CHAIN), z), expected, tolerance=1e-13)
    assert CHAIN.kl is None and CHAIN.entropy is None


def test_a_family_from_a_sampler_alone(x64):
    """Laplace from `sample` and `log_prob`: noise is a key, and the rules can use it."""
    laplace = families.family(
        "laplace",
        init=lambda key: {"loc": jnp.zeros(())},
        sample=lambda key, lam: lam["loc"] + jax.random.laplace(key),
        log_prob=lambda lam, z: -jnp.abs(z - lam["loc"]) - jnp.log(2.0),
        reparameterized=True,
    )
    lam = {"loc": jnp.full((), 0.3)}
    z, log_q = jax.vmap(laplace.transport, (None, 0))(lam, laplace.noise(jax.random.key(0), 5))
    assert z.shape == (5,) and len(np.unique(z)) == 5
    assert_close(log_q, scipy.stats.laplace(0.3).logpdf(np.asarray(z)), tolerance=1e-14)
