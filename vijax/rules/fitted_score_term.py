"""Between the total derivative and sticking-the-landing: the score term times a fitted scalar."""

import jax
import jax.numpy as jnp

from vijax.families import Density, Reparameterized, log_probs
from vijax.noise import IID, Noise
from vijax.rules.base import draw, evaluate, mean_aux, rule, stopped
from vijax.rules.doubly_reparameterized import scale_tangent
from vijax.types import Array, Aux, Integrand, Key, PyTree, Q, Requirements, Rule, Scalar, Setting


def fitted_score_term(decay: float = 0.99, *, noise: Noise = IID) -> Rule:
    """Total derivative + a dlog q(z)/dlam, a fitted by regression on past steps. Geffner and Domke
    2018, 2020.

    a = 0 is `pathwise`, a = 1 `doubly_reparameterized` (sticking-the-landing), which is better only
    near the posterior: for q = N(m, s^2) and a normal target of standard deviation S, in m, iff s^2
    > S^2 / 2. It starts at 1.

    Args:
      decay: in (0, 1); weight of the past in the running moments that a is the quotient of.
      noise: see `vijax.noise`.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a differentiable sampler; a linear objective; an integrand that is f(z) - log_q
                  (slope -1 in log_q).
    State:        two running means.
    Cost:         K evaluations of the integrand per datum, two backward passes.

    Raises:
      ValueError: if decay is not strictly between 0 and 1.
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(
            f"fitted_score_term(decay={decay}): decay must lie strictly between 0 and 1."
        )

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        state = setting.state
        kept = 1.0 - jnp.where(
            state["square"] > 0.0, state["product"] / jnp.maximum(state["square"], 1e-30), 1.0
        )

        def log_weights(path: PyTree, direct: PyTree) -> tuple[Array, PyTree]:
            drawn = draw(key, Q(q.family, path), setting.num_samples, noise)
            log_q = log_probs(q.family, direct, drawn.z)
            return evaluate(integrand, drawn._replace(log_q=log_q))

        # dlog q / dlam enters the integrand with slope -1: keeping 1 - a of it adds a times the
        # score to the total.
        log_w, aux = log_weights(q.lam, jax.tree.map(lambda leaf: scale_tangent(leaf, kept), q.lam))
        fixed = stopped(q).lam
        path, direct = jax.grad(lambda p, d: jnp.mean(log_weights(p, d)[0]), argnums=(0, 1))(
            fixed, fixed
        )
        # E[direct] = 0, so products of the two means of K samples estimate covariances; K cancels
        # in the quotient.
        product = sum(
            jax.tree.leaves(jax.tree.map(lambda p, d: jnp.sum((p + d) * d), path, direct))
        )
        square = sum(jax.tree.leaves(jax.tree.map(lambda d: jnp.sum(d * d), direct)))
        stats = jax.lax.stop_gradient({"product": product, "square": square})
        return jnp.mean(log_w), Aux(stats, mean_aux(aux))

    def update(state: PyTree, stats: PyTree) -> PyTree:
        finite = jnp.isfinite(stats["product"]) & jnp.isfinite(stats["square"])
        return jax.tree.map(
            lambda old, new: jnp.where(finite, decay * old + (1.0 - decay) * new, old), state, stats
        )

    requires = Requirements(
        needs=(Reparameterized, Density),
        linear=True,
        in_z=True,
        unbiased=noise.unbiased,
        paper="Geffner and Domke 2018",
        advice="Write doubly_reparameterized() or, without a differentiable sampler, score().",
    )
    return rule(
        f"fitted_score_term({decay}{'' if noise is IID else f', noise={noise.name}'})",
        requires,
        surrogate,
        noise=noise,
        init_state=lambda: {"product": jnp.zeros(()), "square": jnp.zeros(())},
        update=update,
    )
