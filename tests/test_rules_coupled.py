"""Coupled draws of a Bernoulli vector, ARM, DisARM and ARMS, against the exact gradient over all
outcomes of their uniforms.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased
from discrete_noise import (
    B3,
    BERNOULLI_LOGITS,
    ROUNDING,
    THETA,
    affine,
    assert_equal,
    coupled_moments,
    enumerated_moments,
    exact_rows,
    group_noise,
    one_draw,
    pair_noise,
    run,
)

import vijax as vj
from vijax import families
from vijax.baselines import Baseline, none, replace_one
from vijax.families import log_probs
from vijax.objectives import elbo, iwae
from vijax.rules import arm, arms, coupled, disarm, local_expectation, score
from vijax.rules.coupled import copula, threshold


@pytest.mark.parametrize("logits", BERNOULLI_LOGITS, ids=["random", "edges", "ties"])
def test_arm_and_disarm_are_exact_over_their_pairs_and_disarm_varies_less(x64, monkeypatch, logits):
    exact = exact_rows(B3, logits[None])
    noise = pair_noise(logits, 1, 2)
    (arm_mean, arm_var), (disarm_mean, disarm_var) = (
        coupled_moments(monkeypatch, rule, logits, noise) for rule in (arm(), disarm())
    )
    for mean in (arm_mean, disarm_mean):
        assert_equal(jax.tree.map(lambda leaf: leaf[None], mean), exact)
    assert np.all(disarm_var[1] <= arm_var[1] + ROUNDING)
    assert np.all(disarm_var[1] < arm_var[1]) or not np.any(logits == BERNOULLI_LOGITS[0])


@pytest.mark.parametrize("rule", [arm(), disarm()], ids=lambda rule: rule.name)
def test_pairs_are_exact_for_a_multi_sample_bound(x64, monkeypatch, rule):
    """Local DisARM (and local ARM): each of two samples exchanged for its own partner."""
    settings = {"num_samples": 2, "objective": iwae}
    for logits in BERNOULLI_LOGITS[:2]:
        mean, _ = coupled_moments(monkeypatch, rule, logits, pair_noise(logits, 2, 1), **settings)
        assert_equal(
            jax.tree.map(lambda leaf: leaf[None], mean), exact_rows(B3, logits[None], **settings)
        )


def test_enumeration_catches_a_forgotten_direct_term(x64, monkeypatch):
    """Stopping log q's parameters in the weights drops the term that a bound other than the ELBO
    needs.
    """

    def stopped(family, lam, z):
        return log_probs(family, jax.lax.stop_gradient(lam), z)

    monkeypatch.setattr(coupled, "log_probs", stopped)
    logits, settings = BERNOULLI_LOGITS[0], {"num_samples": 2, "objective": iwae}
    mean, _ = coupled_moments(monkeypatch, disarm(), logits, pair_noise(logits, 2, 1), **settings)
    with pytest.raises(AssertionError):
        assert_equal(
            jax.tree.map(lambda leaf: leaf[None], mean), exact_rows(B3, logits[None], **settings)
        )


def test_arms_is_exact_over_its_patterns(x64, monkeypatch):
    for logits in BERNOULLI_LOGITS:
        mean, _ = coupled_moments(monkeypatch, arms(3), logits, group_noise(logits, 3))
        assert_equal(
            jax.tree.map(lambda leaf: leaf[None], mean), exact_rows(B3, logits[None]), 1e-9
        )


@pytest.mark.parametrize("size", [2, 3, 5])
def test_copula_has_uniform_margins_and_the_pair_probability_that_arms_divides_by(size):
    u = np.asarray(copula(jax.random.key(0), 40_000, size, jnp.zeros(2)))
    assert u.min() >= 0.0 and u.max() <= 1.0
    for rare in (0.1, 0.3, 0.5):
        below = u < rare
        both = max(2.0 * rare ** (1.0 / (size - 1)) - 1.0, 0.0) ** (size - 1)
        draws = {"margin": below[:, 0], "pair": below[:, 0] & below[:, 1]}
        assert_unbiased(draws, {"margin": np.full(2, rare), "pair": np.full(2, both)})


def test_one_bit_closed_forms(x64, monkeypatch):
    """Identity 33. Mean and variance in one dimension, a = f(1) - f(0), M and m the larger and
    smaller probability.
    """
    logits = np.array([0.8])
    family, p = families.bernoulli(1), 1.0 / (1.0 + np.exp(-0.8))
    a, big, small = THETA[0], max(p, 1.0 - p), min(p, 1.0 - p)
    settings = {"f": affine, "density": False}
    v = p * (1.0 - p)
    expected = {
        arm: a**2 * (2.0 / 3.0 * (0.125 - (0.5 - small) ** 3) - v**2),
        disarm: a**2 * big**2 * small * (0.5 - small),
    }
    for build, variance in expected.items():
        mean, var = coupled_moments(
            monkeypatch, build(), logits, pair_noise(logits, 1, 2), **settings
        )
        assert_equal((mean[1], var[1]), (np.array([a * v]), np.array([variance])))
    level = float(affine(THETA, np.zeros(1))) + a * p  # E[f]
    known = Baseline(
        "exact mean",
        lambda objective, log_w, *rest: replace_one(objective, log_w, jnp.full_like(log_w, level)),
    )
    mean, var = enumerated_moments(score(known), family, logits[None], **settings)
    assert_equal((mean[1], var[1]), (np.array([[a * v]]), np.array([[a**2 * v * (1.0 - 4.0 * v)]])))
    _, worse = enumerated_moments(score(none()), family, logits[None], **settings)
    assert worse[1] > 2.0 * var[1]
    mean, var = enumerated_moments(score(), family, logits[None], num_samples=2, **settings)
    assert_equal((mean[1], var[1]), (np.array([[a * v]]), np.array([[a**2 * v * (0.5 - v)]])))
    for rule in (local_expectation(), local_expectation(1)):
        mean, var = enumerated_moments(rule, family, logits[None], **settings)
        assert_equal((mean[1], var[1]), (np.array([[a * v]]), np.zeros((1, 1))))


def test_disarm_vanishes_where_the_pair_agrees_and_ignores_its_order(x64, monkeypatch):
    logits = BERNOULLI_LOGITS[0]
    u = copula(jax.random.key(0), 1, 2, jnp.asarray(logits))

    def at(uniforms):
        monkeypatch.setattr(coupled, "copula", lambda key, num_groups, size, like: uniforms)
        return one_draw(disarm(), B3)(
            jnp.asarray(THETA), jnp.asarray(logits), (), jax.random.key(0)
        )[1]

    draws = run(jax.vmap(at), jnp.stack([u, 1.0 - u]))
    assert_equal(draws[0], draws[1])
    z = np.asarray(threshold(jnp.asarray(logits)[None, None], u))[0]
    assert (
        np.array_equal(np.asarray(draws[0]) == 0.0, z[0] == z[1]) and 0 < np.sum(z[0] == z[1]) < 3
    )


def test_disarm_of_a_linear_objective_is_the_mean_of_its_pairs(x64):
    """The general formula (exchange a sample for its partner) reduces to the published one for the
    ELBO.
    """
    pair = np.random.default_rng(0).normal(size=(3, 2))
    signal = np.asarray(coupled.group_signal(elbo, jnp.asarray(pair)))
    assert_equal(signal, (pair - pair.mean(axis=1, keepdims=True)) / 3.0)
    unknown = vj.Objective("mean, not known to be linear", jnp.mean)
    general = np.asarray(coupled.group_signal(unknown, jnp.asarray(pair)))
    assert_equal(general, signal)
