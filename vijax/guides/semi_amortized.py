"""Guides whose answer is improved by a few steps of ascent before it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from vijax.families import lam_like
from vijax.finite import all_finite
from vijax.inference import Guide
from vijax.objectives import elbo
from vijax.rules import pathwise
from vijax.types import Array, Family, Integrand, Key, PyTree, Q, Rule, Setting


def semi_amortized(
    guide: Guide,
    steps: int,
    rate: float | optax.GradientTransformation,
    *,
    through: bool = True,
    rule: Rule | None = None,
    num_samples: int = 1,
) -> Guide:
    """q(z_i) refined from the guide's own answer by steps of ascent on the datum's ELBO. Kim et al.
    2018; Marino et al. 2018; the answer may be an encoder's or a row's. phi is the guide's.

    Whatever uses the guide sees the refined q: an estimator, draws, diagnostics, the lab.

    Args:
      steps: of gradient ascent in lam; 0 is the guide itself.
      rate: of plain steps; or the optax optimiser that makes them, begun anew for every datum:
        clipped or Adam's steps survive where the log-joint is steep. Through Adam's steps give
        `optax.adam(rate, eps_root=1e-8)`.
      through: is the gradient taken through the steps (second derivatives of the log-joint; for
        inner rules that stop nothing, as `pathwise`)? If not, phi gets the gradient at the refined
        lam as if the steps were a constant shift.
      rule: of the inner gradients; default `rules.pathwise()`.
      num_samples: K of the inner ELBO.

    Raises:
      ValueError: if there is no local latent, if the rule would be wrong for its family, or if the
        gradient is to go through steps that have none where a slope is exactly zero.
    """
    optimizer = _optimizer(rate)
    if "z" not in guide.families or not _whole(steps) or optimizer is None:
        raise ValueError(
            f"semi_amortized(steps={steps!r}, rate={rate!r}): it takes a guide with a local latent "
            "z, an int of at least 0 steps, and a finite rate above 0 or an optax optimiser."
        )
    family, inner = guide.families["z"], pathwise() if rule is None else rule
    inner.check(family, elbo, num_samples, None)
    if through and steps and not inner.requires.twice:
        raise ValueError(
            f"semi_amortized: the gradient through the steps differentiates that of {inner.name} "
            "once more, which is wrong where its surrogate stops something. Write through=False, "
            "or rule=pathwise() or enumerated()."
        )
    if through and steps and not _smooth(optimizer, family):
        raise ValueError(
            "semi_amortized: this optimiser's step has no derivative where a number of lam has a "
            "slope of exactly zero, as optax.adam(rate) without eps_root, so the gradient through "
            "the steps would be NaN there. Write optax.adam(rate, eps_root=1e-8), or through=False."
        )
    kept = jax.eval_shape(lambda: (inner.init(jax.random.key(0)), inner.init_state()))
    if jax.tree.leaves(kept):
        raise ValueError(
            f"semi_amortized: {inner.name} learns or remembers something, which the "
            "inner steps have no place for. Write pathwise() or score()."
        )

    def refine(key: Key, lam: PyTree, integrand: Integrand) -> PyTree:
        start = guide.refine(key, lam, integrand)

        def loss(lam: PyTree, key: Key) -> Array:
            setting = Setting(elbo, num_samples)
            return -inner.surrogate(key, Q(family, lam), integrand, setting)[0]

        def step(
            moving: tuple[PyTree, PyTree], number: Array
        ) -> tuple[tuple[PyTree, PyTree], None]:
            lam, state = moving
            slope = jax.grad(loss)(lam, jax.random.fold_in(key, number))
            update, state = optimizer.update(slope, state, lam)
            return (optax.apply_updates(lam, update), state), None

        (refined, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(steps))
        if through:
            return refined
        return jax.tree.map(lambda a, b: a + jax.lax.stop_gradient(b - a), start, refined)

    return guide._replace(refine=refine if steps else guide.refine)


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def _optimizer(rate: object) -> optax.GradientTransformation | None:
    """Of plain steps, or the one that was given; None: it is neither."""
    if isinstance(rate, optax.GradientTransformation):
        return rate
    if isinstance(rate, bool) or not isinstance(rate, int | float | np.floating):
        return None
    return optax.sgd(float(rate)) if 0.0 < rate < float("inf") else None


def _smooth(optimizer: optax.GradientTransformation, family: Family) -> bool:
    """Has its first step a derivative at slopes some of which are zero?"""
    with jax.ensure_compile_time_eval():
        lam = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), lam_like(family))
        flat, unravel = ravel_pytree(lam)

        def total(slopes: Array) -> Array:
            update, _ = optimizer.update(unravel(slopes), optimizer.init(lam), lam)
            return jnp.sum(ravel_pytree(update)[0])

        return bool(all_finite(jax.grad(total)(jnp.ones_like(flat).at[0].set(0.0))))
