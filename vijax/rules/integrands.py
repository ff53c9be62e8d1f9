"""What a rule's derivation assumes of the function that it is given, read off the function's
program.
"""

import warnings

import jax
import jax.numpy as jnp

from vijax.dependence import STEP, Program, has_constant_slope, trace, ways
from vijax.families import z_like
from vijax.types import Family, Integrand, PyTree, Requirements, Sample, Scalar


class StepWarning(UserWarning):
    """A function that a rule differentiates in the latent may have steps there."""


def check_integrand(
    name: str, requires: Requirements, family: Family, integrand: Integrand
) -> None:
    """Refuse an integrand that the rule's derivation does not cover; its program tells."""
    z, log_q = z_like(family), jax.ShapeDtypeStruct((), jnp.result_type(float))

    def total(log_q: Scalar, z: PyTree) -> Scalar:
        value = integrand(Sample(z, log_q, jax.random.key(0)))
        return value[0] if isinstance(value, tuple) else value

    if requires.affine and not has_constant_slope(total, log_q, z):
        raise ValueError(
            f"{name} on {family.name}: its derivation holds for an integrand that is affine in "
            "sample.log_q, with the same slope everywhere, such as log_joint - log_q. Put what is "
            "done with the log-weight into the objective, as in expect(..., lambda s: "
            "log_joint(s.z) - s.log_q, objective=lambda log_w: jnp.mean(f(log_w))), or write "
            "pathwise() or enumerated(), which take any."
        )
    if any(jax.tree.leaves(requires.in_z)):
        what = f"the integrand over {family.name}"
        check_steps(name, what, trace(total, log_q, z), (False, requires.in_z))


def check_steps(name: str, what: str, program: Program, on: tuple) -> None:
    """Refuse a function that depends on the arguments that `on` says through steps alone; warn
    where there are steps among other things.

    Args:
      name: of the rule that differentiates it.
      on: a tree of bools, a prefix of the program's arguments.
    """
    found = ways(program, on)
    advice = "write score() or, for few states, enumerated() or local_expectation() for that latent"
    if found == {STEP}:
        raise ValueError(
            f"{name} differentiates {what} in the latent, but its value depends on that through "
            "rounding, an index or a comparison alone, so the derivative is zero everywhere: "
            f"{advice}."
        )
    if STEP in found:
        warnings.warn(
            f"{name} differentiates {what} in the latent, where it is rounded, used as an index or "
            f"compared: a jump there is missing from the gradient. If it jumps, {advice}. If it is "
            "continuous all the same (a spline), nothing is lost: "
            "warnings.filterwarnings('ignore', category=vijax.StepWarning).",
            StepWarning,
            stacklevel=2,
        )
