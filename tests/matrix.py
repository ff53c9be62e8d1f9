"""The matrix that the metadata generates, as code: which triples are legal, what each draws, what
it must equal.
"""

import jax
import numpy as np
import pytest
from registry import FAMILIES, RULES

from vijax import rules
from vijax.catalogue import OBJECTIVE_OF
from vijax.families import Blocks, need
from vijax.objectives import elbo, iwae, renyi
from vijax.testing import Toy, assert_agree, exactly
from vijax.testing.rules import assert_same_as_the_loop, average_of
from vijax.testing.toys import look_at

NUM_DRAWS = 4000
NUM_SAMPLES = 2
NUM_LOOPED = 2
OBJECTIVES = {"elbo": elbo, "iwae": iwae}
OTHER_OBJECTIVES = {"renyi": renyi(0.5)}
PLACES = {name: fixture for name, fixture in FAMILIES.items() if fixture.in_matrix}

# What of the matrix every run covers: these latents for the ELBO, those for any objective, and
# single triples of others.
SHORT = ("bernoulli", "categorical", "normal", "mixed_blocks")
SHORT_ANY_OBJECTIVE = ("bernoulli", "normal")
SHORT_RULES = {
    "gamma": ("pathwise()", "generalized_reparameterization()", "measure_valued()"),
    "bernoulli_chain_per_block": ("score()", "disarm()"),
}
RELAXED_SAMPLES = ("gumbel_softmax(0.5)", "importance_without_replacement(normalized=True)")


def make_rule(fixture, name):
    """The rule for the whole latent, or for every block of it."""
    if not fixture.per_block:
        return RULES[name](fixture.family)
    blocks = need(fixture.family, Blocks).families
    return rules.as_rule(
        {block: RULES[name](part) for block, part in blocks.items()}, fixture.family
    )


def samples_of(fixture, objective):
    """K; nested rules have theirs each, unless the objective is of joint samples."""
    if fixture.per_block and objective.linear:
        return dict.fromkeys(need(fixture.family, Blocks).families, NUM_SAMPLES)
    return NUM_SAMPLES


def is_long(place, name, label) -> bool:
    if place in SHORT:
        return label != "elbo" and place not in SHORT_ANY_OBJECTIVE
    return label != "elbo" or name not in SHORT_RULES.get(place, ())


def is_looped(fixture, name, objective) -> bool:
    """Is the triple compared with a loop? Every rule in every run on its first family, in the long
    sweep on the others too; for the ELBO, or for its own objective where the ELBO is refused.
    """
    if not objective.linear and is_legal(fixture, name, elbo):
        return False
    place = next(key for key, other in PLACES.items() if other is fixture)
    home = next(key for key, other in PLACES.items() if is_legal(other, name, objective))
    return place == home or place not in SHORT


def triples(objectives):
    for place, fixture in PLACES.items():
        for name in RULES:
            if name in fixture.infinite_variance:
                continue
            own = OBJECTIVE_OF.get(name)
            known = objectives if own is None else {own.name: own}
            for label, objective in known.items():
                marks = [pytest.mark.slow] if is_long(place, name, label) else []
                yield pytest.param(
                    fixture, name, objective, id=f"{place}-{name}-{label}", marks=marks
                )


def is_legal(fixture, name, objective) -> bool:
    try:
        make_rule(fixture, name).check(
            fixture.family, objective, samples_of(fixture, objective), fixture.family
        )
    except ValueError:
        return False
    return True


def by_legality(objectives):
    """{True: legal triples, False: the others}."""
    sorted_out = {True: [], False: []}
    for param in triples(objectives):
        sorted_out[is_legal(*param.values)].append(param)
    return sorted_out


def look(fixture, rule, objective, *, loop=False):
    """Draws of value and gradient in (lam, theta) at every point of the fixture, those of the first
    keys again one by one, and the exact answer.
    """
    return look_at(
        Toy(fixture.family, fixture.lams, fixture.theta, fixture.f, fixture.nodes),
        rule,
        objective,
        samples_of(fixture, objective),
        num_draws=NUM_DRAWS,
        num_looped=NUM_LOOPED if loop else 0,
    )


def assert_right(draws, exact):
    """Within 5 standard errors, at edge points too."""
    assert_agree(average_of(draws, scale=10.0), exactly(exact))


def check_triple(fixture, name, objective):
    rule = make_rule(fixture, name)
    loop = is_looped(fixture, name, objective)
    seen = look(fixture, rule, objective, loop=loop)
    for leaf in jax.tree.leaves(seen.draws):
        assert np.all(np.isfinite(leaf))
    if loop:
        assert_same_as_the_loop(seen)
    if rule.requires.unbiased:
        assert_right(seen.draws, seen.exact)
    elif name not in RELAXED_SAMPLES:
        # Theta is right even so: the samples are draws of q
        assert_right(seen.draws[1][1], seen.exact[1][1])
