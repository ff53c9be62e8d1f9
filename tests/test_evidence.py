"""log p(x) = ELBO + KL(q || posterior) at random q, to 1e-10; the models state the oracles'
evidence and posterior.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from exact_models import (
    conjugate_normal,
    exact_elbo,
    gaussian_mixture,
    hierarchical_normal,
    linear_regression,
    probabilistic_pca,
    random_lam,
    support_and_probs,
)

from vijax import densities, models
from vijax.families import Kl, need, with_traits

pytestmark = pytest.mark.usefixtures("x64")


CASES = [
    conjugate_normal,
    linear_regression,
    probabilistic_pca,
    hierarchical_normal,
    gaussian_mixture,
]
BY_NAME = pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)


def assert_identity(exact, *, tolerance=1e-10):
    """log p(x) = ELBO + KL at three random q."""
    lams = [random_lam(seed, exact.family) for seed in range(3)]

    @jax.jit
    def terms(lam, posterior):
        return exact_elbo(exact, lam), need(exact.family, Kl).value(lam, posterior)

    for lam in lams:
        elbo, kl = (float(term) for term in terms(lam, exact.posterior))
        assert kl > 0.01, "q is the posterior: nothing is tested"
        gap = elbo + kl - exact.log_evidence
        assert abs(gap) < tolerance, f"ELBO + KL = {elbo + kl}, log p(x) = {exact.log_evidence}"


@BY_NAME
def test_evidence_is_elbo_plus_kl(make):
    assert_identity(make())


@BY_NAME
def test_model_states_the_oracles_evidence_and_posterior(make):
    exact = make()
    evidence, lam = jax.jit(exact.ours)()
    assert abs(float(evidence) - exact.log_evidence) < 1e-10
    if lam is not None:
        z, _ = support_and_probs(exact.family, random_lam(0, exact.family))
        log_prob = jax.jit(jax.vmap(exact.family.log_prob, (None, 0)))
        np.testing.assert_allclose(
            log_prob(lam, z), log_prob(exact.posterior, z), rtol=0, atol=1e-10
        )


def test_hierarchical_marginals_are_the_joint_posteriors():
    model, x = (
        models.hierarchical_normal(1, prior_scale=1.3, noise_scale=0.8),
        np.array([[0.4], [-1.7], [2.0]]),
    )
    _, loc, cov = oracles.hierarchical_normal(x[:, 0], 1.3, np.exp(0.2), 0.8)
    lam = model.posterior({"log_scale": jnp.array([0.2])}, jnp.asarray(x))
    ours = [np.concatenate([lam["w"][name], lam["z"][name][:, 0]]) for name in ("loc", "log_scale")]
    np.testing.assert_allclose(ours[0], loc, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours[1], 0.5 * np.log(np.diag(cov)), rtol=0, atol=1e-10)


@BY_NAME
def test_bound_is_tight_at_the_posterior(make):
    exact = make()
    assert (
        abs(
            float(jax.jit(lambda lam: exact_elbo(exact, lam))(exact.posterior)) - exact.log_evidence
        )
        < 1e-10
    )


def dropped_constant(exact):
    return exact._replace(log_joint=lambda z: exact.log_joint(z) + 0.5 * densities.LOG_2PI)


def forgotten_prior(exact):
    return exact._replace(
        log_joint=lambda z: exact.log_joint(z) - jnp.sum(densities.standard_normal(z))
    )


def swapped_kl(exact):
    right = need(exact.family, Kl).value
    return exact._replace(family=with_traits(exact.family, Kl(lambda lam, lam2: right(lam2, lam))))


def wrong_posterior(exact):
    shifted = jax.tree.map(
        lambda leaf: leaf + 1e-3 * np.arange(1, 1 + leaf.size).reshape(leaf.shape), exact.posterior
    )
    return exact._replace(posterior=shifted)


@pytest.mark.parametrize(
    "fault",
    [dropped_constant, forgotten_prior, swapped_kl, wrong_posterior],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize(
    "make", [linear_regression, gaussian_mixture], ids=lambda make: make.__name__
)
def test_identity_catches(make, fault):
    with pytest.raises(AssertionError, match="log p"):
        assert_identity(fault(make()))
