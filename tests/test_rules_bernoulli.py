"""The rules for Bernoulli latents (and their categorical forms) against enumeration of z and of their own discrete noise.

Where the noise is discrete it is enumerated: the mean over it equals the exact gradient to rounding, at edge parameters
too. Learned controls and relaxations are in test_rules_learned_control.py.
"""

import importlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased
from discrete_noise import (
    B3,
    BERNOULLI_LOGITS,
    C4,
    CATEGORICAL_LOGITS,
    ROUNDING,
    THETA,
    affine,
    assert_equal,
    coupled_moments,
    enumerated_moments,
    exact_gradient,
    exact_rows,
    group_noise,
    nonlinear,
    one_draw,
    pair_noise,
    perturbed,
    run,
)

from vijax import families
from vijax.baselines import none
from vijax.objectives import elbo, iwae
from vijax.rules import (
    arm,
    arms,
    as_rule,
    coupled,
    disarm,
    double_control_variates,
    local_expectation,
    muprop,
    rebar,
    relax,
    rodeo,
    score,
    to_mean_field,
)
from vijax.rules.coupled import copula, threshold
from vijax.rules.discrete import live_weights

ENUMERABLE = [
    (local_expectation(), 1, elbo),
    (local_expectation(), 2, iwae),
    (muprop(learn_scale=True), 2, elbo),
    (double_control_variates(), 2, elbo),
    (rodeo(), 2, elbo),
]


@pytest.mark.parametrize(("rule", "num_samples", "objective"), ENUMERABLE, ids=lambda value: getattr(value, "name", None))
@pytest.mark.parametrize("family", [B3, C4], ids=lambda family: family.name)
def test_mean_over_all_draws_is_the_exact_gradient(x64, family, rule, num_samples, objective):
    logits = BERNOULLI_LOGITS if family is B3 else CATEGORICAL_LOGITS
    if family is C4 and not rule.requires.categorical:
        with pytest.raises(ValueError, match="Bernoulli.*Write score"):
            rule.check(family, objective, num_samples, None)
        return
    settings = {"num_samples": num_samples, "objective": objective}
    mean, _ = enumerated_moments(rule, family, logits, **settings)
    assert_equal(mean, exact_rows(family, logits, **settings))


def test_enumeration_catches_a_forgotten_closed_form_term(x64, monkeypatch):
    module = importlib.import_module("vijax.rules.double_control_variates")
    monkeypatch.setattr(module, "site_mean", lambda family, eta: jax.lax.stop_gradient(jax.nn.sigmoid(eta)))
    mean, _ = enumerated_moments(double_control_variates(), B3, BERNOULLI_LOGITS, num_samples=2)
    with pytest.raises(AssertionError):
        assert_equal(mean, exact_rows(B3, BERNOULLI_LOGITS))


def test_bitflip_is_unbiased_and_local_expectation_is_its_rao_blackwellisation(x64, monkeypatch):
    module = importlib.import_module("vijax.rules.local_expectation")
    mean_all, var_all = enumerated_moments(local_expectation(), B3, BERNOULLI_LOGITS)
    moments = []
    for site in range(3):
        monkeypatch.setattr(module, "_choose", lambda key, total, n, site=site: jnp.array([site]))
        moments.append(enumerated_moments(local_expectation(1), B3, BERNOULLI_LOGITS))
    assert_equal(np.mean([mean[1] for mean, _ in moments], axis=0), mean_all[1])
    second = np.mean([variance[1] + np.square(mean[1]) for mean, variance in moments], axis=0)
    bitflip = second - np.square(mean_all[1])
    assert np.all(var_all[1] <= bitflip + ROUNDING)
    assert np.all(var_all[1][0] < 0.2 * bitflip[0])


# --- Coupled draws.


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
        assert_equal(jax.tree.map(lambda leaf: leaf[None], mean), exact_rows(B3, logits[None], **settings))


def test_enumeration_catches_a_forgotten_direct_term(x64, monkeypatch):
    """Stopping log q's parameters in the weights drops the term that a bound other than the ELBO needs."""

    def stopped(integrand, family, lam, z, keys):
        return live_weights(integrand, family, jax.lax.stop_gradient(lam), z, keys)

    monkeypatch.setattr(coupled, "live_weights", stopped)
    logits, settings = BERNOULLI_LOGITS[0], {"num_samples": 2, "objective": iwae}
    mean, _ = coupled_moments(monkeypatch, disarm(), logits, pair_noise(logits, 2, 1), **settings)
    with pytest.raises(AssertionError):
        assert_equal(jax.tree.map(lambda leaf: leaf[None], mean), exact_rows(B3, logits[None], **settings))


def test_arms_is_exact_over_its_patterns(x64, monkeypatch):
    for logits in BERNOULLI_LOGITS:
        mean, _ = coupled_moments(monkeypatch, arms(3), logits, group_noise(logits, 3))
        assert_equal(jax.tree.map(lambda leaf: leaf[None], mean), exact_rows(B3, logits[None]), 1e-9)


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
    """Mean and variance in one dimension, a = f(1) - f(0), M and m the larger and smaller probability."""
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
        mean, var = coupled_moments(monkeypatch, build(), logits, pair_noise(logits, 1, 2), **settings)
        assert_equal((mean[1], var[1]), (np.array([a * v]), np.array([variance])))
    mean, var = enumerated_moments(score(), family, logits[None], num_samples=2, **settings)
    assert_equal((mean[1], var[1]), (np.array([[a * v]]), np.array([[a**2 * v * (0.5 - v)]])))
    for rule in (local_expectation(), local_expectation(1)):
        mean, var = enumerated_moments(rule, family, logits[None], **settings)
        assert_equal((mean[1], var[1]), (np.array([[a * v]]), np.zeros((1, 1))))


# --- Samplewise identities.


def logit_draws(rule, family, logits, *, num_draws=32, **settings):
    """[num_draws, D] gradients in the logits, with the same keys for every rule."""
    control = settings.pop("control", None)
    control = perturbed(rule) if control is None else control
    keys, theta, logits = jax.random.split(jax.random.key(7), num_draws), jnp.asarray(THETA), jnp.asarray(logits)
    gradient = one_draw(rule, family, **settings)
    return run(jax.vmap(lambda key: gradient(theta, logits, control, key)[1]), keys)


def test_disarm_vanishes_where_the_pair_agrees_and_ignores_its_order(x64, monkeypatch):
    logits = BERNOULLI_LOGITS[0]
    u = copula(jax.random.key(0), 1, 2, jnp.asarray(logits))
    draws = []
    for uniforms in (u, 1.0 - u):
        monkeypatch.setattr(coupled, "copula", lambda key, num_groups, size, like, uniforms=uniforms: uniforms)
        draws.append(one_draw(disarm(), B3)(jnp.asarray(THETA), jnp.asarray(logits), (), jax.random.key(0))[1])
    assert_equal(draws[0], draws[1])
    z = np.asarray(threshold(jnp.asarray(logits)[None, None], u))[0]
    assert np.array_equal(np.asarray(draws[0]) == 0.0, z[0] == z[1]) and 0 < np.sum(z[0] == z[1]) < 3


def test_disarm_of_a_linear_objective_is_the_mean_of_its_pairs(x64):
    """The general formula (exchange a sample for its partner) reduces to the published one for the ELBO."""
    pair = np.random.default_rng(0).normal(size=(3, 2))
    signal = np.asarray(coupled.group_signal(elbo, jnp.asarray(pair)))
    assert_equal(signal, (pair - pair.mean(axis=1, keepdims=True)) / 3.0)
    general = np.asarray(coupled.group_signal(lambda log_w: jnp.mean(log_w), jnp.asarray(pair)))  # not known to be linear
    assert_equal(general, signal)


def shifted(theta, z):
    return nonlinear(theta, z) + 100.0 * theta[3]


def test_which_rules_ignore_a_constant(x64):
    ignore = [arm(), disarm(), arms(3), local_expectation(), muprop()]
    feel = [score(none()), relax(lambda_critic(), use_integrand=False)]
    keys, logits = jax.random.split(jax.random.key(7), 16), jnp.asarray(BERNOULLI_LOGITS[0])
    thetas = jnp.asarray(np.stack([THETA, THETA + np.array([0.0, 0.0, 0.0, 1.0])]))  # theta[3] is the constant

    def draws(rule):
        gradient, control = one_draw(rule, B3, f=shifted), perturbed(rule)
        return jax.vmap(lambda theta: jax.vmap(lambda key: gradient(theta, logits, control, key)[1])(keys))(thetas)

    results = run(lambda: [draws(rule) for rule in ignore + feel])
    for rule, (left, right) in zip(ignore + feel, results, strict=True):
        assert (np.abs(left - right).max() > 1e-9) == (rule in feel), rule.name


def test_affine_integrands_have_no_variance(x64):
    settings = {"f": affine, "density": False, "num_samples": 2}
    exact = exact_gradient(B3, jnp.asarray(THETA), jnp.asarray(BERNOULLI_LOGITS[0]), f=affine, density=False)[1]
    for rule in (muprop(), double_control_variates(), local_expectation()):
        control = rule.init(jax.random.key(0))
        draws = logit_draws(rule, B3, BERNOULLI_LOGITS[0], control=control, **settings)
        assert_equal(draws, np.broadcast_to(exact, draws.shape))
    assert np.any(np.var(logit_draws(disarm(), B3, BERNOULLI_LOGITS[0], **settings), axis=0) > 1e-3)


def test_limits_are_reinforce(x64):
    """RELAX without a control, and MuProp of a function without a slope (which leaves f(E z) as a baseline)."""
    logits, settings = BERNOULLI_LOGITS[0], {"num_samples": 2, "density": False}
    silent = relax(lambda_critic(), use_integrand=False)
    control = silent.init(jax.random.key(0)) | {"critic": jnp.zeros(())}
    reinforce = logit_draws(score(none()), B3, logits, **settings)
    assert_equal(logit_draws(silent, B3, logits, control=control, **settings), reinforce)

    def flat(theta, z):
        return jax.lax.stop_gradient(nonlinear(theta, z))

    def baseline_off(theta, z):
        return flat(theta, z) - flat(theta, jax.nn.sigmoid(jnp.asarray(logits)))

    expected = logit_draws(score(none()), B3, logits, f=baseline_off, **settings)
    assert_equal(logit_draws(muprop(), B3, logits, f=flat, **settings), expected)


def lambda_critic():
    """A critic of one parameter."""
    return (lambda key: jnp.ones(()), lambda scale, z: scale * jnp.sum(jnp.tanh(z)))


# --- Everything else that is drawn.


def test_two_layers_nested(x64):
    """q(z1) q(z2 | z1): a coupled or a local rule for one layer, another for the other."""
    weights = jnp.array([[0.8, -1.3], [-0.4, 1.1]])
    family = families.chain(
        ("z1", families.bernoulli(2)),
        ("z2", families.bernoulli(2)),
        lambda lam, z1: {"logits": lam["bias"] + lam["weights"] @ z1},
        lambda key: {"bias": jnp.zeros(2), "weights": weights},
    )
    lam = {"z1": {"logits": jnp.array([0.4, -0.9])}, "z2": {"bias": jnp.array([0.3, 0.6]), "weights": weights}}

    def f(theta, z):
        return nonlinear(theta, jnp.concatenate([z["z1"], z["z2"]]))

    def bound(theta, lam):
        grid = jnp.asarray(np.array(list(itertools.product((0.0, 1.0), repeat=4))))
        z = {"z1": grid[:, :2], "z2": grid[:, 2:]}
        log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, z)
        return jnp.vdot(jnp.exp(log_q), jax.vmap(lambda z: f(theta, z))(z) - log_q)

    def draws(rules, key):
        rule = as_rule(rules, family)
        control = rule.init(jax.random.key(0))

        def value(theta, lam):
            def integrand(s):
                return f(theta, s.z) - s.log_q

            return rule.surrogate(
                key, family, lam, integrand, objective=elbo, num_samples={"z1": 1, "z2": 1}, control=control
            )[0]  # fmt: skip

        return jax.grad(value, argnums=(0, 1))(jnp.asarray(THETA), lam)

    pairs = ({"z1": disarm(), "z2": local_expectation()}, {"z1": rebar(), "z2": arms(3)})
    keys = jax.random.split(jax.random.key(0), 2000)
    exact = run(lambda: jax.grad(bound, argnums=(0, 1))(jnp.asarray(THETA), lam))
    for result in run(lambda: [jax.vmap(lambda k, rules=rules: draws(rules, k))(keys) for rules in pairs]):
        assert_unbiased(result, exact)


@pytest.mark.parametrize(
    ("rule", "num_samples", "objective"),
    [
        (arms(3), 2, iwae),
        (local_expectation(2), 2, iwae),
        (rodeo(), 2, elbo),
        (relax(z=families.z_like(B3), relaxation=to_mean_field), 1, elbo),
        pytest.param(arm(), 2, iwae, marks=pytest.mark.slow),
        pytest.param(muprop(), 2, elbo, marks=pytest.mark.slow),
        pytest.param(double_control_variates(), 2, elbo, marks=pytest.mark.slow),
        pytest.param(rebar(), 2, elbo, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_batched_rules_give_the_results_of_a_loop_and_are_unbiased(x64, rule, num_samples, objective):
    """With their own noise, under vmap and one after the other."""
    logits, theta = jnp.asarray(BERNOULLI_LOGITS[0]), jnp.asarray(THETA)
    gradient = one_draw(rule, B3, num_samples=num_samples, objective=objective)
    control = rule.init(jax.random.key(3))

    def one(key):
        return gradient(theta, logits, control, key)[:2]

    keys = jax.random.split(jax.random.key(1), 2000)
    draws, loop = run(lambda keys: (jax.vmap(one)(keys), jax.lax.map(one, keys[:2])), keys)
    assert_equal(jax.tree.map(lambda leaf: leaf[:2], draws), loop, 1e-6)  # the critic is in float32
    exact = run(lambda: exact_gradient(B3, theta, logits, num_samples=num_samples, objective=objective))
    assert_unbiased(draws, exact)


def test_what_would_be_silently_wrong_is_refused():
    with pytest.raises(ValueError, match="linear"):
        rebar().check(B3, iwae, 2, None)
    with pytest.raises(ValueError, match="at least 2"):
        double_control_variates().check(B3, elbo, 1, None)
    with pytest.raises(ValueError, match="no vector of Bernoulli or one-hot"):
        local_expectation().check(families.diag_normal(2), elbo, 1, None)
    with pytest.raises(ValueError, match="at least 2 draws"):
        arms(1)
    with pytest.raises(ValueError, match="z_like"):
        relax()
