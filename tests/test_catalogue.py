"""The matrix that the metadata generates: every rule on every family with every objective is
unbiased, or refused with advice.

One compiled program per legal triple draws thousands of gradients at several parameter points, edge
points among them.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from matrix import (
    OBJECTIVES,
    OTHER_OBJECTIVES,
    assert_right,
    by_legality,
    check_triple,
    look,
    make_rule,
    samples_of,
)
from registry import FAMILIES, RULES

import vijax as vj
from vijax import densities
from vijax.catalogue import OBJECTIVE_OF, table
from vijax.families import log_probs
from vijax.objectives import elbo, iwae
from vijax.testing.rules import assert_same_as_the_loop
from vijax.types import Q

LEGAL = by_legality(OBJECTIVES)
LEGAL_RENYI = [p for p in by_legality(OTHER_OBJECTIVES)[True] if p.values[1] not in OBJECTIVE_OF]


@pytest.mark.parametrize(("fixture", "name", "objective"), LEGAL[True])
def test_a_legal_triple_is_unbiased(fixture, name, objective):
    check_triple(fixture, name, objective)


@pytest.mark.slow
@pytest.mark.parametrize(("fixture", "name", "objective"), LEGAL_RENYI)
def test_a_legal_triple_with_another_objective_is_unbiased(fixture, name, objective):
    check_triple(fixture, name, objective)


@pytest.mark.parametrize(("fixture", "name", "objective"), LEGAL[False])
def test_an_illegal_triple_is_refused_with_advice(fixture, name, objective):
    rule = make_rule(fixture, name)
    lam = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), fixture.lams)
    with pytest.raises(ValueError, match=r"\. ") as refused:
        vj.expect(
            jax.random.key(0),
            fixture.family,
            lam,
            lambda s: fixture.f(fixture.theta, s.z) - s.log_q,
            rule=rule,
            objective=objective,
            num_samples=samples_of(fixture, objective),
            prior=lam,
        )
    # Write ... / Use ... instead
    assert "rite" in str(refused.value) or "se " in str(refused.value)


def test_the_matrix_catches_a_missing_term():
    """Planted: theta scaled by (K - 1) / K, and a dropped direct term, in one triple of the
    matrix.
    """
    fixture = FAMILIES["bernoulli"]
    seen = look(fixture, RULES["score()"](fixture.family), iwae)
    assert_right(seen.draws, seen.exact)
    with pytest.raises(AssertionError, match="biased"):
        assert_right(jax.tree.map(lambda g: 0.5 * g, seen.draws[1]), seen.exact[1])


@jax.custom_batching.custom_vmap
def leak(gradient):
    """The identity in a loop; under vmap, as a statistic over the batch would, it depends on the
    other rows.
    """
    return gradient


@leak.def_vmap
def _leak_under_vmap(size, batched, gradient):
    return gradient + 1e-2 * jnp.mean(gradient, axis=0, keepdims=True), batched[0]


@pytest.mark.parametrize(("change", "caught"), [(lambda g: g, False), (leak, True)])
def test_the_matrix_catches_a_rule_that_vmap_changes(change, caught):
    """Planted: score-function gradients that see each other's batch."""
    fixture = FAMILIES["bernoulli"]

    def surrogate(key, q, integrand, setting):
        stopped = Q(q.family, jax.lax.stop_gradient(q.lam))
        drawn = vj.rules.draw(key, stopped, setting.num_samples)
        values, aux = vj.rules.evaluate(integrand, drawn)

        def scored(lam):
            signal = jax.lax.stop_gradient(values)
            return jnp.mean(signal * log_probs(q.family, lam, drawn.z))

        gradient = jax.tree.map(change, jax.grad(scored)(stopped.lam))
        value = vj.rules.from_gradient(setting.objective.value(values), q.lam, gradient)
        return value, vj.Aux((), vj.rules.mean_aux(aux))

    planted = vj.rules.rule("planted()", vj.Requirements(), surrogate)
    seen = look(fixture, planted, elbo, loop=True)
    if not caught:
        return assert_same_as_the_loop(seen)
    with pytest.raises(AssertionError, match="differs by"):
        assert_same_as_the_loop(seen)


def test_illegal_is_what_the_field_says():
    """Legality seen from outside the metadata: discrete blocks have no paths, formulas hold for
    their own latents.
    """
    illegal = {(p.values[0].family.name, p.values[1], p.values[2].name) for p in LEGAL[False]}
    for name in ("pathwise()", "doubly_reparameterized()", "lax(critic)", "fitted_score_term()"):
        for place in ("bernoulli", "categorical", "sites", "mixed_blocks"):
            assert (FAMILIES[place].family.name, name, "elbo") in illegal
    for name in ("disarm()", "arms(4)", "rodeo()"):
        assert ("categorical(4)", name, "elbo") in illegal and (
            "diag_normal(2)",
            name,
            "elbo",
        ) in illegal
    for name in (
        "muprop()",
        "rebar()",
        "enumerated()",
        "unordered_set()",
        "measure_valued()",
        "closed_form_kl(score())",
    ):
        assert ("bernoulli(3)", name, "iwae") in illegal and (
            "bernoulli(3)",
            name,
            "elbo",
        ) not in illegal
    assert ("bernoulli(3)", "wake()", "elbo") in illegal


def test_the_closed_form_of_an_inner_block_is_taken_given_the_outer_draw():
    """At q = prior, with nothing but the prior in the log-joint, the bound is 0 in every draw;
    another chain is refused.
    """
    fixture, rule = FAMILIES["normal_chain"], vj.rules.closed_form_kl(vj.rules.pathwise())
    both = vj.rules.as_rule({"first": rule, "second": rule}, fixture.family)
    lam = jax.tree.map(lambda leaf: jnp.asarray(leaf[0], jnp.float32), fixture.lams)
    value, _ = vj.expect(
        jax.random.key(0),
        fixture.family,
        lam,
        lambda s: fixture.family.log_prob(lam, s.z) - s.log_q,
        rule=both,
        num_samples=5,
        prior=lam,
    )
    np.testing.assert_allclose(value, 0.0, atol=1e-5)
    with pytest.raises(
        ValueError, match="another chain than q.* State the prior in q's own family"
    ):
        both.check(fixture.family, elbo, 5, problems.normal_chain())


def test_nested_rules_are_unbiased_if_all_of_them_are():
    right, wrong = vj.rules.disarm(), vj.rules.straight_through()
    assert vj.rules.mixed({"h1": right, "h2": right}).requires.unbiased
    assert not vj.rules.mixed({"h1": right, "h2": wrong}).requires.unbiased


def test_the_readme_has_the_table_that_the_metadata_makes():
    readme = (pathlib.Path(__file__).parent.parent / "README.md").read_text()
    assert table() in readme, "run `python -m vijax.catalogue` and put its output into the README"


def test_densities_extend_to_relaxed_values():
    """What relaxed rules rest on: a linear extension between the hard values."""
    logits = jnp.array([0.3, -1.0])
    half = densities.bernoulli(jnp.array([0.5, 0.5]), logits)
    ends = densities.bernoulli(jnp.zeros(2), logits) + densities.bernoulli(jnp.ones(2), logits)
    np.testing.assert_allclose(half, 0.5 * ends, rtol=1e-6)
