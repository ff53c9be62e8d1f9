"""log p(x) = ELBO + KL(q || posterior) at random q, to 1e-10; ELBO <= IWAE_K <= log p(x), increasing in K."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import vijax as vj
from vijax import densities, families, models, objectives

pytestmark = pytest.mark.usefixtures("x64")


class Exact(NamedTuple):
    """A model at one data set, all of its latents as one z of `family`, which contains the posterior."""

    family: vj.Family
    log_joint: Any  # z -> [] log p(x, z)
    log_evidence: float  # the oracle's
    posterior: Any  # the oracle's, as lam
    ours: Any  # () -> (log_evidence, posterior lam or None) by the model


def normal_lam(loc, covariance):
    """Lam of `full_normal` by numpy's Cholesky factor."""
    factor = np.linalg.cholesky(covariance)
    scale = np.diag(factor)
    return {"loc": loc, "log_scale": np.log(scale), "lower": np.tril(factor / scale[:, None], -1)}


def conjugate_normal():
    rng = np.random.default_rng(0)
    model, x = models.conjugate_normal(3, noise_scale=0.7), rng.normal(size=3)
    theta = {"loc": rng.normal(size=3), "log_scale": 0.5 * rng.normal(size=3)}
    prior = np.diag(np.exp(2.0 * theta["log_scale"]))
    evidence, loc, cov = oracles.linear_gaussian(x, np.eye(3), np.zeros(3), 0.49 * np.eye(3), theta["loc"], prior)
    lam = {"loc": loc, "log_scale": 0.5 * np.log(np.diag(cov))}
    return Exact(
        families.diag_normal(3), lambda z: model.log_local(theta, None, z, x), evidence, lam,
        lambda: (model.log_evidence(theta, x), model.posterior(theta, x)),
    )  # fmt: skip


def linear_regression():
    rng = np.random.default_rng(1)
    model = models.linear_regression(3, noise_scale=0.6, prior_scale=1.4)
    x = {"features": rng.normal(size=(7, 3)), "label": rng.normal(size=7)}
    evidence, loc, cov = oracles.linear_gaussian(
        x["label"], x["features"], np.zeros(7), 0.36 * np.eye(7), np.zeros(3), 1.96 * np.eye(3)
    )

    def log_joint(w):
        return model.log_prior((), w) + jnp.sum(jax.vmap(lambda row: model.log_local((), w, None, row))(x))

    return Exact(
        families.full_normal(3), log_joint, evidence, normal_lam(loc, cov),
        lambda: (model.log_evidence((), x), model.posterior((), x)),
    )  # fmt: skip


def probabilistic_pca():
    rng = np.random.default_rng(2)
    model, x = models.probabilistic_pca(5, 2), rng.normal(size=5)
    theta = {"weights": rng.normal(size=(5, 2)), "bias": rng.normal(size=5), "log_noise": np.array(-0.4)}
    evidence, loc, cov = oracles.linear_gaussian(
        x, theta["weights"], theta["bias"], np.exp(-0.8) * np.eye(5), np.zeros(2), np.eye(2)
    )
    return Exact(
        families.full_normal(2), lambda z: model.log_local(theta, None, z, x), evidence, normal_lam(loc, cov),
        lambda: (model.log_evidence(theta, x), model.posterior(theta, x)),
    )  # fmt: skip


def hierarchical_normal():
    """w and both z_i as one vector [3]: the joint posterior has correlations that no mean-field guide has."""
    model, x = models.hierarchical_normal(1, prior_scale=1.3, noise_scale=0.8), np.array([0.4, -1.7])
    theta = {"log_scale": np.array([0.2])}
    evidence, loc, cov = oracles.hierarchical_normal(x, 1.3, np.exp(0.2), 0.8)

    def log_joint(v):
        local = jax.vmap(lambda z, row: model.log_local(theta, v[:1], z, row))(v[1:, None], x[:, None])
        return model.log_prior(theta, v[:1]) + jnp.sum(local)

    return Exact(
        families.full_normal(3), log_joint, evidence, normal_lam(loc, cov),
        lambda: (model.log_evidence(theta, x[:, None]), None),
    )  # fmt: skip


def gaussian_mixture():
    rng = np.random.default_rng(3)
    model, x = models.gaussian_mixture(3, 2), rng.normal(size=2)
    theta = {"logits": rng.normal(size=3), "loc": rng.normal(size=(3, 2)), "log_scale": 0.3 * rng.normal(size=(3, 2))}
    joint = oracles.mixture_log_joint(x[None], **theta)[0]
    return Exact(
        families.categorical(3), lambda z: model.log_local(theta, None, z, x),
        float(oracles.mixture_log_evidence(x[None], theta)[0]), {"logits": joint},
        lambda: (model.log_evidence(theta, x), model.posterior(theta, x)),
    )  # fmt: skip


CASES = [conjugate_normal, linear_regression, probabilistic_pca, hierarchical_normal, gaussian_mixture]
BY_NAME = pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)


def random_lam(seed, family):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), families.lam_like(family))


def support_and_probs(family, lam):
    """Points and weights at which E_q of the log weights is exact: the support, or Gauss-Hermite nodes moved to q."""
    if family.support is not None:
        z = family.support()
        return z, jnp.exp(jax.vmap(family.log_prob, (None, 0))(lam, z))
    # The log weight is quadratic in z: three nodes per dimension are exact.
    nodes, weights = oracles.gauss_hermite(families.z_like(family).shape[0], 3)
    z, _ = jax.vmap(family.transport, (None, 0))(lam, jnp.asarray(nodes))
    return z, jnp.asarray(weights)


def exact_elbo(exact, lam):
    z, weights = support_and_probs(exact.family, lam)
    log_w = jax.vmap(exact.log_joint)(z) - jax.vmap(exact.family.log_prob, (None, 0))(lam, z)
    return jnp.vdot(weights, log_w)


def assert_identity(exact, *, tolerance=1e-10):
    """log p(x) = ELBO + KL at three random q."""
    lams = [random_lam(seed, exact.family) for seed in range(3)]

    @jax.jit
    def terms(lam, posterior):
        return exact_elbo(exact, lam), exact.family.kl(lam, posterior)

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
        np.testing.assert_allclose(log_prob(lam, z), log_prob(exact.posterior, z), rtol=0, atol=1e-10)


def test_hierarchical_marginals_are_the_joint_posteriors():
    model, x = models.hierarchical_normal(1, prior_scale=1.3, noise_scale=0.8), np.array([[0.4], [-1.7], [2.0]])
    _, loc, cov = oracles.hierarchical_normal(x[:, 0], 1.3, np.exp(0.2), 0.8)
    lam = model.posterior({"log_scale": jnp.array([0.2])}, jnp.asarray(x))
    ours = [np.concatenate([lam["w"][name], lam["z"][name][:, 0]]) for name in ("loc", "log_scale")]
    np.testing.assert_allclose(ours[0], loc, rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours[1], 0.5 * np.log(np.diag(cov)), rtol=0, atol=1e-10)


@BY_NAME
def test_bound_is_tight_at_the_posterior(make):
    exact = make()
    assert abs(float(jax.jit(lambda lam: exact_elbo(exact, lam))(exact.posterior)) - exact.log_evidence) < 1e-10


def dropped_constant(exact):
    return exact._replace(log_joint=lambda z: exact.log_joint(z) + 0.5 * densities.LOG_2PI)


def forgotten_prior(exact):
    return exact._replace(log_joint=lambda z: exact.log_joint(z) - jnp.sum(densities.standard_normal(z)))


def swapped_kl(exact):
    return exact._replace(family=exact.family._replace(kl=lambda lam, lam2: exact.family.kl(lam2, lam)))


def wrong_posterior(exact):
    shifted = jax.tree.map(lambda leaf: leaf + 1e-3 * np.arange(1, 1 + leaf.size).reshape(leaf.shape), exact.posterior)
    return exact._replace(posterior=shifted)


@pytest.mark.parametrize("fault", [dropped_constant, forgotten_prior, swapped_kl, wrong_posterior], ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [linear_regression, gaussian_mixture], ids=lambda make: make.__name__)
def test_identity_catches(make, fault):
    with pytest.raises(AssertionError, match="log p"):
        assert_identity(fault(make()))


def mixture_bounds(bound, *, most=5):
    """(ELBO, bound_1..bound_most, log p(x)) of the mixture, each expectation over all tuples of assignments."""
    exact = gaussian_mixture()
    z = exact.family.support()
    log_q = jax.vmap(exact.family.log_prob, (None, 0))(random_lam(5, exact.family), z)
    log_w = np.asarray(jax.vmap(exact.log_joint)(z) - log_q)
    probs = np.exp(np.asarray(log_q))
    values = [
        oracles.bound_over_tuples(log_w, probs, k, lambda t: np.asarray(jax.jit(jax.vmap(bound))(t)))
        for k in range(1, most + 1)
    ]
    return float(probs @ log_w), values, exact.log_evidence


def assert_ordered(elbo, values, log_evidence):
    """IWAE_1 is the ELBO, IWAE_K increases strictly, and log p(x) is above them all."""
    assert abs(elbo - values[0]) < 1e-12, f"with one sample {values[0]} is not the ELBO {elbo}"
    assert np.all(np.diff(values) > 1e-3), f"not increasing in K: {values}"
    assert values[-1] < log_evidence, f"{values[-1]} is above log p(x) = {log_evidence}"


def test_importance_weighted_bounds_are_ordered_exactly():
    assert_ordered(*mixture_bounds(objectives.iwae))


def test_order_catches_a_sum_in_place_of_the_mean():
    with pytest.raises(AssertionError, match="above"):
        elbo, values, log_evidence = mixture_bounds(jax.nn.logsumexp)
        assert_ordered(elbo, values, log_evidence)


def test_order_catches_an_average_of_logs():
    with pytest.raises(AssertionError, match="increasing"):
        assert_ordered(*mixture_bounds(objectives.elbo))


def test_renyi_bounds_decrease_in_alpha_through_iwae_and_elbo():
    bounds = [mixture_bounds(objectives.renyi(alpha), most=3)[1][2] for alpha in (-1.0, 0.0, 0.5, 0.999, 1.0, 2.0)]
    assert np.all(np.diff(bounds) < 0.0)
    elbo, values, _ = mixture_bounds(objectives.iwae, most=3)
    assert abs(bounds[1] - values[2]) < 1e-12 and abs(bounds[4] - elbo) < 1e-12


NUM_DRAWS, MOST = 4000, 16


@functools.cache
def normal_log_weights(log_q_error=0.0):
    """[S, 16] log weights of the conjugate normal under a q that is wider than the posterior, and log p(x)."""
    exact = conjugate_normal()
    lam = {"loc": jnp.asarray(exact.posterior["loc"]) + 0.3, "log_scale": jnp.asarray(exact.posterior["log_scale"]) + 0.4}

    @jax.jit
    def draws(keys):
        def one(key):
            drawn = vj.rules.draw(key, exact.family, lam, MOST)
            return vj.rules.evaluate(lambda s: exact.log_joint(s.z) - s.log_q - log_q_error, drawn)[0]

        return jax.vmap(one)(keys)

    return np.asarray(draws(jax.random.split(jax.random.key(0), NUM_DRAWS))), exact, lam


def z_score(draws, mean):
    draws = np.asarray(draws)
    return (draws.mean() - mean) / (draws.std(ddof=1) / len(draws) ** 0.5)


def assert_bounds_of_draws(log_w, log_evidence, elbo):
    """The same order by sampling; and exp(IWAE_K) is an unbiased estimate of p(x) for every K."""
    bounds = {k: np.asarray(jax.jit(jax.vmap(objectives.iwae))(log_w[:, :k])) for k in (1, 2, 4, 8, 16)}
    assert abs(z_score(bounds[1], elbo)) < 5.0, "one sample is not the ELBO"
    for k, values in bounds.items():
        assert abs(z_score(np.exp(values - log_evidence), 1.0)) < 5.0, f"exp(IWAE_{k}) is biased for p(x)"
        assert z_score(values, log_evidence) < 5.0, f"IWAE_{k} is above log p(x)"
    for less, more in ((1, 2), (2, 4), (4, 8), (8, 16)):
        assert z_score(bounds[more] - bounds[less], 0.0) > 5.0, f"IWAE_{more} is not above IWAE_{less}"


def test_importance_weighted_bounds_are_ordered_by_sampling():
    log_w, exact, lam = normal_log_weights()
    assert_bounds_of_draws(log_w, exact.log_evidence, float(jax.jit(lambda lam: exact_elbo(exact, lam))(lam)))


def test_importance_weighted_bounds_of_twice_the_samples_dominate_draw_by_draw():
    log_w, _, _ = normal_log_weights()
    iwae = jax.jit(jax.vmap(objectives.iwae))
    assert np.all(iwae(log_w) - 0.5 * (iwae(log_w[:, :8]) + iwae(log_w[:, 8:])) > -1e-12)


def test_sampled_order_catches_a_wrong_density():
    log_w, exact, lam = normal_log_weights(log_q_error=0.05)
    with pytest.raises(AssertionError, match="ELBO|biased"):
        assert_bounds_of_draws(log_w, exact.log_evidence, float(jax.jit(lambda lam: exact_elbo(exact, lam))(lam)))


def test_pathwise_value_is_the_bound_of_its_samples():
    """The rule's value, IWAE with 16 samples, is made of the same draws as above."""
    log_w, exact, lam = normal_log_weights()
    key = jax.random.split(jax.random.key(0), NUM_DRAWS)[0]

    @jax.jit
    def bound(key):
        return vj.rules.pathwise().surrogate(
            key, exact.family, lam, lambda s: exact.log_joint(s.z) - s.log_q, objective=objectives.iwae, num_samples=MOST
        )[0]

    value = bound(key)
    assert abs(float(value) - float(objectives.iwae(jnp.asarray(log_w[0])))) < 1e-12
