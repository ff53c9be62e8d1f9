"""What an E-step can do with one datum's q: the exact posterior, or steps inside a family."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax.baselines import none
from vijax.families import (
    Blocks,
    CategoricalSites,
    FiniteSupport,
    Natural,
    NormalMoments,
    Reparameterized,
    lam_like,
    need,
)
from vijax.objectives import elbo
from vijax.rules import Rules, as_rule, enumerated, pathwise, quadratic_control, score
from vijax.types import Array, Family, Integrand, Key, PyTree, Q, Sample, Setting

EStep = Callable[[Key, PyTree, Integrand], PyTree]
"""(key, lam, integrand at the datum) -> lam, as `Guide.refine`."""


def natural_ascent(family: Family, *, rate: float = 1.0, num_steps: int = 1) -> EStep:
    """E-steps of variational EM: natural-gradient steps on the datum's ELBO inside q's family, from
    where q stands.

    Exact gradients for finite supports, and for normals where the log-joint is quadratic in z;
    otherwise of one draw. A step of rate 1 sets all numbers of lam at once, each to its best given
    the others as they were: it ends at the posterior if that is in the family, and may overshoot if
    the family leaves out strong correlations; smaller rates do not.

    Raises:
      ValueError: without the family's `Natural` trait, or for settings that are no steps.
    """
    step, rule = need(family, Natural).step, as_rule(exact_rules(family), family)
    if not 0.0 < rate <= 1.0 or num_steps < 1:
        raise ValueError(
            f"natural_ascent(rate={rate}, num_steps={num_steps}): a step of rate 1 goes all the "
            "way, so the rate lies in (0, 1], and there is at least one step."
        )
    rule.check(family, elbo, 1, None)

    def go(key: Key, lam: PyTree, integrand: Integrand) -> PyTree:
        def bound(lam: PyTree, key: Key) -> Array:
            setting = Setting(elbo, 1, rule.init(key), rule.init_state())
            return rule.surrogate(key, Q(family, lam), integrand, setting)[0]

        def ascend(lam: PyTree, number: Array) -> tuple[PyTree, None]:
            slope = jax.grad(bound)(lam, jax.random.fold_in(key, number))
            return step(lam, slope, jnp.asarray(rate)), None

        return jax.lax.scan(ascend, lam, jnp.arange(num_steps))[0]

    return go


def finite_posterior(family: Family) -> EStep | None:
    """The exact posterior of a `categorical(C)` by summing its C values; None for other families,
    which may not contain it.
    """
    support = family.traits.get(FiniteSupport)
    shapes = jax.tree.map(lambda leaf: leaf.shape, lam_like(family))
    sites = family.traits.get(CategoricalSites)
    if support is None or sites is None or shapes != {"logits": (support.size,)}:
        return None

    def go(key: Key, lam: PyTree, integrand: Integrand) -> PyTree:
        zero = jnp.zeros((), lam["logits"].dtype)
        return {"logits": jax.vmap(lambda z: integrand(Sample(z, zero, key)))(support.values())}

    return go


def exact_rules(family: Family) -> Rules:
    """Rules with exact gradients in lam where there are such, block by block."""
    blocks = family.traits.get(Blocks)
    if family.traits.get(FiniteSupport) is not None:
        return enumerated()
    if blocks is not None and not blocks.ordered:
        return {name: exact_rules(block) for name, block in blocks.families.items()}
    if family.traits.get(NormalMoments) is not None:
        return quadratic_control()
    return pathwise() if family.traits.get(Reparameterized) is not None else score(none())
