"""The nest of expectations that an estimator takes, outermost first: settings spread over its
levels, and legality checked.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vijax.families import z_like
from vijax.objectives import elbo
from vijax.rules import Rules, as_rule
from vijax.rules.mixed import check_nesting, spread_samples
from vijax.shapes import with_terms
from vijax.types import Family, Guide, Model, Objective, Rule

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
) -> dict[str, Level]:
    """The nest, outermost first, with every setting spread over its levels and checked. See
    `vijax.estimator`.
    """
    _check_latents(model, guide, num_data)
    families = {
        name: family
        for name, family in (("w", guide.family_w), ("z", guide.family_z))
        if family is not None
    }
    names = tuple(families)
    if not isinstance(rules, Rule | Mapping):
        raise ValueError(
            f"rules={rules!r} is no rule: write a call, as in pathwise(), or a dict of rules."
        )
    priors = {"w": model.prior_w, "z": model.prior_z}
    if len(names) == 1:
        chosen = {names[0]: as_rule(rules, families[names[0]])}
        objectives: dict[str, Any] = {names[0]: objective}
        counts = {names[0]: num_samples}
    else:
        per_level = rules if isinstance(rules, Mapping) else dict.fromkeys(names, rules)
        _check_names("rules", per_level, names)
        chosen = {name: as_rule(per_level[name], families[name]) for name in names}
        objectives = (
            dict(objective) if isinstance(objective, Mapping) else {"w": objective, "z": elbo}
        )
        _check_names("objective", objectives, names)
        counts = spread_samples(chosen, num_samples)
        check_nesting(chosen, objectives["w"])
    for name in names:
        if not callable(objectives[name]):
            raise ValueError(
                f"objective for {name!r} is {objectives[name]!r}: give a function log_w [K] -> []."
            )
        prior = priors[name]
        chosen[name].check(
            families[name], objectives[name], counts[name], None if prior is None else prior.family
        )
    return {
        name: Level(
            families[name], chosen[name], objectives[name], counts[name], priors[name] is not None
        )
        for name in names
    }


def _check_names(what: str, given: Mapping[str, Any], names: tuple[str, ...]) -> None:
    if set(given) != set(names):
        raise ValueError(
            f"{what} has entries {sorted(given)}, but the guide has latents {sorted(names)}: give "
            f"one for each."
        )


def _check_latents(model: Model, guide: Guide, num_data: int) -> None:
    has = tuple(
        name
        for name, family in (("w", guide.family_w), ("z", guide.family_z))
        if family is not None
    )
    if set(model.latents) != set(has):
        raise ValueError(
            f"the model has latents {model.latents}, the guide {has}. Use guides.shared for a "
            f"global w, per_datapoint or "
            "amortized for a local z, hierarchical(w=..., z=...) for both."
        )
    if not isinstance(num_data, int) or num_data < 1:
        raise ValueError(
            f"num_data={num_data!r}: give the size of the whole data set, an int of at least 1."
        )
    if guide.num_data is not None and guide.num_data != num_data:
        raise ValueError(
            f"the guide's table has {guide.num_data} rows, but num_data={num_data}: they must be "
            f"equal."
        )
    if guide.family_w is not None:
        family_w = guide.family_w
        w = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), z_like(family_w))
        jax.eval_shape(
            lambda key: with_terms(model.log_prior(model.init(key), w), "log_prior"),
            jax.random.key(0),
        )
