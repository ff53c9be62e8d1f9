"""Different rules for different blocks of a product family: surrogates, nested."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vijax.families import Blocks, need
from vijax.families.traits import Kl
from vijax.objectives import elbo
from vijax.rules.base import rule
from vijax.types import (
    Aux,
    Family,
    Integrand,
    Key,
    Objective,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
)

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

    def check(family: Family, objective: Objective, num_samples: Any, prior: Family | None) -> None:
        check_blocks(rules, family)
        check_nesting(rules, objective)
        counts, blocks = spread_samples(rules, num_samples), need(family, Blocks)
        stated = None if prior is None else prior.traits.get(Blocks)
        priors = {} if stated is None else stated.families
        for depth, (name, part) in enumerate(rules.items()):
            closed = Kl in part.requires.needs
            if depth and blocks.ordered and closed and prior is not None and prior != family:
                raise ValueError(
                    f"{part.name} for {name!r}: the prior is another chain than q, {family.name}, "
                    f"so where its {name!r} lies given the blocks before is unknown here. State "
                    f"the prior in q's own family, or write {name!r} a rule without closed-form "
                    "KL, such as pathwise() or score()."
                )
            inner = objective if depth == 0 else elbo
            part.check(blocks.families[name], inner, counts[name], priors.get(name))

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        counts, blocks = spread_samples(rules, setting.num_samples), need(q.family, Blocks)

        def nest(depth: int, key: Key, outer: Sample, objective: Objective) -> tuple[Scalar, Aux]:
            name = names[depth]

            def inside(sample: Sample) -> Any:
                z = {**outer.z, name: sample.z}
                log_q = sample.log_q if depth == 0 else outer.log_q + sample.log_q
                joint = Sample(z, log_q, sample.key)
                if depth + 1 == len(names):
                    return integrand(joint)
                return nest(depth + 1, sample.key, joint, elbo)

            prior = setting.prior
            own = setting._replace(
                objective=objective,
                num_samples=counts[name],
                control=setting.control[name] if setting.control else (),
                state=setting.state[name] if setting.state else (),
                prior=None if prior is None else blocks.lam(name, prior, outer.z),
            )
            part = Q(blocks.families[name], blocks.lam(name, q.lam, outer.z))
            return rules[name].surrogate(key, part, inside, own)

        value, aux = nest(0, key, Sample({}, jnp.zeros(()), key), setting.objective)
        stats = {}
        for name in names:
            stats[name], aux = aux.stats, aux.inner
        return value, Aux(stats, aux)

    def init(key: Key) -> Any:
        split = zip(rules.items(), jax.random.split(key, len(rules)), strict=True)
        return {name: part.init(k) for (name, part), k in split}

    return rule(
        f"mixed({', '.join(f'{name}={part.name}' for name, part in rules.items())})",
        Requirements(
            samplewise=all(part.requires.samplewise for part in rules.values()),
            twice=all(part.requires.twice for part in rules.values()),
            affine=any(part.requires.affine for part in rules.values()),
            in_z={name: part.requires.in_z for name, part in rules.items()},
            unbiased=all(part.requires.unbiased for part in rules.values()),
        ),
        surrogate,
        check=check,
        per_block=True,
        init=init,
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
    blocks = need(family, Blocks).families
    return mixed({name: as_rule(part, blocks[name]) for name, part in rules.items()})


def check_blocks(rules: Mapping[str, object], family: Family) -> None:
    """Refuse a dict of rules whose names are not the family's blocks."""
    found = family.traits.get(Blocks)
    names = tuple(found.families) if found else ()
    if set(rules) != set(names):
        has = f"blocks {sorted(names)}" if names else "no named blocks"
        raise ValueError(
            f"rules has entries {sorted(rules)}, but {family.name} has {has}. Give one rule for "
            "the whole latent, or one for each block of a families.product or chain."
        )
    if found and found.ordered and tuple(rules) != names:
        raise ValueError(
            f"rules has entries {tuple(rules)}, but {family.name} draws them in the order {names}: "
            "list them so, the first is outermost."
        )


def check_nesting(rules: Mapping[str, Rule], objective: Objective) -> None:
    """Refuse rules inside a non-linear objective whose derivative is not the chain rule of each
    sample.
    """
    _, *inner = rules.items()
    for name, part in inner:
        if not objective.linear and not part.requires.samplewise:
            raise ValueError(
                f"{part.name} for {name!r} sits inside a non-linear objective, where its surrogate "
                "would estimate the gradient of another bound. List it first (outermost), write "
                "pathwise() for it, or use objectives.elbo."
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
