"""A control variate from one mean-field pass: MuProp."""

import jax
import jax.numpy as jnp

from vijax.baselines import Baseline, none
from vijax.rules.base import draw, evaluate, evaluate_at, mean_aux, rule
from vijax.rules.discrete import learned_gradient, site_logits, site_mean, spare_key
from vijax.types import Aux, Requirements, Rule


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
    """
    base = none() if baseline is None else baseline
    if base.num_auxiliary:
        raise ValueError(
            f"muprop(baseline={base.name}): it needs draws of its own. Write "
            f"baselines.leave_one_out() instead."
        )

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        drawn = draw(key, family, jax.lax.stop_gradient(lam), num_samples)
        values, aux = evaluate(integrand, drawn)
        logits = site_logits(family, lam)
        mean, to_logits = jax.vjp(lambda eta: site_mean(family, eta), jax.lax.stop_gradient(logits))

        def at(z):
            return evaluate_at(integrand, family, lam, z[None], spare_key(key))[0][0]

        at_mean, slope = jax.value_and_grad(at)(mean)
        away = drawn.z - mean[None]
        expansion = at_mean + jnp.tensordot(away, slope, axes=slope.ndim)
        (closed_form,) = to_logits(slope)

        learned = dict(control or {"baseline": ()})
        base_control = learned.pop("baseline")
        stopped = jax.lax.stop_gradient(base_control)

        def gradient(learned):
            scale = learned["scale"] if learn_scale else jnp.ones(())
            signal = base.signal(objective, values - scale * expansion, stopped, state, x)
            return jnp.tensordot(signal, away, axes=1) + scale * closed_form

        scale = learned["scale"] if learn_scale else jnp.ones(())
        left = jax.lax.stop_gradient(jnp.mean(values - scale * expansion))
        loss = base.loss(base_control, left, x)
        total = learned_gradient(objective(values), logits, learned, gradient)
        return total - (loss - jax.lax.stop_gradient(loss)), Aux(left, mean_aux(aux))

    def init(key):
        return ({"scale": jnp.ones(())} if learn_scale else {}) | {"baseline": base.init(key)}

    settings = ([] if baseline is None else [f"baseline={base.name}"]) + (
        ["learn_scale=True"] if learn_scale else []
    )
    return rule(
        f"muprop({', '.join(settings)})",
        Requirements(
            paper="Gu et al. 2016",
            bernoulli=True,
            categorical=True,
            linear_objective=True,
            differentiates_z=True,
            min_samples=base.min_samples,
            unbiased=base.unbiased,
            evaluations="K + 1",
            advice=base.advice or "Write score() or disarm() instead.",
        ),
        surrogate,
        init=init,
        init_state=base.init_state,
        update=base.update,
    )
