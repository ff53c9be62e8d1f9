"""The registry is complete: what is public and can be put into a battery is in one. And the battery
of objectives, which has no file of its own.
"""

import inspect

import cases
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from matrix import assert_right, look
from registry import FAMILIES, MODELS, OBJECTIVES, RULES

import vijax as vj
from vijax import families, models, objectives, rules
from vijax.objectives import as_objective
from vijax.rules import pathwise, score

# What each module's makers return, and those that make something of what a user gives.
MAKERS = {
    families: (vj.Family, {"family", "over", "product", "chain", "transformed", "with_traits"}),
    rules: (vj.Rule, {"as_rule", "mixed", "rule"}),
    objectives: (vj.Objective, {"as_objective"}),
    models: (vj.Model, {"bayes_model", "hierarchical_model", "latent_model"}),
}
LISTED = {
    families: {fixture.family.name for fixture in FAMILIES.values()},
    rules: RULES,
    objectives: OBJECTIVES,
    models: MODELS,
}


def makers(module, kind):
    """Names of a module's public functions that return one of a kind, and of those that it has."""
    names = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
    found = set()
    for name in names:
        thing = getattr(module, name)
        if inspect.isfunction(thing) and thing.__module__.startswith(module.__name__):
            returned = inspect.signature(thing).return_annotation
            assert returned is not inspect.Signature.empty, f"{name}: say what it returns"
            found |= {name} if returned is kind else set()
        found |= {name} if isinstance(thing, kind) else set()
    return found


@pytest.mark.parametrize("module", MAKERS, ids=lambda module: module.__name__)
def test_every_public_maker_is_registered(module):
    kind, of_ones_own = MAKERS[module]
    listed = {name.split("(")[0].split(" ")[0] for name in LISTED[module]}
    there = makers(module, kind)
    missing = there - of_ones_own - listed
    assert not missing, f"no battery has {sorted(missing)}: give each an entry, see registry.py"
    assert not listed - there, "registered, but not public"


def test_a_maker_without_an_entry_is_found(monkeypatch):
    def stray() -> vj.Rule:
        return pathwise()

    stray.__module__ = "vijax.rules.stray"
    monkeypatch.setattr(rules, "stray", stray, raising=False)
    monkeypatch.setattr(rules, "__all__", [*rules.__all__, "stray"])
    with pytest.raises(AssertionError, match=r"no battery has \['stray'\]"):
        test_every_public_maker_is_registered(rules)


LOG_W = np.array([0.3, -1.2, 2.0, 0.7])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_is_symmetric_smooth_and_what_its_record_says(name, x64):
    objective, steps = OBJECTIVES[name], 1e-5 * np.concatenate([np.eye(4), -np.eye(4)])
    log_w = jnp.asarray(np.concatenate([[LOG_W, LOG_W[::-1]], LOG_W + steps]))
    values, slopes = jax.device_get(jax.jit(jax.vmap(jax.value_and_grad(objective.value)))(log_w))
    np.testing.assert_allclose(values[1], values[0], rtol=1e-13)
    np.testing.assert_allclose(slopes[1, ::-1], slopes[0], rtol=1e-12)
    differences = (values[2:6] - values[6:]) / 2e-5
    np.testing.assert_allclose(slopes[0], differences, rtol=1e-6, atol=1e-9)
    assert as_objective(objective) is objective
    assert as_objective(lambda log_w: objective.value(log_w)).linear is objective.linear
    assert jnp.isfinite(objective.value(log_w[0, : objective.min_samples]))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_is_refused_where_it_has_no_value_or_would_lower_the_evidence(name):
    objective, problem = OBJECTIVES[name], cases.cached_problem(problems.normal)

    def build(num_samples, **settings):
        given = {"objective": objective, "rules": pathwise(), "num_data": problems.N, **settings}
        return vj.estimator(problem.model, problem.guide, num_samples=num_samples, **given)

    if objective.min_samples > 1:
        with pytest.raises(ValueError, match=f"defined for at least {objective.min_samples}"):
            build(1, learn_theta=False)
    if objective.moves_theta:
        assert build(objective.min_samples).num_data == problems.N
        return
    with pytest.raises(ValueError, match="bounds log p\\(x\\) from above.*learn_theta=False"):
        build(2)
    assert build(2, learn_theta=False).num_data == problems.N


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name.split("(")[0] not in ("elbo", "iwae", "renyi")]
)
def test_the_score_rule_is_unbiased_for_objectives_beside_the_matrix(name):
    seen = look(FAMILIES["sites"], score(), OBJECTIVES[name])
    assert_right(seen.draws, seen.exact)
