"""Biased relaxations: what their bias is, where it vanishes, and what holds in spite of it (value,
theta, finite edges).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_unbiased

import vijax as vj
from vijax import families
from vijax.families import FiniteSupport, log_probs, need
from vijax.objectives import elbo, iwae
from vijax.rules import score
from vijax.rules.perturbed_logits import mean_gap, perturbed_given
from vijax.rules.relaxed import (
    gapped_straight_through,
    gumbel_rao,
    gumbel_softmax,
    reinmax,
    straight_through,
    straight_through_gumbel,
)

pytestmark = pytest.mark.usefixtures("x64")


class Toy(NamedTuple):
    """E_q[f - log q] for f(z) = a.z + quadratic z'Bz + cubic c.z^3; `quadratic` and `cubic` switch
    the terms on.
    """

    family: Any
    logits: dict[str, Any]


TOYS = {
    "one": Toy(
        families.categorical(4),
        {"random": [0.3, -0.8, 1.1, 0.2], "ties": [0.0] * 4, "edge": [12.0, -12.0, 0.0, 12.0]},
    ),
    "two": Toy(
        families.categorical(3, num_sites=2),
        {
            "random": [[0.3, -0.8, 1.1], [-0.4, 0.9, 0.5]],
            "edge": [[12.0, -12.0, 0.0], [0.5, 0.5, -0.3]],
        },
    ),
    "bits": Toy(families.bernoulli(3), {"random": [0.4, -1.0, 0.1], "edge": [12.0, -12.0, 0.0]}),
}


def at(toy, place):
    """(lam, theta = (a, B, c)) of a toy."""
    rng, size = np.random.default_rng(3), np.size(toy.logits[place])
    theta = (rng.normal(size=size), rng.normal(size=(size, size)), rng.normal(size=size) + 1.0)
    return {"logits": jnp.asarray(toy.logits[place])}, jax.tree.map(jnp.asarray, theta)


def polynomial(theta, z, degree):
    flat = z.ravel()
    quadratic, cubic = degree
    return theta[0] @ flat + quadratic * (flat @ theta[1] @ flat) + cubic * (theta[2] @ flat**3)


AFFINE, QUADRATIC, CUBIC = (np.asarray(d) for d in ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)))


def surrogate(rule, toy, key, params, degree, *, objective=elbo, num_samples=1):
    lam, theta = params

    def integrand(sample):
        return polynomial(theta, sample.z, degree) - sample.log_q, sample.z

    return vj.expect(
        key, toy.family, lam, integrand, rule=rule, objective=objective, num_samples=num_samples
    )


def exact(toy, params, degree):
    def bound(params):
        z = need(toy.family, FiniteSupport).values()
        log_q = log_probs(toy.family, params[0], z)
        return jnp.exp(log_q) @ (jax.vmap(lambda z: polynomial(params[1], z, degree))(z) - log_q)

    return jax.grad(bound)(params)


def per_outcome(monkeypatch, rule, toy):
    """(params, degree) -> (gradient for every z in the support, its probability), the noise chosen
    to lead there.
    """

    def one(params, degree, z):
        logits = params[0]["logits"]
        prob = jax.nn.sigmoid(logits)
        with monkeypatch.context() as patch:
            patch.setattr(
                jax.random, "gumbel", lambda key, shape: jnp.broadcast_to(100.0 * z, shape)
            )
            patch.setattr(
                jax.random,
                "uniform",
                lambda key, shape: jnp.broadcast_to(0.5 * (prob + 1.0 - z), shape),
            )
            grad, aux = jax.grad(
                lambda p: surrogate(rule, toy, jax.random.key(0), p, degree), has_aux=True
            )(params)
        return grad, aux.inner, jnp.exp(toy.family.log_prob(params[0], z))

    def run(params, degree):
        z = need(toy.family, FiniteSupport).values()
        grads, drawn, probs = jax.vmap(one, (None, None, 0))(params, degree, z)
        return grads, drawn - z, probs

    return jax.jit(run)


def bias(toy, params, degree, grads, probs):
    mean = jax.tree.map(lambda leaf: jnp.tensordot(probs, leaf, axes=1), grads)
    return jax.tree.map(
        lambda left, right: float(jnp.abs(left - right).max()), mean, exact(toy, params, degree)
    )


@pytest.mark.parametrize("name", TOYS)
def test_bias_vanishes_for_affine_and_for_quadratic_integrands(monkeypatch, name):
    """Identity 18, exactly: straight-through up to affine f (then without variance too), ReinMax up
    to quadratic f.
    """
    toy = TOYS[name]
    first, second = (
        per_outcome(monkeypatch, rule, toy) for rule in (straight_through(), reinmax())
    )
    for place in toy.logits:
        params = at(toy, place)
        found = {}
        for degree_name, degree in (("affine", AFFINE), ("quadratic", QUADRATIC), ("cubic", CUBIC)):
            for rule_name, run in (("straight", first), ("reinmax", second)):
                grads, off, probs = run(params, degree)
                assert np.all(np.asarray(off) == 0.0), "z is the hard draw"
                wrong = bias(toy, params, degree, grads, probs)
                assert max(wrong[1]) < 1e-10, "theta has no bias"
                found[rule_name, degree_name] = wrong[0]["logits"]
                if (rule_name, degree_name) == ("straight", "affine"):
                    assert np.ptp(grads[0]["logits"], axis=0).max() < 1e-10
        assert (
            max(
                found["straight", "affine"],
                found["reinmax", "affine"],
                found["reinmax", "quadratic"],
            )
            < 1e-10
        )
        if place == "random":
            assert found["straight", "quadratic"] > 0.005
            assert found["reinmax", "cubic"] > 0.01


def test_a_missing_half_is_caught(monkeypatch):
    """ReinMax at a temperature away from 1 is a planted fault of the second order."""
    toy = TOYS["one"]
    params = at(toy, "random")
    grads, _, probs = per_outcome(monkeypatch, reinmax(1.5), toy)(params, QUADRATIC)
    assert bias(toy, params, QUADRATIC, grads, probs)[0]["logits"] > 1e-3


def draws_of(rule, toy, params, degree, *, num_draws=20_000, key=7, **settings):
    grad = jax.value_and_grad(lambda p, d, k: surrogate(rule, toy, k, p, d, **settings)[0])
    return jax.device_get(
        jax.jit(jax.vmap(grad, (None, None, 0)))(
            params, degree, jax.random.split(jax.random.key(key), num_draws)
        )
    )


@pytest.mark.parametrize("name", ["one", "bits"])
def test_gumbel_rao_has_the_mean_of_straight_through_gumbel_and_less_variance(name):
    """Identity 22. The bias is common to both."""
    toy = TOYS[name]
    params = at(toy, "random")
    plain = draws_of(straight_through_gumbel(0.5), toy, params, CUBIC, key=1)[1][0]["logits"]
    averaged = draws_of(gumbel_rao(0.5, 20), toy, params, CUBIC, key=2)[1][0]["logits"]
    error = np.abs(plain.mean(axis=0) - averaged.mean(axis=0))
    assert np.all(error < 5.0 * np.sqrt((plain.var(axis=0) + averaged.var(axis=0)) / len(plain)))
    assert averaged.var(axis=0).sum() < 0.7 * plain.var(axis=0).sum()
    for draws in (plain, averaged):
        with pytest.raises(AssertionError, match="biased"):
            assert_unbiased(draws, exact(toy, params, CUBIC)[0]["logits"])


def test_perturbed_logits_given_the_winner():
    """Averaged over the winner they are independent Gumbels again; their mean gap is -log(1 - q) /
    q.
    """
    logits = jnp.asarray([0.3, -0.8, 1.1, -3.0])

    @jax.jit
    def draws(keys):
        def one(key):
            first, second = jax.random.split(key)
            hard = jax.nn.one_hot(jax.random.categorical(first, logits), 4)
            perturbed = perturbed_given(second, logits, hard)
            gap = perturbed - jnp.max(jnp.where(hard > 0.0, -jnp.inf, perturbed))
            return hard, perturbed, hard * (gap - mean_gap(logits, hard))

        return jax.vmap(one)(keys)

    hard, perturbed, gap = draws(jax.random.split(jax.random.key(4), 40_000))
    np.testing.assert_array_equal(np.argmax(hard, axis=1), np.argmax(perturbed, axis=1))
    mean = logits + np.euler_gamma
    centred = np.asarray(perturbed) - np.asarray(mean)
    assert_unbiased(
        {
            "mean": perturbed,
            "square": centred**2,
            "product": centred[:, :3] * centred[:, 1:],
            "gap": gap,
        },
        {
            "mean": mean,
            "square": np.full(4, np.pi**2 / 6),
            "product": np.zeros(3),
            "gap": np.zeros(4),
        },
    )
    tiny = jax.vmap(mean_gap, (None, 0))(jnp.asarray([0.0, -50.0, -1000.0]), jnp.eye(3))
    np.testing.assert_allclose(tiny[1:], 1.0, rtol=1e-12)
    assert np.all(np.isfinite(tiny))


def test_concrete_is_unbiased_for_the_relaxed_bound():
    """One Bernoulli site against quadrature over its uniform, value included; not for the bound
    itself.
    """
    toy, temperature = Toy(families.bernoulli(1), {"here": [0.7]}), 0.6
    params = at(toy, "here")
    uniform = (np.arange(200_000) + 0.5) / 200_000
    logistic = jnp.asarray(np.log1p(-uniform) - np.log(uniform))

    def relaxed_bound(params):
        lam, theta = params

        def value(noise):
            z = jax.nn.sigmoid((lam["logits"] + noise) / temperature)
            return polynomial(theta, z, CUBIC) - toy.family.log_prob(lam, z)

        return jnp.mean(jax.vmap(value)(logistic))

    draws = draws_of(gumbel_softmax(temperature), toy, params, CUBIC)
    assert_unbiased(draws, jax.jit(jax.value_and_grad(relaxed_bound))(params))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(draws[1], exact(toy, params, CUBIC))


def test_gapped_jacobian_by_hand():
    """The second class was drawn: it is raised to 0.5, the first lowered to 0.5 - gap."""
    toy, temperature, gap = Toy(families.categorical(2), {"here": [0.5, -0.2]}), 0.8, 1.0
    params = at(toy, "here")
    key = next(
        k
        for k in jax.random.split(jax.random.key(0), 50)
        if surrogate(score(), toy, k, params, AFFINE, num_samples=2)[1].inner[1] == 1.0
    )
    slope = params[1][0] - jax.nn.log_softmax(params[0]["logits"])
    soft = jax.nn.softmax(jnp.asarray([0.5 - gap, 0.5]) / temperature)
    answer = (jnp.diag(soft) - jnp.outer(soft, soft)) @ slope / temperature
    rule = gapped_straight_through(temperature, gap)
    found = jax.grad(lambda p: surrogate(rule, toy, key, p, AFFINE, num_samples=2)[0])(params)[0][
        "logits"
    ]
    np.testing.assert_allclose(found, answer, atol=1e-12)


HARD = [
    straight_through(),
    straight_through_gumbel(0.5),
    gumbel_rao(0.5, 3),
    gapped_straight_through(0.7),
    gapped_straight_through(0.7, gap=None),
    reinmax(),
]


@functools.cache
def score_gradient(name):
    def loss(p, k):
        return surrogate(score(), TOYS[name], k, p, CUBIC, objective=iwae, num_samples=3)[0]

    return jax.jit(jax.value_and_grad(loss))


CASES = [(rule, "two") for rule in [*HARD, gumbel_softmax(0.5)]] + [
    (rule, "bits") for rule in (HARD[1], HARD[4], HARD[5])
]


@pytest.mark.parametrize(("rule", "name"), CASES, ids=lambda p: getattr(p, "name", p))
def test_value_theta_and_edges(rule, name):
    """vmap = loop and finite at extreme logits. Hard rules: value and theta gradient are those of
    any rule at these draws.
    """
    toy = TOYS[name]
    grad = jax.jit(
        jax.value_and_grad(
            lambda p, k: surrogate(rule, toy, k, p, CUBIC, objective=iwae, num_samples=3)[0]
        )
    )
    reference = score_gradient(name)
    keys = jax.random.split(jax.random.key(1), 2)
    for place in ("random", "edge"):
        params = at(toy, place)
        together = jax.vmap(grad, (None, 0))(params, keys)
        for i, key in enumerate(keys):
            value, (lam, theta) = grad(params, key)
            assert_close(
                jax.tree.map(lambda leaf, i=i: leaf[i], together),
                (value, (lam, theta)),
                tolerance=1e-12,
            )
            if rule in HARD:
                same_value, (_, same_theta) = reference(params, key)
                assert_close((value, theta), (same_value, same_theta), tolerance=1e-12)


def test_the_direct_term_is_no_noise_and_is_kept_where_it_counts():
    """One sample of IWAE is the ELBO, sample by sample; with two the direct dependence on log q
    stays, minus its mean.
    """
    toy, key = TOYS["one"], jax.random.key(3)
    params = at(toy, "random")

    def gradient(objective, num_samples):
        run = jax.grad(
            lambda p: surrogate(
                straight_through(),
                toy,
                key,
                p,
                AFFINE,
                objective=objective,
                num_samples=num_samples,
            )[0]
        )
        return run(params)[0]["logits"]

    np.testing.assert_allclose(gradient(iwae, 1), gradient(elbo, 1), atol=1e-12)
    z = surrogate(score(), toy, key, params, AFFINE, num_samples=2)[1].inner
    drawn = jnp.round(2 * z)  # counts of the two draws per class
    log_q = jax.nn.log_softmax(params[0]["logits"])
    slope, probs = params[1][0] - log_q, jnp.exp(log_q)
    classes = jnp.repeat(jnp.arange(4), drawn.astype(int), total_repeat_length=2)
    share = jax.nn.softmax(slope[classes])
    direct = -jnp.sum((share - 0.5)[:, None] * (jnp.eye(4)[classes] - probs[None, :]), axis=0)
    path = (jnp.diag(probs) - jnp.outer(probs, probs)) @ slope
    np.testing.assert_allclose(gradient(iwae, 2), path + direct, atol=1e-12)


@pytest.mark.parametrize("rule", [*HARD, gumbel_softmax(1.0)], ids=lambda rule: rule.name)
def test_they_are_named_biased_and_need_logits(rule):
    assert not rule.requires.unbiased
    with pytest.raises(ValueError, match="pathwise"):
        rule.check(families.diag_normal(2), elbo, 1, None)


@pytest.mark.parametrize(
    "make",
    [
        gumbel_softmax,
        straight_through,
        straight_through_gumbel,
        gumbel_rao,
        gapped_straight_through,
        reinmax,
    ],
)
def test_settings_out_of_range_are_refused(make):
    assert make.__doc__.startswith("Biased")
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            make(temperature)


def test_further_settings_are_checked():
    with pytest.raises(ValueError, match="num_conditional"):
        gumbel_rao(1.0, 0)
    with pytest.raises(ValueError, match="gap"):
        gapped_straight_through(1.0, gap=0.0)
