"""Families against formulas: derivatives at edges and ties, blocks as sums, a chain as the joint
normal, families made by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import scipy.special
import scipy.stats
from checks import assert_close
from family_facts import generic_lam

from vijax import families, supports
from vijax.families import Blocks, Entropy, FiniteSupport, Kl, Reparameterized, need

DIAG, FULL, BITS, CLASSES = (
    families.diag_normal(2),
    families.full_normal(3),
    families.bernoulli(3),
    families.categorical(4),
)
PRODUCT = families.product(
    c=families.categorical(3), b=families.bernoulli(2), z=families.diag_normal(1)
)
CHAIN = problems.normal_chain()


def test_entropy_equals_scipy(x64):
    lam = jax.tree.map(np.asarray, generic_lam(FULL))
    factor = np.exp(lam["log_scale"])[:, None] * (np.eye(3) + np.tril(lam["lower"], -1))
    assert_close(
        need(FULL, Entropy).value(lam),
        scipy.stats.multivariate_normal(lam["loc"], factor @ factor.T).entropy(),
        tolerance=1e-13,
    )
    assert_close(families.cholesky(lam), factor, tolerance=1e-15)
    back = families.from_covariance(lam["loc"], jnp.asarray(factor @ factor.T))
    assert_close(back, lam | {"lower": np.tril(lam["lower"], -1)}, tolerance=1e-12)


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
        (lambda a: need(BITS, Entropy).value({"logits": a})),
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
    z = families.sample(jax.random.key(0), PRODUCT, lam)
    parts = need(PRODUCT, Blocks).families
    assert_close(
        PRODUCT.log_prob(lam, z),
        sum(block.log_prob(lam[n], z[n]) for n, block in parts.items()),
        tolerance=1e-15,
    )
    reparameterized = {n: b.traits.get(Reparameterized) is not None for n, b in parts.items()}
    assert reparameterized == {"c": False, "b": False, "z": True}
    assert PRODUCT.traits.get(Reparameterized) is PRODUCT.traits.get(FiniteSupport) is None
    assert PRODUCT.support == {n: block.support for n, block in parts.items()}
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
    z = families.sample(jax.random.key(1), CHAIN, generic_lam(CHAIN))
    expected = scipy.stats.multivariate_normal(mean, joint).logpdf([z["first"][0], z["second"][0]])
    assert_close(CHAIN.log_prob(generic_lam(CHAIN), z), expected, tolerance=1e-13)
    assert CHAIN.traits.get(Kl) is CHAIN.traits.get(Entropy) is None


def test_a_family_from_a_sampler_alone(x64):
    """Laplace from `sample` and `log_prob`: noise is a key, and the rules can use it."""
    laplace = families.family(
        "laplace",
        init=lambda key: {"loc": jnp.zeros(())},
        sample=lambda key, lam: lam["loc"] + jax.random.laplace(key),
        log_prob=lambda lam, z: -jnp.abs(z - lam["loc"]) - jnp.log(2.0),
        support=supports.real(),
        traits=[Reparameterized()],
    )
    lam = {"loc": jnp.full((), 0.3)}
    z, log_q = families.transports(laplace, lam, laplace.noise(jax.random.key(0), 5))
    assert z.shape == (5,) and len(np.unique(z)) == 5
    assert_close(log_q, scipy.stats.laplace(0.3).logpdf(np.asarray(z)), tolerance=1e-14)
