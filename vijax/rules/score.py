"""Differentiate log q, never z: the score-function (REINFORCE) rule with any baseline."""

import jax
import jax.numpy as jnp

from vijax.baselines import Baseline, leave_one_out
from vijax.rules.base import draw, evaluate, mean_aux, rule
from vijax.types import Aux, Requirements, Rule


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

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        drawn = draw(key, family, jax.lax.stop_gradient(lam), num_samples)
        log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, drawn.z)

        def weights(log_q):
            return evaluate(integrand, drawn._replace(log_q=log_q))

        log_w, slope, aux = jax.jvp(weights, (log_q,), (jnp.ones_like(log_q),), has_aux=True)
        value, stopped = objective(log_w), jax.lax.stop_gradient(log_w)
        if baseline.num_auxiliary:
            extra = draw(
                jax.random.fold_in(key, 1),
                family,
                jax.lax.stop_gradient(lam),
                baseline.num_auxiliary,
            )
            stopped = jnp.concatenate(
                [stopped, jax.lax.stop_gradient(evaluate(integrand, extra)[0])]
            )
        signal = baseline.signal(objective, stopped, jax.lax.stop_gradient(control), state, x)
        # E[dlog q] = 0, so a constant multiple of it may be taken off: it cancels the direct term
        # of a linear objective.
        centred = jax.lax.stop_gradient(signal - slope / num_samples)
        total = value + jnp.sum(centred * (log_q - jax.lax.stop_gradient(log_q)))
        loss = baseline.loss(control, jax.lax.stop_gradient(value), x)
        return total - (loss - jax.lax.stop_gradient(loss)), Aux(
            jax.lax.stop_gradient(value), mean_aux(aux)
        )

    return rule(
        f"score({baseline.name})",
        Requirements(
            paper="Williams 1992; Mnih and Rezende 2016",
            min_samples=baseline.min_samples,
            unbiased=baseline.unbiased,
            evaluations=f"K + {baseline.num_auxiliary}" if baseline.num_auxiliary else "K",
            advice=baseline.advice,
        ),
        surrogate,
        init=baseline.init,
        init_state=baseline.init_state,
        update=baseline.update,
    )
