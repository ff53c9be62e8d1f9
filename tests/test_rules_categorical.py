"""Rules for categories: exact means over enumerated noise, z-tests where the noise is continuous,
and their identities.
"""

import itertools
from collections.abc import Callable
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
from vijax.rules import mixed, score
from vijax.rules.arsm import arsm
from vijax.rules.categorical_disarm import (
    _on_tree,
    balanced,
    comb,
    disarm_importance,
    disarm_stick_breaking,
    disarm_tree,
    node_logits,
    walk,
)
from vijax.rules.sum_and_sample import sum_and_sample
from vijax.rules.without_replacement import (
    Weights,
    _without_replacement,
    draw_distinct,
    importance_without_replacement,
    leave_out,
    log_inclusion,
    unordered_set,
)

pytestmark = pytest.mark.usefixtures("x64")


class Toy(NamedTuple):
    """E_q[f - log q] for a table f = theta, one entry per point of q's support.

    Attributes:
      index: z -> one-hot [S] weights of the support's points
    """

    family: Any
    index: Callable
    logits: dict[str, Any]


def _outer(z):
    return jnp.einsum("i,j->ij", z[0], z[1]).ravel()


def _bits(b):
    pairs = jnp.stack([1.0 - b, b], axis=-1)
    return jnp.einsum("i,j,k->ijk", *pairs).ravel()


TOYS = {
    "one": Toy(
        families.categorical(4),
        lambda z: z,
        {"random": [0.3, -0.8, 1.1, 0.2], "ties": [0.0] * 4, "edge": [12.0, -12.0, 0.0, 12.0]},
    ),
    "two": Toy(
        families.categorical(3, num_sites=2),
        _outer,
        {
            "random": [[0.3, -0.8, 1.1], [-0.4, 0.9, 0.5]],
            "ties": [[0.0] * 3, [1.0, 1.0, -1.0]],
            "edge": [[12.0, -12.0, 0.0], [0.5, 0.1, -0.3]],
        },
    ),
    "bits": Toy(
        families.bernoulli(3), _bits, {"random": [0.4, -1.0, 0.1], "edge": [12.0, -12.0, 0.0]}
    ),
}


def at(toy, place):
    """(params = (lam, theta)) of a toy."""
    size = need(toy.family, FiniteSupport).size
    table = np.random.default_rng(3).normal(size=size) * 2.0 + 1.0
    return {"logits": jnp.asarray(toy.logits[place])}, jnp.asarray(table)


def surrogate(rule, toy, key, params, *, objective=elbo, num_samples=1, shift=0.0):
    lam, theta = params

    def integrand(sample):
        return toy.index(sample.z) @ theta + shift - sample.log_q, {"z": toy.index(sample.z)}

    return vj.expect(
        key, toy.family, lam, integrand, rule=rule, objective=objective, num_samples=num_samples
    )[0]


def exact(toy, params, *, objective=elbo, num_samples=1):
    """The gradient of E[objective(log_w)] by enumeration of all K draws."""

    def bound(params):
        lam, theta = params
        z = need(toy.family, FiniteSupport).values()
        log_q = log_probs(toy.family, lam, z)
        log_w = jax.vmap(toy.index)(z) @ theta - log_q
        draws = np.array(list(itertools.product(range(len(log_q)), repeat=num_samples)))
        return jnp.exp(log_q[draws].sum(axis=1)) @ jax.vmap(objective.value)(log_w[draws])

    return jax.value_and_grad(bound)(params)


def forced(monkeypatch, rule, toy, **settings):
    """(params, noise) -> (value, gradient) per row of `noise`: what `jax.random`'s functions return
    instead of randomness.
    """

    def one(params, noise):
        with monkeypatch.context() as patch:
            for name, values in noise.items():
                patch.setattr(
                    jax.random,
                    name,
                    lambda key, *args, values=values, shape=None: values.reshape(shape or args[0]),
                )
            if "categorical" in noise:
                patch.setattr(
                    jax.random, "categorical", lambda key, logits, shape: noise["categorical"]
                )
            return jax.value_and_grad(
                lambda p: surrogate(rule, toy, jax.random.key(0), p, **settings)
            )(params)

    return jax.jit(jax.vmap(one, (None, 0)))


def assert_exact(draws, probs, answer):
    np.testing.assert_allclose(probs.sum(), 1.0, rtol=1e-12)
    assert_close(
        jax.tree.map(lambda leaf: jnp.tensordot(probs, leaf, axes=1), draws),
        answer,
        tolerance=1e-10,
    )


def pair_cells(tree, toy, lam):
    """Uniforms for every outcome of the coupled nodes, and their probabilities."""
    logits = jnp.sort(lam["logits"], axis=-1)
    rare = np.asarray(jax.nn.sigmoid(-jnp.abs(node_logits(tree(logits.shape[-1]), logits)))).ravel()
    cells = np.array(list(itertools.product(range(3), repeat=rare.size)))
    middles = np.stack([rare / 2, np.full_like(rare, 0.5), 1 - rare / 2])
    widths = np.stack([rare, 1 - 2 * rare, rare])
    columns = np.arange(rare.size)
    return jnp.asarray(middles[cells, columns]), jnp.asarray(widths[cells, columns].prod(axis=1))


PAIRS = [(disarm_stick_breaking, comb), (disarm_tree, balanced), (disarm_importance, comb)]


@pytest.mark.parametrize(("make", "tree"), PAIRS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["one", "two"])
def test_coupled_pairs_are_exactly_unbiased(monkeypatch, make, tree, name):
    toy = TOYS[name]
    run = forced(monkeypatch, make(), toy)
    for place in toy.logits:
        params = at(toy, place)
        uniform, probs = pair_cells(tree, toy, params[0])
        assert_exact(run(params, {"uniform": uniform}), probs, exact(toy, params))


def test_a_pair_credited_as_if_independent_is_caught(monkeypatch):
    def unweighted(nodes, taken, reached):
        return reached * (taken - jnp.broadcast_to(jax.nn.sigmoid(nodes), taken.shape))

    toy, rule = TOYS["one"], _on_tree("unweighted", comb, unweighted)
    params = at(toy, "random")
    uniform, probs = pair_cells(comb, toy, params[0])
    draws = forced(monkeypatch, rule, toy)(params, {"uniform": uniform})
    with pytest.raises(AssertionError, match="differs"):
        assert_exact(draws, probs, exact(toy, params))


@pytest.mark.parametrize(
    "make", [disarm_stick_breaking, disarm_tree, disarm_importance], ids=lambda f: f.__name__
)
def test_a_pair_in_agreement_has_no_gradient(monkeypatch, make):
    """Identity 16."""
    toy = TOYS["one"]
    params = at(toy, "random")
    tree = balanced if make is disarm_tree else comb
    uniform, _ = pair_cells(tree, toy, params[0])
    nodes = node_logits(tree(4), jnp.sort(params[0]["logits"]))
    leaf = walk(tree(4), nodes, jnp.stack([uniform, 1 - uniform], axis=1))[1]
    same = np.asarray(jnp.all(leaf[:, 0] == leaf[:, 1], axis=-1))
    run = forced(monkeypatch, make(), toy)
    gradient = run(params, {"uniform": uniform})[1][0]["logits"]
    assert same.any() and not same.all()
    assert np.all(np.asarray(gradient)[same] == 0.0) and np.all(
        np.any(np.asarray(gradient)[~same] != 0.0, axis=-1)
    )
    shifted = run((params[0], params[1] + 100.0), {"uniform": uniform})[1][0]["logits"]
    np.testing.assert_allclose(shifted, gradient, atol=1e-11)
    mirrored = run(params, {"uniform": 1.0 - uniform})[1][0]["logits"]
    np.testing.assert_allclose(mirrored, gradient, atol=1e-12)


def ordered_draws(log_probs, size):
    """Gumbel noise for every order of drawing `size` values, and the orders' probabilities
    (Plackett-Luce).
    """
    log_probs = np.asarray(log_probs)
    noise, probs = [], []
    for order in itertools.permutations(range(len(log_probs)), size):
        perturbed = np.full(len(log_probs), -100.0)
        left = np.exp(log_probs)
        prob = 1.0
        for rank, index in enumerate(order):
            perturbed[index] = -rank
            prob *= left[index] / left.sum()
            left[index] = 0.0
        noise.append(perturbed - log_probs)
        probs.append(prob)
    return jnp.asarray(noise), jnp.asarray(probs)


def log_support(toy, params):
    return log_probs(toy.family, params[0], need(toy.family, FiniteSupport).values())


# Toy, num_samples, baseline
SETS = [("one", 2, True), ("one", 3, True), ("one", 3, False), ("bits", 3, True)]


@pytest.mark.parametrize(("name", "size", "baseline"), SETS)
def test_unordered_set_is_exactly_unbiased(monkeypatch, name, size, baseline):
    toy = TOYS[name]
    run = forced(monkeypatch, unordered_set(baseline=baseline), toy, num_samples=size)
    for place in toy.logits:
        params = at(toy, place)
        gumbel, probs = ordered_draws(log_support(toy, params), size)
        assert_exact(run(params, {"gumbel": gumbel}), probs, exact(toy, params))


WITHOUT_REPLACEMENT = [
    unordered_set(),
    importance_without_replacement(),
    importance_without_replacement(normalized=True),
]


@pytest.mark.parametrize("rule", WITHOUT_REPLACEMENT, ids=lambda rule: rule.name)
def test_drawing_every_value_is_enumeration(monkeypatch, rule):
    """Identity 23: with K = C every draw is exact."""
    toy = TOYS["one"]
    run = forced(monkeypatch, rule, toy, num_samples=4)
    for place in toy.logits:
        params = at(toy, place)
        draws = run(params, {"gumbel": ordered_draws(log_support(toy, params), 4)[0][:3]})
        for i in range(3):
            assert_close(
                jax.tree.map(lambda leaf, i=i: leaf[i], draws), exact(toy, params), tolerance=1e-10
            )


def test_a_set_of_one_is_reinforce(monkeypatch):
    """Identity 23."""
    toy = TOYS["one"]
    run = forced(monkeypatch, unordered_set(baseline=False), toy)
    for place in toy.logits:
        params = at(toy, place)
        log_q = log_support(toy, params)
        value, (lam, theta) = run(params, {"gumbel": ordered_draws(log_q, 1)[0]})
        signal = params[1] - log_q
        np.testing.assert_allclose(value, signal, rtol=1e-9)
        np.testing.assert_allclose(
            lam["logits"], signal[:, None] * (np.eye(4) - np.exp(log_q)[None, :]), atol=1e-9
        )
        np.testing.assert_allclose(theta, np.eye(4), atol=1e-9)


def test_weights_of_an_unordered_set_sum_to_one():
    """Identity 23: sum_s q_s R(S, s) = 1 for every set, and the same among the others for its
    baseline.
    """
    log_probs = jax.nn.log_softmax(5.0 * jax.random.normal(jax.random.key(0), (9,)))
    for size in (1, 2, 5, 9):
        drawn, _ = draw_distinct(jax.random.key(size), log_probs, size)
        whole, without_one, without_two = leave_out(drawn)
        np.testing.assert_allclose(
            jnp.exp(drawn.log_probs + without_one - whole).sum(), 1.0, rtol=1e-10
        )
        if size > 1:
            second = jnp.exp(drawn.log_probs[None, :] + without_two - without_one[:, None])
            np.testing.assert_allclose(second.sum(axis=1), 1.0, rtol=1e-10)


def test_leave_out_stays_finite_in_float32():
    logits = jnp.asarray([80.0, -80.0, 0.0, 40.0, -60.0, 10.0], jnp.float32)
    for key in jax.random.split(jax.random.key(1), 5):
        drawn, _ = draw_distinct(key, jax.nn.log_softmax(logits), 4)
        assert all(np.all(np.isfinite(leaf)) for leaf in leave_out(drawn))


# Summed, stochastic, baseline, num_samples
SUMS = [(1, False, True, 2), (1, False, False, 1), (2, False, True, 3)]
SUMS += [(2, True, True, 2), (1, True, False, 1), (3, True, False, 1)]


@pytest.mark.parametrize(("summed", "stochastic", "baseline", "size"), SUMS)
def test_sum_and_sample_is_exactly_unbiased(monkeypatch, summed, stochastic, baseline, size):
    toy = TOYS["one"]
    run = forced(
        monkeypatch,
        sum_and_sample(summed, stochastic=stochastic, baseline=baseline),
        toy,
        num_samples=size,
    )
    for place in toy.logits:
        params = at(toy, place)
        noise, probs = sum_and_sample_outcomes(log_support(toy, params), summed, stochastic, size)
        assert_exact(run(params, noise), probs, exact(toy, params))


def sum_and_sample_outcomes(log_q, summed, stochastic, size):
    """Every set summed with every draw of the rest: the noise that leads there, and the
    probabilities.
    """
    log_q = np.asarray(log_q)
    if stochastic:
        gumbel, set_probs = ordered_draws(log_q, summed)
        chosen = np.argsort(-(np.asarray(gumbel) + log_q), axis=1, kind="stable")[:, :summed]
    else:
        gumbel, set_probs = jnp.zeros((1, len(log_q))), jnp.ones(1)
        chosen = np.asarray(jax.lax.top_k(log_q, summed)[1])[None]
    rows, drawn, probs = [], [], []
    for row, (members, set_prob) in enumerate(zip(chosen, set_probs, strict=True)):
        left = [index for index in range(len(log_q)) if index not in members]
        rest = np.exp(log_q) / np.exp(log_q)[left].sum()
        for draws in itertools.product(left, repeat=size):
            rows.append(row), drawn.append(draws), probs.append(set_prob * rest[list(draws)].prod())
    return {"gumbel": gumbel[np.array(rows)], "categorical": jnp.asarray(drawn)}, np.array(probs)


def test_sum_of_everything_is_enumeration():
    """Identity 23."""
    toy = TOYS["one"]
    run = jax.jit(
        jax.value_and_grad(lambda p, k: surrogate(sum_and_sample(4), toy, k, p, num_samples=2))
    )
    for place in toy.logits:
        params = at(toy, place)
        assert_close(run(params, jax.random.key(0)), exact(toy, params), tolerance=1e-10)


def draws_of(rule, toy, params, *, num_draws=20_000, key=7, **settings):
    grad = jax.value_and_grad(lambda p, k: surrogate(rule, toy, k, p, **settings))
    return jax.device_get(
        jax.jit(jax.vmap(grad, (None, 0)))(params, jax.random.split(jax.random.key(key), num_draws))
    )


CONTINUOUS = [
    (arsm(), "one", "random", elbo, 1),
    (arsm(), "two", "random", elbo, 1),
    (arsm(2), "one", "random", elbo, 1),
    (arsm(), "two", "random", iwae, 2),
    (arsm(1), "one", "random", iwae, 2),
    (disarm_stick_breaking(), "two", "random", iwae, 2),
    (disarm_tree(), "one", "random", iwae, 2),
    (disarm_importance(), "one", "random", iwae, 3),
    (importance_without_replacement(), "one", "random", elbo, 2),
    (importance_without_replacement(), "bits", "random", elbo, 4),
    (importance_without_replacement(baseline=False), "two", "ties", elbo, 3),
    (unordered_set(), "two", "random", elbo, 4),
    (sum_and_sample(3), "two", "random", elbo, 2),
]


@pytest.mark.parametrize(
    ("rule", "name", "place", "objective", "size"),
    CONTINUOUS,
    ids=lambda p: getattr(p, "name", getattr(p, "__name__", str(p))),
)
def test_mean_of_draws_is_the_gradient(rule, name, place, objective, size):
    toy = TOYS[name]
    params = at(toy, place)
    draws = draws_of(rule, toy, params, objective=objective, num_samples=size)
    assert_unbiased(draws, exact(toy, params, objective=objective, num_samples=size))


def own_entry_in_baseline():
    """The baseline of importance weights with the value's own weight left in: correlated with its
    score.
    """

    def weigh(drawn):
        weights = jnp.exp(drawn.log_probs - log_inclusion(drawn.log_probs - drawn.threshold))
        return Weights(weights, weights, jnp.broadcast_to(weights, (weights.shape[0],) * 2))

    return _without_replacement(
        "own_entry", weigh, min_samples=1, max_samples=None, unbiased=False, paper=""
    )


@pytest.mark.parametrize(
    "rule",
    [own_entry_in_baseline(), importance_without_replacement(normalized=True)],
    ids=lambda rule: rule.name,
)
def test_biased_weights_are_caught(rule):
    toy = TOYS["one"]
    params = at(toy, "random")
    assert not rule.requires.unbiased
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(draws_of(rule, toy, params, num_samples=2), exact(toy, params))


def test_arsm_merges_with_less_variance_than_a_reference():
    toy = TOYS["one"]
    params = at(toy, "random")
    merged, single = (
        draws_of(rule, toy, params)[1][0]["logits"].var(axis=0) for rule in (arsm(), arsm(0))
    )
    assert np.all(merged < single)


def test_arsm_of_two_classes_is_arm():
    """(f(z) - f(z')) (1/2 - u) with z' at the exchanged noise, samplewise."""
    toy = Toy(families.categorical(2), lambda z: z, {})
    params = ({"logits": jnp.asarray([0.4, -0.3])}, jnp.asarray([1.0, 3.0]))
    key = jax.random.key(5)
    gumbel = jax.random.gumbel(jax.random.split(key)[0], (1, 2))[0]
    u = jax.nn.softmax(-gumbel)[0]
    log_w = params[1] - jax.nn.log_softmax(params[0]["logits"])
    f, other = (log_w[jnp.argmax(params[0]["logits"] + g)] for g in (gumbel, gumbel[::-1]))
    gradient = jax.grad(lambda p: surrogate(arsm(), toy, key, p))(params)[0]["logits"]
    np.testing.assert_allclose(
        gradient, (f - other) * (0.5 - u) * jnp.asarray([1.0, -1.0]), atol=1e-12
    )


BLIND = [arsm(), unordered_set(), sum_and_sample(2)]
NOT_BLIND = [
    unordered_set(baseline=False),
    sum_and_sample(2, baseline=False),
    importance_without_replacement(),
]


@pytest.mark.parametrize("rule", BLIND + NOT_BLIND, ids=lambda rule: rule.name)
def test_constants_are_ignored_sample_by_sample(rule):
    """Identity 16."""
    toy = TOYS["one"]
    params = at(toy, "random")
    plain, shifted = (
        draws_of(rule, toy, params, num_draws=20, num_samples=2, shift=c)[1][0]["logits"]
        for c in (0.0, 100.0)
    )
    blind = np.abs(plain - shifted).max() < 1e-10
    assert blind == (rule in BLIND)


EVERY = [
    disarm_tree(),
    disarm_importance(),
    arsm(),
    unordered_set(),
    importance_without_replacement(),
    sum_and_sample(2, stochastic=True),
]


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: rule.name)
def test_vmap_is_a_loop_and_edges_are_finite(rule):
    toy = TOYS["two"]
    params = at(toy, "edge")
    grad = jax.jit(jax.value_and_grad(lambda p, k: surrogate(rule, toy, k, p, num_samples=2)))
    keys = jax.random.split(jax.random.key(1), 3)
    together = jax.vmap(grad, (None, 0))(params, keys)
    for i, key in enumerate(keys):
        assert_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], together), grad(params, key), tolerance=1e-12
        )


def test_the_value_is_the_estimate_at_the_draws():
    """ARSM's z are those of every other rule with this key; a pair's value is the mean of both."""
    toy = TOYS["two"]
    params, key = at(toy, "random"), jax.random.key(11)
    ours = surrogate(arsm(), toy, key, params, objective=iwae, num_samples=3)
    np.testing.assert_allclose(
        ours, surrogate(score(), toy, key, params, objective=iwae, num_samples=3), rtol=1e-12
    )


def test_rules_nest_in_blocks():
    """A pair of categories outside, a set without replacement inside: unbiased for the joint
    sum.
    """
    family = families.product(a=families.categorical(3), b=families.categorical(3))
    toy = Toy(family, lambda z: jnp.einsum("i,j->ij", z["a"], z["b"]).ravel(), {})
    logits = TOYS["two"].logits["random"]
    params = (
        {"a": {"logits": jnp.asarray(logits[0])}, "b": {"logits": jnp.asarray(logits[1])}},
        at(TOYS["two"], "random")[1],
    )
    answer = exact(toy, params)
    for rules in (
        {"a": disarm_tree(), "b": unordered_set()},
        {"a": sum_and_sample(1), "b": arsm()},
    ):
        draws = draws_of(mixed(rules), toy, params, num_samples={"a": 2, "b": 2})
        assert_unbiased(draws, answer)


REFUSED = [
    (lambda: sum_and_sample(0), "at least 1"),
    (lambda: arsm(-1), "number of a class"),
    (lambda: arsm(4).check(families.categorical(4), elbo, 1, None), "4 classes"),
    (lambda: arsm().check(families.bernoulli(2), elbo, 1, None), "disarm"),
    (lambda: disarm_tree().check(families.bernoulli(2), elbo, 1, None), "disarm"),
    (lambda: unordered_set().check(families.categorical(4), elbo, 1, None), "at least 2"),
    (lambda: unordered_set().check(families.categorical(4), elbo, 5, None), "enumerated"),
    (
        lambda: unordered_set().check(families.categorical(20), elbo, 13, None),
        "importance_without_replacement",
    ),
    (lambda: unordered_set().check(families.categorical(4), iwae, 2, None), "not linear"),
    (lambda: sum_and_sample(5).check(families.categorical(4), elbo, 2, None), "enumerated"),
    (lambda: sum_and_sample(2).check(families.diag_normal(4), elbo, 2, None), "infinitely many"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_would_be_wrong_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
