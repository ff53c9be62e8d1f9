"""Does a gradient rule keep what it promises? One call."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vijax.families import Density
from vijax.objectives import as_objective, elbo, iwae
from vijax.testing.averages import Average, assert_agree, assert_close, in_float
from vijax.testing.families import waves
from vijax.testing.toys import TOYS, Seen, Toy, Weigh, bound, look_at, measured_answer
from vijax.types import Family, Objective, Rule, Scalar

NUM_LOOPED = 2
NUM_PROBED = 2
BOUND = "log p - log q"
RARE = 1.0 / (1.0 + math.exp(12.0))
BIASED = (
    "The rule says unbiased=True. If it is right for the bound but not here, let its check refuse "
    "this case; if it is biased everywhere, say unbiased=False"
)
WEIGHTS: Mapping[str, Weigh] = {
    "log p - 0.5 log q": lambda log_p, log_q: log_p - 0.5 * log_q,
    "log p alone": lambda log_p, log_q: log_p,
    "0.2 (log p - log q)^2": lambda log_p, log_q: 0.2 * jnp.square(log_p - log_q),
}
"""Integrands other than a bound's: a rule is right on them, or refuses them."""


def largest(log_w: jax.Array) -> Scalar:
    """An objective whose derivative jumps."""
    return jnp.max(log_w)


def check_rule(
    rule: Rule,
    families: Mapping[str, Family | Toy] | None = None,
    objective: Objective | None = None,
    *,
    num_samples: int | None = None,
    num_draws: int = 4000,
    max_z: float = 5.0,
) -> dict[str, float | str]:
    """Everything that a rule promises, on small expectations with exact answers, wherever it is
    legal: value and gradient in lam and theta have the right mean, unless it says that it is
    biased; a vmap is a loop. On the first two, integrands that are no bound's, and an objective
    whose derivative jumps, must come out right too, or be refused with a ValueError.

    Args:
      families: {name: family, or `Toy`}; default `testing.TOYS`. Of a family alone the answer is
        measured by the plain score function, which needs its density.
      objective: default the ELBO and IWAE, those that are legal.
      num_samples: K; default 2, or what rule and objective need.
      num_draws: S.
      max_z: what counts as different, in standard errors.

    Returns:
      {case: largest difference in standard errors, or why the case was refused}.

    Raises:
      AssertionError: where the rule is wrong, by how much; or that it is legal nowhere.
    """
    given = TOYS if families is None else families
    toys = {name: toy if isinstance(toy, Toy) else toy_of(toy) for name, toy in given.items()}
    plain = [elbo, iwae] if objective is None else [as_objective(objective, num_samples or 2)]
    found: dict[str, float | str] = {}
    probed = 0
    with in_float(64):
        for place, toy in toys.items():
            legal = [o for o in plain if _refusal(rule, toy, o, num_samples) is None]
            if not legal:
                found[place] = f"refused: {_refusal(rule, toy, plain[0], num_samples)}"
                continue
            plan: list[tuple[Objective, str, bool]] = [(o, BOUND, True) for o in legal]
            if probed < NUM_PROBED and rule.requires.unbiased:
                plan += [(as_objective(largest, 2), BOUND, False)]
                plan += [(legal[0], label, False) for label in WEIGHTS]
                probed += 1
            for chosen, label, ours in plan:
                name = f"{rule.name} on {place} ({toy.family.name}), {chosen.name} of {label}"
                count = _count(rule, chosen, num_samples)
                found[name] = _case(
                    name, rule, toy, chosen, count, label, num_draws, max_z, ours=ours
                )
    assert any(not str(seen).startswith("refused") for seen in found.values()), (
        f"{rule.name} is legal on none of {list(toys)}: give families of its own."
    )
    return found


def _count(rule: Rule, objective: Objective, num_samples: int | None) -> int:
    return num_samples or max(2, rule.requires.min_samples, objective.min_samples)


def _refusal(rule: Rule, toy: Toy, objective: Objective, num_samples: int | None) -> str | None:
    try:
        rule.check(toy.family, objective, _count(rule, objective, num_samples), toy.family)
    except ValueError as refused:
        return str(refused)
    return None


def toy_of(family: Family) -> Toy:
    """An expectation of bounded waves under a family, without an exact answer."""
    random = np.random.default_rng(0)
    start = family.init(jax.random.key(1))
    lams = jax.tree.map(lambda leaf: leaf[None] + 0.4 * random.normal(size=(2, *leaf.shape)), start)
    return Toy(family, lams, np.ones(()), lambda theta, z: theta * waves(z), None)


def _case(
    name: str,
    rule: Rule,
    toy: Toy,
    objective: Objective,
    num_samples: int,
    label: str,
    num_draws: int,
    max_z: float,
    *,
    ours: bool,
) -> float | str:
    """One case; `ours`: is it what the rule is for, so that only `check` may refuse it?"""
    settings: dict[str, Any] = {"num_draws": num_draws, "weigh": WEIGHTS.get(label, bound)}
    if not ours and (refused := _refusal(rule, toy, objective, num_samples)) is not None:
        return f"refused: {refused}"
    try:
        seen = look_at(
            toy, rule, objective, num_samples, num_looped=NUM_LOOPED if ours else 0, **settings
        )
    except ValueError as refused:
        if ours:
            raise
        return f"refused: {refused}"
    for leaf in jax.tree.leaves(seen.draws):
        assert np.all(np.isfinite(leaf)), f"{name}: a value or gradient is not finite."
    if seen.looped is not None:
        assert_same_as_the_loop(seen, tolerance=1e-9, what=name)
    if not rule.requires.unbiased:
        return "finite; it says that it is biased"
    if seen.exact is None:
        if toy.family.traits.get(Density) is None:
            return "finite; the family has no density to compare with"
        answer = average_of(measured_answer(toy, objective, num_samples, **settings))
    else:
        answer = Average(seen.exact, jax.tree.map(np.zeros_like, seen.exact))
    _, z = assert_agree(
        average_of(seen.draws),
        answer,
        what=f"{name}: biased",
        meaning=f"{BIASED}.",
        max_z=max_z,
        rounding=2e-6,
    )
    return z


def average_of(draws: Any, scale: float = 0.0) -> Average:
    """Of draws [P, S, ...]. The error's floor is that of an event which the draws may never have
    seen: probability sigma(-12), size `scale`.
    """
    first = jax.tree.leaves(draws)[0]
    floor = scale * (RARE / first.shape[1]) ** 0.5
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), draws)
    errors = jax.tree.map(
        lambda leaf: leaf.std(axis=1, ddof=1) / leaf.shape[1] ** 0.5 + floor, wide
    )
    return Average(jax.tree.map(lambda leaf: leaf.mean(axis=1), wide), errors)


def assert_same_as_the_loop(seen: Seen, *, tolerance: float = 1e-4, what: str = "") -> None:
    """jit(vmap(grad)) is the loop, up to rounding."""
    few = jax.tree.leaves(seen.looped)[0].shape[1]
    draws = jax.tree.map(lambda leaf: leaf[:, :few], seen.draws)
    what = f"{what}: vmap of the gradient against a loop"
    assert_close(draws, seen.looped, tolerance=tolerance, what=what)
