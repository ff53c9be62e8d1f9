"""The matrix that the metadata generates, as code: which triples are legal, what each draws, what
it must equal.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import FAST_COMPILE, assert_close
from exact import expectation, quadrature
from registry import FAMILIES, RULES

import vijax as vj
from vijax import rules
from vijax.catalogue import OBJECTIVE_OF
from vijax.families import Blocks, log_probs, need
from vijax.objectives import elbo, iwae, renyi

NUM_DRAWS = 4000
NUM_SAMPLES = 2
NUM_LOOPED = 2
RARE = float(jax.nn.sigmoid(-12.0))
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


def prior_of(fixture):
    """A fixed prior in the family, which every integrand contains."""
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * leaf[0] - 0.1), fixture.lams)


def log_joint(fixture, theta, z):
    return fixture.f(theta, z) + fixture.family.log_prob(prior_of(fixture), z)


def exact_bound(fixture, objective):
    def bound(lam, theta):
        z, weights = quadrature(fixture.family, lam, fixture.nodes)
        log_p = jax.vmap(lambda z: log_joint(fixture, theta, z))(z)
        log_w = log_p - log_probs(fixture.family, lam, z)
        return expectation(objective, NUM_SAMPLES, weights, log_w)

    return bound


def gradients(fixture, rule, objective, *, loop=False):
    """Draws [P, S, ...] of the gradient in (lam, theta), those of the first keys again one by one
    [P, 2, ...] (None without `loop`, which compiles the rule once more), and the exact gradient [P,
    ...].
    """
    control, state = rule.init(jax.random.key(1)), rule.init_state()
    theta = jnp.asarray(fixture.theta, jnp.result_type(float))
    lams = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), fixture.lams)

    def one(key, lam):
        def bound(lam, theta):
            return vj.expect(
                key,
                fixture.family,
                lam,
                lambda s: log_joint(fixture, theta, s.z) - s.log_q,
                rule=rule,
                objective=objective,
                num_samples=samples_of(fixture, objective),
                control=control,
                state=state,
                x=jnp.zeros(()),
                prior=prior_of(fixture),
            )[0]

        return jax.grad(bound, argnums=(0, 1))(lam, theta)

    def everything(lams):
        keys = jax.random.split(jax.random.key(2), NUM_DRAWS)
        exact = jax.vmap(
            lambda lam: jax.grad(exact_bound(fixture, objective), argnums=(0, 1))(lam, theta)
        )(lams)
        draws = jax.lax.map(lambda lam: jax.vmap(one, (0, None))(keys, lam), lams)
        looped = (
            jax.lax.map(lambda lam: jax.lax.map(lambda key: one(key, lam), keys[:NUM_LOOPED]), lams)
            if loop
            else None
        )
        return draws, looped, exact

    return jax.device_get(jax.jit(everything).lower(lams).compile(FAST_COMPILE)(lams))


def worst_z(draws, exact, scale):
    """Largest |mean - exact| in standard errors. Their floor is that of an event which the draws
    may never have seen: probability sigma(-12), size `scale`.
    """
    worst = 0.0
    for leaf, answer in zip(jax.tree.leaves(draws), jax.tree.leaves(exact), strict=True):
        leaf, answer = np.asarray(leaf, np.float64), np.asarray(answer, np.float64)
        assert np.all(np.isfinite(leaf))
        floor = scale * (RARE / NUM_DRAWS) ** 0.5
        error = np.abs(leaf.mean(axis=1) - answer) / (
            leaf.std(axis=1, ddof=1) / NUM_DRAWS**0.5 + floor
        )
        worst = max(worst, float(error.max(initial=0.0)))
    return worst


def assert_same_as_the_loop(draws, looped):
    """jit(vmap(grad)) is the loop, up to the rounding of float32."""
    assert_close(jax.tree.map(lambda leaf: leaf[:, :NUM_LOOPED], draws), looped, tolerance=1e-4)


def check_triple(fixture, name, objective):
    rule = make_rule(fixture, name)
    loop = is_looped(fixture, name, objective)
    draws, looped, exact = gradients(fixture, rule, objective, loop=loop)
    for leaf in jax.tree.leaves(draws):
        assert np.all(np.isfinite(leaf))
    if loop:
        assert_same_as_the_loop(draws, looped)
    if rule.requires.unbiased:
        assert worst_z(draws, exact, 10.0) < 5.0
    elif name not in RELAXED_SAMPLES:
        # Theta is right even so: the samples are draws of q
        assert worst_z(draws[1], exact[1], 10.0) < 5.0
