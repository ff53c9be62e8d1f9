"""A control variate from one mean-field pass: MuProp."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.baselines import Baseline, none
from vijax.families import BernoulliSites, CategoricalSites, Density
from vijax.rules.base import (
    draw,
    evaluate,
    evaluate_at,
    learned_gradient,
    mean_aux,
    rule,
    spare_key,
    stopped,
    zero_valued,
)
from vijax.rules.discrete import site_logits, site_mean
from vijax.types import Array, Aux, Integrand, Key, PyTree, Q, Requirements, Rule, Scalar, Setting


def muprop(*, baseline: Baseline | None = None, learn_scale: bool = False) -> Rule:
    """Score function of f minus its first-order Taylor expansion at E[z], whose own gradient is
    added in closed form.

    Gu et al. 2016, eq. 5. Exact, sample by sample, for affine f, without a baseline.

    Args:
      baseline: what is subtracted from the residual f - expansion, and fitted to it; default
        `baselines.none()`. As published (section 3.3): `baselines.learned(network)`, a function of
        the datum, or `baselines.moving_average()`.
      learn_scale: multiply the expansion by a learned scalar, fitted to the variance; 1 otherwise
        and at first.

    Unbiased for: the gradient of the ELBO, in theta and phi, if `baseline.unbiased`.
    Requires:     independent Bernoulli or one-hot categorical sites with logits; an integrand
                  differentiable in z at E[z], between the values; a linear objective.
    State:        the baseline's; scale and baseline are in `control`.
    Cost:         K + 1 evaluations of the integrand per datum, one derivative in z.

    Raises:
      ValueError: if the baseline needs draws of its own.
    """
    base = none() if baseline is None else baseline
    if base.num_auxiliary:
        raise ValueError(
            f"muprop(baseline={base.name}): it needs draws of its own. Write "
            "baselines.leave_one_out() instead."
        )

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        objective, state, x = setting.objective, setting.state, setting.x
        drawn = draw(key, stopped(q), setting.num_samples)
        values, aux = evaluate(integrand, drawn)
        around = expand(integrand, q, drawn.z, spare_key(key))
        learned = dict(setting.control or {"baseline": ()})
        base_control = learned.pop("baseline")
        fixed = jax.lax.stop_gradient(base_control)

        def gradient(learned: PyTree) -> Array:
            scale = scale_of(learned)
            signal = base.signal(objective, values - scale * around.values, fixed, state, x)
            return jnp.tensordot(signal, around.away, axes=1) + scale * around.mean_gradient

        left = jax.lax.stop_gradient(jnp.mean(values - scale_of(learned) * around.values))
        learning = zero_valued(base.loss(base_control, left, x))
        live = site_logits(q.family, q.lam)
        total = learned_gradient(objective.value(values), live, learned, gradient)
        return total - learning, Aux(left, mean_aux(aux))

    def init(key: Key) -> PyTree:
        return ({"scale": jnp.ones(())} if learn_scale else {}) | {"baseline": base.init(key)}

    settings = ([] if baseline is None else [f"baseline={base.name}"]) + (
        ["learn_scale=True"] if learn_scale else []
    )
    requires = Requirements(
        needs=(Density,),
        any_of=(BernoulliSites, CategoricalSites),
        linear=True,
        min_samples=base.min_samples,
        unbiased=base.unbiased,
        evaluations="K + 1",
        paper="Gu et al. 2016",
        advice=base.advice or "Write score() or disarm() instead.",
    )
    return rule(
        f"muprop({', '.join(settings)})",
        requires,
        surrogate,
        init=init,
        init_state=base.init_state,
        update=base.update,
    )


def scale_of(learned: PyTree) -> Scalar:
    """What the expansion is multiplied by: 1 where it is not learned."""
    return learned.get("scale", jnp.ones(()))


class Expansion(NamedTuple):
    """The integrand's first-order Taylor expansion at E[z], at K draws.

    Attributes:
      values: [K] at the draws.
      away: [K, ...] the draws minus E[z].
      mean_gradient: [...] the derivative of its expectation in the logits.
    """

    values: Array
    away: Array
    mean_gradient: Array


def expand(integrand: Integrand, q: Q, z: Array, key: Key) -> Expansion:
    """The expansion at draws z [K, ...], for one evaluation of the integrand and its derivative."""
    logits = jax.lax.stop_gradient(site_logits(q.family, q.lam))
    mean, to_logits = jax.vjp(lambda eta: site_mean(q.family, eta), logits)

    def at(z: Array) -> Scalar:
        return evaluate_at(integrand, q, z[None], key)[0][0]

    at_mean, slope = jax.value_and_grad(at)(mean)
    away = z - mean[None]
    (mean_gradient,) = to_logits(slope)
    return Expansion(at_mean + jnp.tensordot(away, slope, axes=slope.ndim), away, mean_gradient)
