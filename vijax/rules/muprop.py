"""A control variate from one mean-field pass: MuProp."""

import jax
import jax.numpy as jnp

from vijax.rules.base import draw, evaluate, evaluate_at, mean_aux, rule
from vijax.rules.discrete import learned_gradient, site_logits, site_mean, spare_key
from vijax.types import Aux, Requirements, Rule


def muprop(*, learn_scale: bool = False) -> Rule:
    """Score function of f minus its first-order Taylor expansion at E[z], whose own gradient is added in closed form.

    Gu et al. 2016, eq. 5. Exact, sample by sample, for affine f.

    Args:
      learn_scale: multiply the expansion by a learned scalar, fitted to the variance; 1 otherwise and at first.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     independent Bernoulli or one-hot categorical sites with logits; an integrand differentiable in z at E[z],
                  between the values; a linear objective.
    State:        none; the scale is in `control`.
    Cost:         K + 1 evaluations of the integrand per datum, one derivative in z.
    """

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

        def gradient(control):
            scale = control["scale"] if learn_scale else jnp.ones(())
            residual = values - scale * expansion
            return jnp.tensordot(residual, away, axes=1) / num_samples + scale * closed_form

        return learned_gradient(objective(values), logits, control, gradient), Aux((), mean_aux(aux))

    return rule(
        f"muprop({'learn_scale=True' if learn_scale else ''})",
        Requirements(
            paper="Gu et al. 2016",
            bernoulli=True,
            categorical=True,
            linear_objective=True,
            differentiates_z=True,
            evaluations="K + 1",
            advice="Write score() or disarm() instead.",
        ),
        surrogate,
        init=lambda key: {"scale": jnp.ones(())} if learn_scale else (),
    )
