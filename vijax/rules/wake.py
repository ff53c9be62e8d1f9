"""Self-normalised importance sampling for phi: the score of q under another distribution than q, by
weighted samples of q.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vijax.objectives import thermodynamic
from vijax.rules.base import check_requirements, draw, evaluate, no_aux, rule
from vijax.types import Array, Objective, Requirements, Rule


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
    advice = "Write objective=objectives.iwae with num_samples >= 2, or vijax.sleep(...) for phi."
    requires = Requirements(
        paper="Bornschein and Bengio 2015; Le et al. 2019",
        nonlinear_objective=True,
        min_samples=2,
        unbiased=False,
        advice=advice,
    )
    return _self_normalized(
        "wake()",
        requires,
        lambda objective, log_w: jax.grad(objective)(log_w) - 1.0 / log_w.shape[0],
    )


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
    """
    ours = thermodynamic(betas)
    grid = np.asarray(betas, float)
    advice = f"Write objective=objectives.thermodynamic({tuple(betas)})."
    requires = Requirements(
        paper="Masrani et al. 2019", min_samples=2, unbiased=False, advice=advice
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

    def check(family, objective, num_samples, prior):
        check_requirements(name, requires, family, objective, num_samples, prior)
        if objective is not ours:
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
    check: Callable[..., None] | None = None,
) -> Rule:
    """Phi by sum_k multipliers_k dlog q(z_k)/dlam; theta by R_k: q's parameters are stopped inside
    the log-weights.
    """

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        drawn = draw(key, family, jax.lax.stop_gradient(lam), num_samples)
        log_w, aux = evaluate(integrand, drawn)
        log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, drawn.z)
        signal = jax.lax.stop_gradient(multipliers(objective, jax.lax.stop_gradient(log_w)))
        return objective(log_w) + jnp.vdot(signal, log_q - jax.lax.stop_gradient(log_q)), no_aux(
            aux
        )

    return rule(name, requires, surrogate, check=check)
