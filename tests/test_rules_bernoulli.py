"""The rules for Bernoulli latents (and their categorical forms) against enumeration of z and of
their own discrete noise.

Where the noise is discrete it is enumerated: the mean over it equals the exact gradient to
rounding, at edge parameters too. Learned controls and relaxations are in
test_rules_learned_control.py.
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
    enumerated_moments,
    exact_gradient,
    exact_rows,
    nonlinear,
    one_draw,
    perturbed,
    run,
)

import vijax as vj
from vijax import families
from vijax.baselines import none
from vijax.families import CategoricalSites, log_probs
from vijax.objectives import elbo, iwae
from vijax.rules import (
    arm,
    arms,
    as_rule,
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

ENUMERABLE = [
    (local_expectation(), 1, elbo),
    (local_expectation(), 2, iwae),
    (muprop(learn_scale=True), 2, elbo),
    (double_control_variates(), 2, elbo),
    (rodeo(), 2, elbo),
]


@pytest.mark.parametrize(
    ("rule", "num_samples", "objective"), ENUMERABLE, ids=lambda value: getattr(value, "name", None)
)
@pytest.mark.parametrize("family", [B3, C4], ids=lambda family: family.name)
def test_mean_over_all_draws_is_the_exact_gradient(x64, family, rule, num_samples, objective):
    logits = BERNOULLI_LOGITS if family is B3 else CATEGORICAL_LOGITS
    if family is C4 and CategoricalSites not in rule.requires.any_of:
        with pytest.raises(ValueError, match="Bernoulli.*Write score"):
            rule.check(family, objective, num_samples, None)
        return
    settings = {"num_samples": num_samples, "objective": objective}
    mean, _ = enumerated_moments(rule, family, logits, **settings)
    assert_equal(mean, exact_rows(family, logits, **settings))


def test_enumeration_catches_a_forgotten_closed_form_term(x64, monkeypatch):
    module = importlib.import_module("vijax.rules.double_control_variates")
    monkeypatch.setattr(
        module, "site_mean", lambda family, eta: jax.lax.stop_gradient(jax.nn.sigmoid(eta))
    )
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


# --- Samplewise identities.


def logit_draws(rule, family, logits, *, num_draws=32, **settings):
    """[num_draws, D] gradients in the logits, with the same keys for every rule."""
    control = settings.pop("control", None)
    control = perturbed(rule) if control is None else control
    keys, theta, logits = (
        jax.random.split(jax.random.key(7), num_draws),
        jnp.asarray(THETA),
        jnp.asarray(logits),
    )
    gradient = one_draw(rule, family, **settings)
    return run(jax.vmap(lambda key: gradient(theta, logits, control, key)[1]), keys)


def shifted(theta, z):
    return nonlinear(theta, z) + 100.0 * theta[3]


def test_which_rules_ignore_a_constant(x64):
    ignore = [arm(), disarm(), arms(3), local_expectation(), muprop()]
    feel = [score(none()), relax(lambda_critic(), use_integrand=False)]
    keys, logits = jax.random.split(jax.random.key(7), 16), jnp.asarray(BERNOULLI_LOGITS[0])
    # Theta[3] is the constant
    thetas = jnp.asarray(np.stack([THETA, THETA + np.array([0.0, 0.0, 0.0, 1.0])]))

    def draws(rule):
        gradient, control = one_draw(rule, B3, f=shifted), perturbed(rule)
        return jax.vmap(
            lambda theta: jax.vmap(lambda key: gradient(theta, logits, control, key)[1])(keys)
        )(thetas)

    results = run(lambda: [draws(rule) for rule in ignore + feel])
    for rule, (left, right) in zip(ignore + feel, results, strict=True):
        assert (np.abs(left - right).max() > 1e-9) == (rule in feel), rule.name


def test_affine_integrands_have_no_variance(x64):
    settings = {"f": affine, "density": False, "num_samples": 2}
    exact = exact_gradient(
        B3, jnp.asarray(THETA), jnp.asarray(BERNOULLI_LOGITS[0]), f=affine, density=False
    )[1]
    for rule in (muprop(), double_control_variates(), local_expectation()):
        control = rule.init(jax.random.key(0))
        draws = logit_draws(rule, B3, BERNOULLI_LOGITS[0], control=control, **settings)
        assert_equal(draws, np.broadcast_to(exact, draws.shape))
    assert np.any(np.var(logit_draws(disarm(), B3, BERNOULLI_LOGITS[0], **settings), axis=0) > 1e-3)


def test_limits_are_reinforce(x64):
    """RELAX without a control, and MuProp of a function without a slope (which leaves f(E z) as a
    baseline).
    """
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
    lam = {
        "z1": {"logits": jnp.array([0.4, -0.9])},
        "z2": {"bias": jnp.array([0.3, 0.6]), "weights": weights},
    }

    def f(theta, z):
        return nonlinear(theta, jnp.concatenate([z["z1"], z["z2"]]))

    def bound(theta, lam):
        grid = jnp.asarray(np.array(list(itertools.product((0.0, 1.0), repeat=4))))
        z = {"z1": grid[:, :2], "z2": grid[:, 2:]}
        log_q = log_probs(family, lam, z)
        return jnp.vdot(jnp.exp(log_q), jax.vmap(lambda z: f(theta, z))(z) - log_q)

    def draws(rules, key):
        rule = as_rule(rules, family)
        control = rule.init(jax.random.key(0))

        def value(theta, lam):
            def integrand(s):
                return f(theta, s.z) - s.log_q

            return vj.expect(
                key,
                family,
                lam,
                integrand,
                rule=rule,
                objective=elbo,
                num_samples={"z1": 1, "z2": 1},
                control=control,
            )[0]

        return jax.grad(value, argnums=(0, 1))(jnp.asarray(THETA), lam)

    pairs = ({"z1": disarm(), "z2": local_expectation()}, {"z1": rebar(), "z2": arms(3)})
    keys = jax.random.split(jax.random.key(0), 2000)
    exact = run(lambda: jax.grad(bound, argnums=(0, 1))(jnp.asarray(THETA), lam))
    for result in run(
        lambda: [jax.vmap(lambda k, rules=rules: draws(rules, k))(keys) for rules in pairs]
    ):
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
def test_batched_rules_give_the_results_of_a_loop_and_are_unbiased(
    x64, rule, num_samples, objective
):
    """With their own noise, under vmap and one after the other."""
    logits, theta = jnp.asarray(BERNOULLI_LOGITS[0]), jnp.asarray(THETA)
    gradient = one_draw(rule, B3, num_samples=num_samples, objective=objective)
    control = rule.init(jax.random.key(3))

    def one(key):
        return gradient(theta, logits, control, key)[:2]

    keys = jax.random.split(jax.random.key(1), 2000)
    draws, loop = run(lambda keys: (jax.vmap(one)(keys), jax.lax.map(one, keys[:2])), keys)
    assert_equal(jax.tree.map(lambda leaf: leaf[:2], draws), loop, 1e-6)  # the critic is in float32
    exact = run(
        lambda: exact_gradient(B3, theta, logits, num_samples=num_samples, objective=objective)
    )
    assert_unbiased(draws, exact)


def test_what_would_be_silently_wrong_is_refused():
    with pytest.raises(ValueError, match="linear"):
        rebar().check(B3, iwae, 2, None)
    with pytest.raises(ValueError, match="at least 2"):
        double_control_variates().check(B3, elbo, 1, None)
    with pytest.raises(
        ValueError, match="no vector of independent Bernoulli.*no vector of one-hot"
    ):
        local_expectation().check(families.diag_normal(2), elbo, 1, None)
    with pytest.raises(ValueError, match="at least 2 draws"):
        arms(1)
    with pytest.raises(ValueError, match="z_like"):
        relax()
