"""The matrix that the metadata generates: every rule on every family with every objective is unbiased, or refused with advice.

One compiled program per legal triple draws thousands of gradients at several parameter points, edge points among them.
"""

import pathlib
from typing import Any, NamedTuple

import exact as exact_answers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import FAST_COMPILE

import vijax as vj
from vijax import densities, families
from vijax.catalogue import CATALOGUE, OBJECTIVE_OF, table
from vijax.objectives import elbo, iwae, renyi

NUM_DRAWS = 4000
NUM_SAMPLES = 2
RARE = float(jax.nn.sigmoid(-12.0))


class Fixture(NamedTuple):
    family: vj.Family
    lams: Any  # parameter points, leaves [P, ...]: random first
    theta: np.ndarray
    f: Any  # (theta, z) -> [], defined at relaxed z too
    nodes: int = 0


def bernoulli() -> Fixture:
    """Three bits, a random table extended multilinearly; random, all-zero and saturated logits."""

    def f(theta, b):
        for bit in b:
            theta = theta[0] * (1.0 - bit) + theta[1] * bit
        return theta

    logits = np.array([[0.4, -0.9, 1.3], [0.0, 0.0, 0.0], [12.0, 0.0, -12.0]])
    return Fixture(families.bernoulli(3), {"logits": logits}, np.random.default_rng(0).normal(size=(2, 2, 2)), f)


def categorical() -> Fixture:
    """Four classes, f quadratic in the one-hot z; random, tied and saturated logits."""

    def f(theta, z):
        return jnp.vdot(theta, z) + jnp.square(jnp.vdot(theta, z) - 0.4)

    logits = np.array([[0.4, -0.9, 1.3, 0.1], [0.7, 0.7, 0.7, 0.7], [12.0, 0.0, 0.0, 11.0]])
    return Fixture(families.categorical(4), {"logits": logits}, np.array([0.5, -1.0, 2.0, 0.3]), f)


def sites() -> Fixture:
    """Two sites of three classes each."""

    def f(theta, z):
        return z[0] @ theta @ z[1]

    logits = np.array([[[0.4, -0.9, 0.0], [1.0, 0.2, -0.5]], [[0.0, 0.0, 0.0], [1.0, 1.0, -1.0]]])
    return Fixture(families.categorical(3, num_sites=2), {"logits": logits}, np.random.default_rng(1).normal(size=(3, 3)), f)


def normal() -> Fixture:
    """A normal plane, f neither linear nor quadratic."""

    def f(theta, z):
        return theta[0] * jnp.sin(z[0]) + theta[1] * z[0] * z[1] - 0.1 * jnp.square(z[1])

    lams = {"loc": np.array([[0.3, -0.5], [0.0, 0.0]]), "log_scale": np.array([[-0.4, 0.2], [-3.0, 0.0]])}
    return Fixture(families.diag_normal(2), lams, np.array([0.8, -0.6]), f, 12)


def mixed_blocks() -> Fixture:
    """A class and a normal number."""

    def f(theta, latent):
        return -0.5 * jnp.square(latent["z"][0] - latent["c"] @ theta)

    lams = {
        "c": {"logits": np.array([[0.4, -0.9], [0.0, 0.0]])},
        "z": {"loc": np.array([[0.3], [0.0]]), "log_scale": np.array([[-0.4], [0.1]])},
    }
    return Fixture(families.product(c=families.categorical(2), z=families.diag_normal(1)), lams, np.array([0.8, -0.6]), f, 24)


FIXTURES = {make.__name__: make() for make in (bernoulli, categorical, sites, normal, mixed_blocks)}
OBJECTIVES = {"elbo": elbo, "iwae": iwae, "renyi": renyi(0.5)}


def triples(objectives):
    for place, fixture in FIXTURES.items():
        for name in CATALOGUE:
            known = {OBJECTIVE_OF[name].__name__: OBJECTIVE_OF[name]} if name in OBJECTIVE_OF else objectives
            for label, objective in known.items():
                # A second family of the same kind, and a second objective on mixed latents, wait for the long sweep.
                long = place == "sites" or (label != "elbo" and place not in ("bernoulli", "normal"))
                marks = [pytest.mark.slow] if long else []
                yield pytest.param(fixture, name, objective, id=f"{place}-{name}-{label}", marks=marks)


def is_legal(fixture, rule, objective) -> bool:
    try:
        rule.check(fixture.family, objective, NUM_SAMPLES, fixture.family)
    except ValueError:
        return False
    return True


LEGAL = {True: [], False: []}
for _param in triples({"elbo": elbo, "iwae": iwae}):
    _fixture, _name, _objective = _param.values
    LEGAL[is_legal(_fixture, CATALOGUE[_name](_fixture.family), _objective)].append(_param)
LEGAL_RENYI = [
    p for p in triples({"renyi": OBJECTIVES["renyi"]}) if p.values[1] not in OBJECTIVE_OF and
    is_legal(p.values[0], CATALOGUE[p.values[1]](p.values[0].family), p.values[2])
]  # fmt: skip


def prior_of(fixture):
    """A fixed prior in the family, which every integrand contains."""
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * leaf[0] - 0.1), fixture.lams)


def log_joint(fixture, theta, z):
    return fixture.f(theta, z) + fixture.family.log_prob(prior_of(fixture), z)


def exact_bound(fixture, objective):
    def bound(lam, theta):
        z, weights = exact_answers.quadrature(fixture.family, lam, fixture.nodes)
        log_w = jax.vmap(lambda z: log_joint(fixture, theta, z) - fixture.family.log_prob(lam, z))(z)
        return exact_answers.expectation(objective, NUM_SAMPLES, weights, log_w)

    return bound


def gradients(fixture, rule, objective):
    """Draws [P, S, ...] of the gradient in (lam, theta), and the exact one [P, ...]."""
    control, state = rule.init(jax.random.key(1)), rule.init_state()
    theta = jnp.asarray(fixture.theta, jnp.result_type(float))
    lams = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), fixture.lams)

    def one(key, lam):
        def bound(lam, theta):
            return rule.surrogate(
                key, fixture.family, lam, lambda s: log_joint(fixture, theta, s.z) - s.log_q, objective=objective,
                num_samples=NUM_SAMPLES, control=control, state=state, x=jnp.zeros(()), prior=prior_of(fixture),
            )[0]  # fmt: skip

        return jax.grad(bound, argnums=(0, 1))(lam, theta)

    def everything(lams):
        keys = jax.random.split(jax.random.key(2), NUM_DRAWS)
        exact = jax.vmap(lambda lam: jax.grad(exact_bound(fixture, objective), argnums=(0, 1))(lam, theta))(lams)
        return jax.lax.map(lambda lam: jax.vmap(one, (0, None))(keys, lam), lams), exact

    return jax.device_get(jax.jit(everything).lower(lams).compile(FAST_COMPILE)(lams))


def worst_z(draws, exact, scale):
    """Largest |mean - exact| in standard errors. Their floor is that of an event which the draws may never have seen:
    probability sigma(-12), size `scale`.
    """
    worst = 0.0
    for leaf, answer in zip(jax.tree.leaves(draws), jax.tree.leaves(exact), strict=True):
        leaf, answer = np.asarray(leaf, np.float64), np.asarray(answer, np.float64)
        assert np.all(np.isfinite(leaf))
        floor = scale * (RARE / NUM_DRAWS) ** 0.5
        error = np.abs(leaf.mean(axis=1) - answer) / (leaf.std(axis=1, ddof=1) / NUM_DRAWS**0.5 + floor)
        worst = max(worst, float(error.max(initial=0.0)))
    return worst


def check_triple(fixture, name, objective):
    rule = CATALOGUE[name](fixture.family)
    draws, exact = gradients(fixture, rule, objective)
    for leaf in jax.tree.leaves(draws):
        assert np.all(np.isfinite(leaf))
    if rule.requires.unbiased:
        assert worst_z(draws, exact, 10.0) < 5.0
    elif name not in ("gumbel_softmax(0.5)", "importance_without_replacement(normalized=True)"):
        assert worst_z(draws[1], exact[1], 10.0) < 5.0  # theta is right even so: the samples are draws of q


@pytest.mark.parametrize(("fixture", "name", "objective"), LEGAL[True])
def test_a_legal_triple_is_unbiased(fixture, name, objective):
    check_triple(fixture, name, objective)


@pytest.mark.slow
@pytest.mark.parametrize(("fixture", "name", "objective"), LEGAL_RENYI)
def test_a_legal_triple_with_another_objective_is_unbiased(fixture, name, objective):
    check_triple(fixture, name, objective)


@pytest.mark.parametrize(("fixture", "name", "objective"), LEGAL[False])
def test_an_illegal_triple_is_refused_with_advice(fixture, name, objective):
    rule = CATALOGUE[name](fixture.family)
    lam = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), fixture.lams)
    with pytest.raises(ValueError, match=r"\. ") as refused:
        rule.surrogate(
            jax.random.key(0), fixture.family, lam, lambda s: fixture.f(fixture.theta, s.z) - s.log_q, objective=objective,
            num_samples=NUM_SAMPLES, prior=lam,
        )  # fmt: skip
    assert "rite" in str(refused.value) or "se " in str(refused.value)  # Write ... / Use ... instead


def test_the_matrix_catches_a_missing_term():
    """Planted: theta scaled by (K - 1) / K, and a dropped direct term, in one triple of the matrix."""
    fixture = FIXTURES["bernoulli"]
    draws, exact = gradients(fixture, CATALOGUE["score()"](fixture.family), iwae)
    wrong = jax.tree.map(lambda g: 0.5 * g, draws)
    assert worst_z(draws, exact, 10.0) < 5.0 < worst_z(wrong, exact, 10.0)


def test_illegal_is_what_the_field_says():
    """Legality seen from outside the metadata: discrete blocks have no paths, formulas hold for their own latents."""
    illegal = {(p.values[0].family.name, p.values[1], p.values[2].__name__) for p in LEGAL[False]}
    for name in ("pathwise()", "doubly_reparameterized()", "lax(critic)", "fitted_score_term()"):
        for place in ("bernoulli", "categorical", "sites", "mixed_blocks"):
            assert (FIXTURES[place].family.name, name, "elbo") in illegal
    for name in ("disarm()", "arms(4)", "rodeo()"):
        assert ("categorical(4)", name, "elbo") in illegal and ("diag_normal(2)", name, "elbo") in illegal
    for name in ("muprop()", "rebar()", "enumerated()", "unordered_set()", "measure_valued()", "closed_form_kl(score())"):
        assert ("bernoulli(3)", name, "iwae") in illegal and ("bernoulli(3)", name, "elbo") not in illegal
    assert ("bernoulli(3)", "wake()", "elbo") in illegal


def test_every_public_rule_is_in_the_catalogue():
    listed = {name.split("(")[0] for name in CATALOGUE}
    parts = {"by_path", "by_score", "by_substitution", "by_terms", "taylor", "learned_quadratic", "concrete", "to_mean_field",
             "log_standardized", "marsaglia_tsang", "as_rule", "mixed", "rule"}  # fmt: skip
    helpers = {"Rules", "draw", "evaluate", "evaluate_at", "from_gradient", "mean_aux"}
    assert set(vj.rules.__all__) - parts - helpers == listed


def test_the_readme_has_the_table_that_the_metadata_makes():
    readme = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    assert table() in readme, "run `python -m vijax.catalogue` and put its output into the README"


def test_densities_extend_to_relaxed_values():
    """What relaxed rules rest on: a linear extension between the hard values."""
    logits = jnp.array([0.3, -1.0])
    half = densities.bernoulli(jnp.array([0.5, 0.5]), logits)
    ends = densities.bernoulli(jnp.zeros(2), logits) + densities.bernoulli(jnp.ones(2), logits)
    np.testing.assert_allclose(half, 0.5 * ends, rtol=1e-6)
