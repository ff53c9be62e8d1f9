"""Different rules for different blocks of a product family: surrogates, nested."""

from collections.abc import Mapping
from typing import cast

import jax

from vijax.objectives import elbo, is_linear
from vijax.rules.base import rule
from vijax.types import Aux, Family, Key, Objective, Requirements, Rule, Sample

Rules = Rule | Mapping[str, "Rules"]
"""A rule, or a dict of them per block, nested as blocks are: read like `vmap`'s `in_axes`."""


def mixed(rules: Mapping[str, Rule]) -> Rule:
    """One rule per block of a `product` or `chain` family; the first is outermost, the others are
    differentiated inside it.

    Each outer sample is followed through all inner rules. An int `num_samples` = K belongs to the
    outermost rule that draws, so there are K joint samples; a dict gives each block its own number.
    Inner expectations are linear (ELBO); a non-linear objective applies to the outermost rule and
    admits only rules inside it that are plain chain rules per sample (`pathwise`), because the
    objective of an average is not the average of the objective.
    """
    names = tuple(rules)

    def samples_for(num_samples) -> dict[str, int]:
        return spread_samples(rules, num_samples)

    def check(family: Family, objective: Objective, num_samples, prior: Family | None) -> None:
        check_blocks(rules, family)
        check_nesting(rules, objective)
        counts, prior_blocks = (
            samples_for(num_samples),
            prior.blocks if prior is not None and prior.blocks else {},
        )
        for depth, (name, part) in enumerate(rules.items()):
            if (
                depth
                and family.ordered
                and part.requires.kl
                and prior is not None
                and prior != family
            ):
                raise ValueError(
                    f"{part.name} for {name!r}: the prior is another chain than q, {family.name}, "
                    f"so where its {name!r} lies "
                    f"given the blocks before is unknown here. State the prior in q's own family, "
                    f"or write {name!r} a rule "
                    "without closed-form KL, such as pathwise() or score()."
                )
            part.check(
                _block(family, name),
                objective if depth == 0 else elbo,
                counts[name],
                prior_blocks.get(name),
            )

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        counts = samples_for(num_samples)

        def nest(depth: int, key: Key, outer: Sample, objective: Objective):
            name = names[depth]

            def inside(sample: Sample):
                z = {**outer.z, name: sample.z}
                joint = Sample(
                    z, sample.log_q if depth == 0 else outer.log_q + sample.log_q, sample.key
                )
                return (
                    integrand(joint)
                    if depth + 1 == len(names)
                    else nest(depth + 1, sample.key, joint, elbo)
                )

            return rules[name].surrogate(
                key,
                _block(family, name),
                family.block_lam(name, lam, outer.z),
                inside,
                objective=objective,
                num_samples=counts[name],
                control=control[name] if control else (),
                state=state[name] if state else (),
                x=x,
                prior=None if prior is None else family.block_lam(name, prior, outer.z),
            )

        value, aux = nest(0, key, Sample({}, cast(jax.Array, 0.0), key), objective)
        stats = {}
        for name in names:
            stats[name], aux = aux.stats, aux.inner
        return value, Aux(stats, aux)

    return rule(
        f"mixed({', '.join(f'{name}={part.name}' for name, part in rules.items())})",
        Requirements(
            samplewise=all(part.requires.samplewise for part in rules.values()),
            unbiased=all(part.requires.unbiased for part in rules.values()),
        ),
        surrogate,
        check=check,
        init=lambda key: {
            n: r.init(k)
            for (n, r), k in zip(rules.items(), jax.random.split(key, len(rules)), strict=True)
        },
        init_state=lambda: {name: part.init_state() for name, part in rules.items()},
        update=lambda state, stats: {
            name: part.update(state[name], stats[name]) for name, part in rules.items()
        },
    )


def as_rule(rules: Rules, family: Family) -> Rule:
    """One rule for the whole family out of a rule or a (nested) dict of them per block."""
    if isinstance(rules, Rule):
        return rules
    check_blocks(rules, family)
    return mixed({name: as_rule(part, _block(family, name)) for name, part in rules.items()})


def check_blocks(rules: Mapping[str, object], family: Family) -> None:
    """Refuse a dict of rules whose names are not the family's blocks."""
    blocks = set(family.blocks or ())
    if set(rules) != blocks:
        has = f"blocks {sorted(blocks)}" if blocks else "no named blocks"
        raise ValueError(
            f"rules has entries {sorted(rules)}, but {family.name} has {has}. Give one rule for "
            f"the whole latent, or one for "
            "each block of a families.product or chain."
        )
    if family.ordered and tuple(rules) != (order := tuple(family.blocks or ())):
        raise ValueError(
            f"rules has entries {tuple(rules)}, but {family.name} draws them in the order "
            f"{order}: list them so, "
            "the first is outermost."
        )


def check_nesting(rules: Mapping[str, Rule], objective: Objective) -> None:
    """Refuse rules inside a non-linear objective whose derivative is not the chain rule of each
    sample.
    """
    _, *inner = rules.items()
    for name, part in inner:
        if not is_linear(objective) and not part.requires.samplewise:
            raise ValueError(
                f"{part.name} for {name!r} sits inside a non-linear objective, where its "
                f"surrogate would estimate the gradient "
                "of another bound. List it first (outermost), write pathwise() for it, or use "
                "objectives.elbo."
            )


def spread_samples(
    rules: Mapping[str, Rule], num_samples: int | Mapping[str, int]
) -> dict[str, int]:
    """Samples per block: a mapping as it is; an int goes to the first rule that draws, 1 to the
    others.
    """
    if isinstance(num_samples, Mapping):
        if set(num_samples) != set(rules):
            raise ValueError(
                f"num_samples has entries {sorted(num_samples)}, but the rules are for "
                f"{sorted(rules)}."
            )
        return dict(num_samples)
    first = next((name for name, rule in rules.items() if rule.requires.draws), None)
    return {name: num_samples if name == first else 1 for name in rules}


def _block(family: Family, name: str) -> Family:
    return cast(Mapping[str, Family], family.blocks)[name]
