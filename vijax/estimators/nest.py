"""The nest of expectations that an estimator takes, outermost first: settings spread over its
levels, and legality checked.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from vijax.families import z_like
from vijax.inference import Guide, Model
from vijax.objectives import as_objective, elbo
from vijax.roughness import roughness
from vijax.rules import Rules, as_rule
from vijax.rules.mixed import check_nesting, spread_samples
from vijax.shapes import total_and_terms
from vijax.supports import contains, describe, is_moving
from vijax.types import Family, Objective, Rule

Objectives = Objective | Mapping[str, Objective]
NumSamples = int | Mapping[str, Any]


class Level(NamedTuple):
    """One expectation of the nest: over the global w, or over a datum's z."""

    family: Family
    rule: Rule
    objective: Objective
    num_samples: Any
    uses_prior: bool


def nest(
    model: Model,
    guide: Guide,
    objective: Objectives,
    rules: Rules,
    num_samples: NumSamples,
    num_data: int,
    *,
    plain: bool,
) -> dict[str, Level]:
    """The nest, outermost first, with every setting spread over its levels and checked. See
    `vijax.estimator`; `plain`: is the KL's weight 1?
    """
    if not plain and "z" in model.latents and "z" not in model.priors:
        raise ValueError(
            "kl_weight: the model states no prior of its local latent, so the KL is not known "
            "apart from the rest. Give it one, as in latent_model(init, log_lik=..., "
            "prior=Prior(family, locate)), or multiply inside your log-joint."
        )
    _check_latents(model, guide, num_data)
    families, names = guide.families, tuple(guide.families)
    if not isinstance(rules, Rule | Mapping):
        raise ValueError(
            f"rules={rules!r} is no rule: write a call, as in pathwise(), or a dict of rules."
        )
    if len(names) == 1:
        chosen = {names[0]: as_rule(rules, families[names[0]])}
        objectives = {names[0]: as_objective(objective, num_samples)}
        counts: dict[str, Any] = {names[0]: num_samples}
    else:
        per_level = rules if isinstance(rules, Mapping) else dict.fromkeys(names, rules)
        _check_names("rules", per_level, names)
        chosen = {name: as_rule(per_level[name], families[name]) for name in names}
        given = objective if isinstance(objective, Mapping) else {"w": objective, "z": elbo}
        _check_names("objective", given, names)
        counts = spread_samples(chosen, num_samples)
        objectives = {name: as_objective(given[name], counts[name]) for name in names}
        check_nesting(chosen, objectives["w"])
    for name in names:
        prior = model.priors.get(name)
        stated = None if prior is None else prior.family
        chosen[name].check(families[name], objectives[name], counts[name], stated)
        _check_objective(objectives[name], counts[name])
    return {
        name: Level(
            family=families[name],
            rule=chosen[name],
            objective=objectives[name],
            num_samples=counts[name],
            uses_prior=name in model.priors,
        )
        for name in names
    }


def _check_objective(objective: Objective, num_samples: Any) -> None:
    """Refuse one with jumps: where they lie depends on q's parameters, through log q."""
    if isinstance(num_samples, int) and roughness(objective, num_samples) == "steps":
        raise ValueError(
            f"the objective {objective.name} jumps as a function of the log-weights, which no "
            "derivative in q's parameters sees. Write a continuous one; if this is wrong and it is "
            "smooth, say so: Objective(name, value, smooth=True)."
        )


def _check_names(what: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if set(given) != set(names):
        raise ValueError(
            f"{what} has entries {sorted(given)}, but the guide has latents {sorted(names)}: give "
            f"one for each."
        )


def _check_latents(model: Model, guide: Guide, num_data: int) -> None:
    has = tuple(guide.families)
    if set(model.latents) != set(has):
        raise ValueError(
            f"the model has latents {model.latents}, the guide {has}. Use guides.shared for a "
            "global w, per_datapoint or amortized for a local z, hierarchical(w=..., z=...) for "
            "both."
        )
    if not isinstance(num_data, int) or num_data < 1:
        raise ValueError(
            f"num_data={num_data!r}: give the size of the whole data set, an int of at least 1."
        )
    if guide.num_data is not None and guide.num_data != num_data:
        raise ValueError(
            f"the guide's table has {guide.num_data} rows, but num_data={num_data}: they must be "
            "equal."
        )
    for name, prior in model.priors.items():
        _check_supports(name, guide.families[name], prior.family)
    if "w" in guide.families:
        like = z_like(guide.families["w"])
        jax.eval_shape(  # w is traced: zeros need not lie in its support
            lambda key, w: total_and_terms(model.log_prior(model.init(key), w), "log_prior"),
            jax.random.key(0),
            like,
        )


def _check_supports(name: str, q: Family, prior: Family) -> None:
    """Refuse a q that puts mass where the prior has none: the bound is minus infinity there."""
    if is_moving(q.support) or contains(prior.support, q.support):
        return  # a moving support is refused by the rule, which says why
    raise ValueError(
        f"the guide's {q.name} for {name!r} lives on {describe(q.support)}, but the stated "
        f"prior {prior.name} on {describe(prior.support)}: where that has no density the bound "
        "is minus infinity. Give the guide a family on the prior's support, as in "
        "families.transformed(...) or families.over(...)."
    )
