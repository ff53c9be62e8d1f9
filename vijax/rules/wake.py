"""Self-normalised importance sampling for phi: the score of q under another distribution than q, by
weighted samples of q.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vijax.families import Density, log_probs
from vijax.objectives import thermodynamic
from vijax.rules.base import draw, evaluate, no_aux, rule, stopped, zero_valued
from vijax.types import (
    Array,
    Aux,
    Family,
    Integrand,
    Key,
    Objective,
    Q,
    Requirements,
    Rule,
    Scalar,
    Setting,
)


def wake() -> Rule:
    """Biased: the wake phase of reweighted wake-sleep, sum_k (v_k - 1/K) dlog q(z_k)/dlam, v the
    normalised weights, which is an ascent on -KL(posterior || q), not on the objective. Bornschein
    and Bengio 2015; Le et al. 2019, eq. 6.

    As K grows its mean tends to E_posterior[dlog q/dlam], with a bias of order 1/K. theta's
    gradient is that of the objective, by R_k = dR/dlog_w_k: wake-theta. With another objective than
    `iwae`, v_k is R_k. Its path form, for a reparameterized q, is
    `doubly_reparameterized(path_weights.wake())`; sleep-phi is `vijax.sleep`.

    Unbiased for: the gradient of E[objective(log_w)] in theta alone.
    Requires:     log_prob differentiable in lam; a non-linear objective; num_samples >= 2.
    State:        none.
    Cost:         K evaluations of the integrand per datum, no derivative in z.
    """
    requires = Requirements(
        needs=(Density,),
        linear=False,
        min_samples=2,
        unbiased=False,
        paper="Bornschein and Bengio 2015; Le et al. 2019",
        advice=(
            "Write objective=objectives.iwae with num_samples >= 2, or vijax.sleep(...) for phi."
        ),
    )

    def multipliers(objective: Objective, log_w: Array) -> Array:
        return jax.grad(objective.value)(log_w) - 1.0 / log_w.shape[0]

    return _self_normalized("wake()", requires, multipliers)


def covariance(betas: Sequence[float]) -> Rule:
    """Biased: the covariance gradient of the thermodynamic objective, Masrani et al. 2019, eq. 10:
    for phi sum_i (b_{i+1} - b_i) (E_i[-dlog q] + (1 - b_i) Cov_i[log_w, dlog q]), E_i over
    q^(1-b_i) p^b_i.

    By self-normalised weights, with covariances times K / (K - 1): it tends to the gradient of the
    exact thermodynamic objective as K grows, with a bias of order 1/K. The unbiased gradient of its
    K-sample estimate is `score()` with the same objective, another estimator. With betas (0, 1) it
    is leave-one-out REINFORCE for the ELBO, sample by sample.

    Args:
      betas: those of the objective, `objectives.thermodynamic(betas)`.

    Unbiased for: the gradient of E[objective(log_w)] in theta alone.
    Requires:     log_prob differentiable in lam; that objective; num_samples >= 2.
    State:        none.
    Cost:         K evaluations of the integrand per datum, no derivative in z.

    Raises:
      ValueError: when checked, if the objective is not the thermodynamic one of the same betas.
    """
    ours = thermodynamic(betas)
    grid = np.asarray(betas, float)
    advice = f"Write objective=objectives.thermodynamic({tuple(betas)})."
    requires = Requirements(
        needs=(Density,), min_samples=2, unbiased=False, paper="Masrani et al. 2019", advice=advice
    )

    def multipliers(objective: Objective, log_w: Array) -> Array:
        num_samples = log_w.shape[0]
        left, widths = jnp.asarray(grid[:-1], log_w.dtype), jnp.asarray(np.diff(grid), log_w.dtype)

        def term(beta: Array, width: Array) -> Array:
            weights = jax.nn.softmax(beta * log_w)
            centred = weights * (log_w - jnp.vdot(weights, log_w))
            return width * (
                (1.0 - beta) * num_samples / (num_samples - 1) * centred
                - weights
                + 1.0 / num_samples
            )

        return jnp.sum(jax.vmap(term)(left, widths), axis=0)

    def check(family: Family, objective: Objective, num_samples: Any, prior: Family | None) -> None:
        if objective != ours:
            raise ValueError(
                f"{name} is the gradient of no other objective than the thermodynamic one, same "
                f"betas. {advice}"
            )

    name = f"covariance({', '.join(f'{beta:g}' for beta in betas)})"
    return _self_normalized(name, requires, multipliers, check=check)


def _self_normalized(
    name: str,
    requires: Requirements,
    multipliers: Callable[[Objective, Array], Array],
    *,
    check: Callable[[Family, Objective, Any, Family | None], None] | None = None,
) -> Rule:
    """Phi by sum_k multipliers_k dlog q(z_k)/dlam; theta by R_k: q's parameters are stopped inside
    the log-weights.
    """

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        drawn = draw(key, stopped(q), setting.num_samples)
        log_w, aux = evaluate(integrand, drawn)
        seen = jax.lax.stop_gradient(log_w)
        signal = jax.lax.stop_gradient(multipliers(setting.objective, seen))
        by_score = jnp.vdot(signal, zero_valued(log_probs(q.family, q.lam, drawn.z)))
        return setting.objective.value(log_w) + by_score, no_aux(aux)

    return rule(name, requires, surrogate, check=check)
