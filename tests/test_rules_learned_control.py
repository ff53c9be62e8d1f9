"""Learned control variates of the rules for discrete latents: no bias whatever the control, and the
variance's gradient.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased
from discrete_noise import (
    B3,
    BERNOULLI_LOGITS,
    THETA,
    assert_equal,
    exact_gradient,
    noise_of,
    nonlinear,
    one_draw,
    perturbed,
    run,
    support_of,
)

from vijax import families
from vijax.families import log_probs, transports
from vijax.rules import (
    concrete,
    double_control_variates,
    muprop,
    rebar,
    relax,
    relaxed_scores,
    rodeo,
    to_mean_field,
)

rebar_module = importlib.import_module("vijax.rules.rebar")


def small_critic(z, x=None):
    """(init, apply) of one hidden layer, on the relaxed z."""
    size = int(np.prod(jax.tree.leaves(z)[0].shape))

    def init(key):
        return {"in": jax.random.normal(key, (4, size)), "out": jnp.arange(1.0, 5.0) / 4.0}

    return init, lambda p, z: jnp.vdot(p["out"], jnp.tanh(p["in"] @ jnp.ravel(z)))


# --- Relaxations, integrated over their noise.


def integrated(monkeypatch, rule, family, logits, z, noise, weights, control):
    """The gradient in the logits given the hard z [D], integrated over the noise of the scores [M,
    D].
    """
    scores = rebar_module.scores_of(family)
    hard = noise_of(family, z)

    def at(noise, logits):
        fixed = scores._replace(noise=lambda key, shape, dtype: noise[None])
        monkeypatch.setattr(rebar_module, "scores_of", lambda family: fixed)
        gradient = one_draw(rule, family, noise=hard[None])
        return gradient(jnp.asarray(THETA), logits, control, jax.random.key(0))[1]

    return jnp.tensordot(weights, jax.vmap(at, in_axes=(0, None))(noise, logits), axes=1)


def integrated_gradient(monkeypatch, rule, family, noise, weights, control):
    """logits -> the gradient, integrated over noise and summed over z."""

    def mean(logits):
        z = support_of(family)
        probs = jnp.exp(log_probs(family, {"logits": logits}, z))
        parts = [
            integrated(monkeypatch, rule, family, logits, state, noise, weights, control)
            for state in z
        ]
        return jnp.tensordot(probs, jnp.stack(parts), axes=1)

    return mean


def logistic_grid():
    """The trapezoid rule on the real line, which converges geometrically for analytic
    integrands.
    """
    e = np.arange(-45.0, 45.0, 0.05)[:, None]
    return jnp.asarray(e), jnp.asarray(
        0.05 * np.exp(-np.abs(e[:, 0])) / np.square(1.0 + np.exp(-np.abs(e[:, 0])))
    )


def gumbel_grid():
    """The same for two independent Gumbel variables."""
    g = np.arange(-4.0, 36.0, 0.1)
    density = 0.1 * np.exp(-g - np.exp(-g))
    grid = np.stack([part.ravel() for part in np.meshgrid(g, g, indexing="ij")], axis=1)
    return jnp.asarray(grid), jnp.asarray(np.outer(density, density).ravel())


TIED, UNTIED = {"tied": True, "relaxation": concrete}, {"tied": False, "relaxation": concrete}
RELAXATIONS = [
    pytest.param(TIED, id="tied"),
    pytest.param(UNTIED, id="untied", marks=pytest.mark.slow),
    pytest.param(
        TIED | {"relaxation": to_mean_field}, id="tied_to_mean_field", marks=pytest.mark.slow
    ),
    pytest.param(UNTIED | {"relaxation": to_mean_field}, id="to_mean_field"),
]


@pytest.mark.parametrize("settings", RELAXATIONS)
def test_one_bit_integrated_over_the_relaxation_is_exact_for_any_control(
    x64, monkeypatch, settings
):
    family = families.bernoulli(1)
    rule = relax(small_critic(families.z_like(family)), **settings)
    logits = jnp.array([[0.7], [0.0], [-3.0], [12.0], [-12.0]])
    noise, weights = logistic_grid()
    controls = [
        perturbed(rule),
        rule.init(jax.random.key(1))
        | {"scale": jnp.asarray(-0.8), "log_temperature": jnp.asarray(0.3)},
    ]

    def means(logits):
        return [
            jax.vmap(integrated_gradient(monkeypatch, rule, family, noise, weights, control))(
                logits
            )
            for control in controls
        ]

    exact = run(jax.vmap(lambda row: exact_gradient(family, jnp.asarray(THETA), row)[1]), logits)
    for mean in run(means, logits):
        assert_equal(mean, exact, 1e-8)


@pytest.mark.parametrize(
    "tied", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"]
)
def test_two_classes_integrated_over_the_relaxation_are_exact(x64, monkeypatch, tied):
    family = families.categorical(2)
    rule = rebar(tied=tied, temperature=0.8)
    noise, weights = gumbel_grid()
    control = rule.init(jax.random.key(0))
    logits = jnp.array([0.6, -0.5])
    mean = run(integrated_gradient(monkeypatch, rule, family, noise, weights, control), logits)
    exact = run(lambda row: exact_gradient(family, jnp.asarray(THETA), row)[1], logits)
    assert_equal(mean, exact, 1e-7)


def test_integration_catches_a_path_through_the_condition_that_is_cut(x64, monkeypatch):
    """The scores drawn given z move with the logits too; holding them fixed is the commonest error
    in REBAR.
    """
    family, true = families.bernoulli(1), relaxed_scores.logistic_scores
    monkeypatch.setattr(
        relaxed_scores, "logistic_scores", lambda eta, z, e: true(jax.lax.stop_gradient(eta), z, e)
    )
    noise, weights = logistic_grid()
    rule = rebar(tied=False)
    control = rule.init(jax.random.key(0))
    mean = run(
        integrated_gradient(monkeypatch, rule, family, noise, weights, control), jnp.array([0.7])
    )
    with pytest.raises(AssertionError):
        assert_equal(mean, exact_gradient(family, jnp.asarray(THETA), jnp.array([0.7]))[1], 1e-2)


def moments(scores):
    """Bounded functions of the scores [M, D], single ones and products of two."""
    soft = jax.nn.sigmoid(scores)
    return jnp.concatenate([soft, jnp.square(soft) * soft[:, ::-1]], axis=1)


def test_scores_have_the_right_hard_value_and_law(x64):
    """The hard value of the scores is z; over z ~ q they are logits + noise again."""
    logits = jnp.array([1.3, -0.4, 0.2])
    keys = jax.random.split(jax.random.key(0), 2)
    for family, law in ((B3, jax.random.logistic), (families.categorical(3), jax.random.gumbel)):
        scores = rebar_module.scores_of(family)
        z, _ = transports(family, {"logits": logits}, family.noise(keys[0], 40_000))
        given = scores.given(logits[None], z, scores.noise(keys[1], z.shape, z.dtype))
        hard = (
            given > 0.0
            if law is jax.random.logistic
            else given == jnp.max(given, axis=-1, keepdims=True)
        )
        np.testing.assert_array_equal(hard, z > 0.5)
        fresh = scores.normal(logits)[None] + law(jax.random.key(5), (40_000, 3), z.dtype)
        left, right = (np.asarray(moments(scores)) for scores in (given, fresh))
        error = np.sqrt(left.var(axis=0) / len(left) + right.var(axis=0) / len(right))
        assert np.all(np.abs(left.mean(axis=0) - right.mean(axis=0)) < 5.0 * error)


@pytest.mark.parametrize(
    "family", [B3, families.categorical(3, num_sites=2)], ids=lambda family: family.name
)
def test_several_sites_are_unbiased_at_random_controls(x64, family):
    """All settings in one program, at perturbed parameters of critic, scale and temperature."""
    logits = (
        jnp.asarray(BERNOULLI_LOGITS[0])
        if family is B3
        else jnp.array([[0.4, -1.1, 1.0], [0.0, 0.0, 0.7]])
    )
    theta, keys = jnp.asarray(THETA), jax.random.split(jax.random.key(2), 2000)
    f = (
        nonlinear
        if family is B3
        else lambda theta, z: nonlinear(theta, jnp.ravel(z)[:4]) + jnp.sin(z[1, 2] + z[0, 0])
    )
    like = families.z_like(family)
    rules = [
        rebar(),
        rebar(tied=False, relaxation=to_mean_field),
        relax(z=like),
        relax(small_critic(like), use_integrand=False),
    ]

    def draws(rule):
        gradient, control = one_draw(rule, family, f=f), perturbed(rule, 0.1)
        return jax.vmap(lambda key: gradient(theta, logits, control, key)[:2])(keys)

    exact = run(lambda: exact_gradient(family, theta, logits, f=f))
    for result in run(lambda: [draws(rule) for rule in rules]):
        assert_unbiased(result, exact)


# --- The variance's gradient.


LEARNED = [
    (muprop(learn_scale=True), 1),
    (double_control_variates(), 2),
    (rodeo(), 3),
    (rebar(), 1),
    (rebar(tied=False, relaxation=to_mean_field), 2),
    (relax(small_critic(families.z_like(B3))), 1),
]


def squared_norm(rule, num_samples, key, control):
    gradient = one_draw(rule, B3, num_samples=num_samples)
    return jnp.sum(
        jnp.square(gradient(jnp.asarray(THETA), jnp.asarray(BERNOULLI_LOGITS[0]), control, key)[1])
    )


def slope_and_difference(rule, num_samples):
    """Along a random direction: the surrogate's slope in `control`, negated, and a central
    difference of ||g||^2.
    """
    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), perturbed(rule))
    leaves, tree = jax.tree.flatten(start)
    random = np.random.default_rng(0)
    direction = jax.tree.unflatten(
        tree, [jnp.asarray(random.normal(size=leaf.shape)) for leaf in leaves]
    )
    keys, step = jax.random.split(jax.random.key(4), 16), 1e-5

    def moved(size):
        return jax.tree.map(lambda leaf, d: leaf + size * d, start, direction)

    def one(key):
        gradient = one_draw(rule, B3, num_samples=num_samples)
        control_slope = gradient(jnp.asarray(THETA), jnp.asarray(BERNOULLI_LOGITS[0]), start, key)[
            2
        ]
        slope = -sum(
            jnp.vdot(g, d)
            for g, d in zip(jax.tree.leaves(control_slope), jax.tree.leaves(direction), strict=True)
        )
        ends = [squared_norm(rule, num_samples, key, moved(size)) for size in (step, -step)]
        return slope, (ends[0] - ends[1]) / (2.0 * step)

    return run(jax.vmap(one), keys)


@pytest.mark.parametrize(
    ("rule", "num_samples"), LEARNED, ids=lambda value: getattr(value, "name", None)
)
def test_control_goes_down_the_variance(x64, rule, num_samples):
    """Equal, with common noise, to finite differences of ||g||^2, draw by draw."""
    slope, difference = slope_and_difference(rule, num_samples)
    assert np.std(difference) > 1e-3
    np.testing.assert_allclose(slope, difference, rtol=1e-5, atol=1e-6)


def test_the_check_catches_a_stop_gradient_surrogate(x64, monkeypatch):
    """The usual surrogate takes the signal f - c as a number: the same g, hence the same
    differences, but a wrong slope.
    """
    true = rebar_module.score_part
    monkeypatch.setattr(
        rebar_module, "score_part", lambda f, c, away: true(f, jax.lax.stop_gradient(c), away)
    )
    slope, difference = slope_and_difference(rebar(), 1)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(slope, difference, rtol=0.1)
