"""What makes a (rule, family, objective, K) silently wrong, refused with what to write instead."""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from vijax.families import Blocks
from vijax.noise import Noise
from vijax.roughness import roughness
from vijax.supports import describe, is_moving
from vijax.types import Family, Objective, Requirements

_ROUGH = {"steps": "jumps", "kinks": "has a kink, so its derivative jumps"}
_SMOOTHER = {"steps": "a continuous one", "kinks": "pathwise() or score()"}


def check_requirements(
    name: str, requires: Requirements, family: Family, objective: Objective, num_samples: Any
) -> None:
    """Refuse what would be silently wrong: what, why, what to write instead."""

    def refuse(problem: str) -> NoReturn:
        advice = f" {requires.advice}" if requires.advice else ""
        raise ValueError(f"{name} on {family.name}: {problem}.{advice}")

    if not isinstance(num_samples, int) or isinstance(num_samples, bool) or num_samples < 1:
        raise ValueError(
            f"{name} on {family.name}: num_samples={num_samples!r}, but K is an int of at least 1."
        )
    if num_samples < objective.min_samples:
        refuse(
            f"num_samples={num_samples}, but the objective {objective.name} is defined for at "
            f"least {objective.min_samples}"
        )
    given = jax.ShapeDtypeStruct((num_samples,), jnp.result_type(float))
    shape = jax.eval_shape(objective.value, given).shape
    if shape != ():
        refuse(
            f"the objective returns shape {shape} for log_w [{num_samples}]; it must return one "
            "number"
        )
    if is_moving(family.support):
        refuse(
            f"its support {describe(family.support)} moves with its parameters, so the derivative "
            "of an expectation has a boundary term that no rule here carries. Use a family on a "
            "fixed support and transform inside the log-joint"
        )
    for kind in requires.needs:
        if family.traits.get(kind) is None:
            refuse(_refusal(kind) + _lacking(kind, family))
    if requires.any_of and all(family.traits.get(kind) is None for kind in requires.any_of):
        refuse("; and ".join(_refusal(kind) for kind in requires.any_of))
    if requires.linear is True and not objective.linear:
        refuse(
            f"the objective {objective.name} is not linear in the log-weights, so this rule would "
            "estimate the gradient of another bound"
        )
    if requires.linear is False and objective.linear:
        refuse(
            f"the objective {objective.name} is linear in the log-weights, where this rule has "
            "nothing to estimate"
        )
    if num_samples < requires.min_samples:
        refuse(f"num_samples={num_samples}, but it needs at least {requires.min_samples}")
    rough = roughness(objective, num_samples) if requires.smooth or requires.in_z else ""
    if rough == "steps" or (rough and requires.smooth):
        raise ValueError(
            f"{name} on {family.name}: the objective {objective.name} {_ROUGH[rough]}, which no "
            f"derivative sees: the gradient would be biased. Write {_SMOOTHER[rough]}. If this is "
            "wrong and it is smooth, say so: Objective(name, value, smooth=True)."
        )


def check_noise(
    name: str,
    requires: Requirements,
    noise: Noise,
    family: Family,
    objective: Objective,
    num_samples: int,
) -> None:
    """Refuse noise that the family cannot take, or that depends between samples where the rule's
    derivation forbids it.
    """
    noise.check(family, num_samples)
    if not (noise.independent or requires.samplewise or objective.linear):
        raise ValueError(
            f"{name}: with a non-linear objective its derivation needs independent samples, which "
            f"{noise.name} does not draw. Write pathwise() for it, noise=iid() or objective=elbo."
        )


def _refusal(kind: type) -> str:
    return getattr(kind, "refusal", f"it has no trait {kind.__name__}")


def _lacking(kind: type, family: Family) -> str:
    """Which blocks of the family are to blame."""
    blocks = family.traits.get(Blocks)
    if blocks is None:
        return ""
    names = [name for name, block in blocks.families.items() if block.traits.get(kind) is None]
    if not names:
        return f" (each block has {kind.__name__}, but not all of them together)"
    return f" (blocks {', '.join(map(repr, names))})"
