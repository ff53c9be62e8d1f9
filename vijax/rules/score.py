"""Differentiate log q, never z: the score-function (REINFORCE) rule with any baseline."""

import jax
import jax.numpy as jnp

from vijax.baselines import Baseline, leave_one_out
from vijax.families import Density, log_probs
from vijax.rules.base import (
    draw,
    evaluate,
    live_weights,
    mean_aux,
    minus_direct_term,
    rule,
    stopped,
    zero_valued,
)
from vijax.types import Aux, Integrand, Key, Q, Requirements, Rule, Scalar, Setting


def score(baseline: Baseline | None = None) -> Rule:
    """Score-function gradient: sum_k signal_k dlog q(z_k)/dlam, plus the direct dependence of the
    weights on log q.

    Williams 1992; Paisley et al. 2012; for IWAE with leave-one-out, VIMCO, Mnih and Rezende 2016,
    eq. 5-9. The direct term is -sum_k (R_k - 1/K) dlog q_k: nothing for the ELBO, indispensable for
    any other objective.

    Args:
      baseline: what is subtracted from the learning signal; default `baselines.leave_one_out()`.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi, if
                  `baseline.unbiased`.
    Requires:     log_prob differentiable in lam; nothing of the sampler. num_samples >= 2 with
                  leave_one_out.
    State:        the baseline's.
    Cost:         K evaluations of the integrand per datum (and the baseline's own), no derivative
                  in z; K^2 scalars for non-linear objectives.
    """
    baseline = leave_one_out() if baseline is None else baseline

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        objective, control = setting.objective, setting.control
        drawn = draw(key, stopped(q), setting.num_samples)
        log_q = log_probs(q.family, q.lam, drawn.z)
        log_w, slope, aux = live_weights(integrand, drawn._replace(log_q=log_q))
        seen = jax.lax.stop_gradient(log_w)
        if baseline.num_auxiliary:
            extra = draw(jax.random.fold_in(key, 1), stopped(q), baseline.num_auxiliary)
            seen = jnp.concatenate([seen, jax.lax.stop_gradient(evaluate(integrand, extra)[0])])
        fixed = jax.lax.stop_gradient(control)
        signal = baseline.signal(objective, seen, fixed, setting.state, setting.x)
        by_score = jnp.vdot(jax.lax.stop_gradient(signal), zero_valued(log_q))
        value = objective.value(log_w)
        reached = jax.lax.stop_gradient(value)
        learning = zero_valued(baseline.loss(control, reached, setting.x))
        total = value + minus_direct_term(slope, log_q) + by_score - learning
        return total, Aux(reached, mean_aux(aux))

    return rule(
        f"score({baseline.name})",
        Requirements(
            needs=(Density,),
            min_samples=baseline.min_samples,
            unbiased=baseline.unbiased,
            evaluations=f"K + {baseline.num_auxiliary}" if baseline.num_auxiliary else "K",
            paper="Williams 1992; Mnih and Rezende 2016",
            advice=baseline.advice,
        ),
        surrogate,
        init=baseline.init,
        init_state=baseline.init_state,
        update=baseline.update,
    )
