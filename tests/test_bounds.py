"""ELBO <= IWAE_K <= log p(x), increasing in K: exactly over all tuples of assignments, and by
sampling.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from exact_models import conjugate_normal, exact_elbo, gaussian_mixture, random_lam

import vijax as vj
from vijax import objectives
from vijax.families import FiniteSupport, log_probs, need

pytestmark = pytest.mark.usefixtures("x64")


def mixture_bounds(bound, *, most=5):
    """(ELBO, bound_1..bound_most, log p(x)) of the mixture, each expectation over all tuples of
    assignments.
    """
    exact = gaussian_mixture()
    z = need(exact.family, FiniteSupport).values()
    log_q = log_probs(exact.family, random_lam(5, exact.family), z)
    log_w = np.asarray(jax.vmap(exact.log_joint)(z) - log_q)
    probs = np.exp(np.asarray(log_q))
    values = [
        oracles.bound_over_tuples(
            log_w, probs, k, lambda t: np.asarray(jax.jit(jax.vmap(bound))(t))
        )
        for k in range(1, most + 1)
    ]
    return float(probs @ log_w), values, exact.log_evidence


def assert_ordered(elbo, values, log_evidence):
    """IWAE_1 is the ELBO, IWAE_K increases strictly, and log p(x) is above them all."""
    assert abs(elbo - values[0]) < 1e-12, f"with one sample {values[0]} is not the ELBO {elbo}"
    assert np.all(np.diff(values) > 1e-3), f"not increasing in K: {values}"
    assert values[-1] < log_evidence, f"{values[-1]} is above log p(x) = {log_evidence}"


def test_importance_weighted_bounds_are_ordered_exactly():
    assert_ordered(*mixture_bounds(objectives.iwae.value))


def test_order_catches_a_sum_in_place_of_the_mean():
    with pytest.raises(AssertionError, match="above"):
        elbo, values, log_evidence = mixture_bounds(jax.nn.logsumexp)
        assert_ordered(elbo, values, log_evidence)


def test_order_catches_an_average_of_logs():
    with pytest.raises(AssertionError, match="increasing"):
        assert_ordered(*mixture_bounds(objectives.elbo.value))


def test_renyi_bounds_decrease_in_alpha_through_iwae_and_elbo():
    bounds = [
        mixture_bounds(objectives.renyi(alpha).value, most=3)[1][2]
        for alpha in (-1.0, 0.0, 0.5, 0.999, 1.0, 2.0)
    ]
    assert np.all(np.diff(bounds) < 0.0)
    elbo, values, _ = mixture_bounds(objectives.iwae.value, most=3)
    assert abs(bounds[1] - values[2]) < 1e-12 and abs(bounds[4] - elbo) < 1e-12


NUM_DRAWS, MOST = 4000, 16


@functools.cache
def normal_log_weights(log_q_error=0.0):
    """[S, 16] log weights of the conjugate normal under a q that is wider than the posterior, and
    log p(x).
    """
    exact = conjugate_normal()
    lam = {
        "loc": jnp.asarray(exact.posterior["loc"]) + 0.3,
        "log_scale": jnp.asarray(exact.posterior["log_scale"]) + 0.4,
    }

    @jax.jit
    def draws(keys):
        def one(key):
            drawn = vj.rules.draw(key, vj.Q(exact.family, lam), MOST)
            return vj.rules.evaluate(lambda s: exact.log_joint(s.z) - s.log_q - log_q_error, drawn)[
                0
            ]

        return jax.vmap(one)(keys)

    return np.asarray(draws(jax.random.split(jax.random.key(0), NUM_DRAWS))), exact, lam


def z_score(draws, mean):
    draws = np.asarray(draws)
    return (draws.mean() - mean) / (draws.std(ddof=1) / len(draws) ** 0.5)


def assert_bounds_of_draws(log_w, log_evidence, elbo):
    """The same order by sampling; and exp(IWAE_K) is an unbiased estimate of p(x) for every K."""
    bounds = {
        k: np.asarray(jax.jit(jax.vmap(objectives.iwae.value))(log_w[:, :k]))
        for k in (1, 2, 4, 8, 16)
    }
    assert abs(z_score(bounds[1], elbo)) < 5.0, "one sample is not the ELBO"
    for k, values in bounds.items():
        assert abs(z_score(np.exp(values - log_evidence), 1.0)) < 5.0, (
            f"exp(IWAE_{k}) is biased for p(x)"
        )
        assert z_score(values, log_evidence) < 5.0, f"IWAE_{k} is above log p(x)"
    for less, more in ((1, 2), (2, 4), (4, 8), (8, 16)):
        assert z_score(bounds[more] - bounds[less], 0.0) > 5.0, (
            f"IWAE_{more} is not above IWAE_{less}"
        )


def test_importance_weighted_bounds_are_ordered_by_sampling():
    log_w, exact, lam = normal_log_weights()
    assert_bounds_of_draws(
        log_w, exact.log_evidence, float(jax.jit(lambda lam: exact_elbo(exact, lam))(lam))
    )


def test_importance_weighted_bounds_of_twice_the_samples_dominate_draw_by_draw():
    log_w, _, _ = normal_log_weights()
    iwae = jax.jit(jax.vmap(objectives.iwae.value))
    assert np.all(iwae(log_w) - 0.5 * (iwae(log_w[:, :8]) + iwae(log_w[:, 8:])) > -1e-12)


def test_sampled_order_catches_a_wrong_density():
    log_w, exact, lam = normal_log_weights(log_q_error=0.05)
    with pytest.raises(AssertionError, match="ELBO|biased"):
        assert_bounds_of_draws(
            log_w, exact.log_evidence, float(jax.jit(lambda lam: exact_elbo(exact, lam))(lam))
        )


def test_pathwise_value_is_the_bound_of_its_samples():
    """The rule's value, IWAE with 16 samples, is made of the same draws as above."""
    log_w, exact, lam = normal_log_weights()
    key = jax.random.split(jax.random.key(0), NUM_DRAWS)[0]

    @jax.jit
    def bound(key):
        return vj.expect(
            key,
            exact.family,
            lam,
            lambda s: exact.log_joint(s.z) - s.log_q,
            rule=vj.rules.pathwise(),
            objective=objectives.iwae,
            num_samples=MOST,
        )[0]

    value = bound(key)
    assert abs(float(value) - float(objectives.iwae.value(jnp.asarray(log_w[0])))) < 1e-12
