"""Differentiate through the sampler only, with the score term rewritten as a path term."""

import jax
import jax.numpy as jnp

from vijax.rules.base import draw, evaluate, no_aux, rule
from vijax.types import Array, Objective, Requirements, Rule


def doubly_reparameterized() -> Rule:
    """Path-derivative gradient for any objective: sum_k (R_k - R_kk) (dlog_w_k/dz_k) (dz_k/dlam), q's parameters stopped
    inside log q; R_k = dR/dlog_w_k, R_kk the Hessian's diagonal. Everything else upstream (theta) keeps R_k.

    For the ELBO this is sticking-the-landing (Roeder et al. 2017), for IWAE it is DReG (Tucker et al. 2019, eq. 8: weights
    w_k^2). Its phi-gradient is exactly zero, sample by sample, where q is the posterior.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     a differentiable sampler for every block; an integrand that is f(z) - log_q (slope -1 in log_q).
    State:        none.
    Cost:         K evaluations of the integrand per datum, one backward pass, K^2 scalars.
    """

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        drawn = draw(key, family, lam, num_samples)
        stopped = jax.lax.stop_gradient(lam)

        def weights(z):
            log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(stopped, z)
            return evaluate(integrand, drawn._replace(z=z, log_q=log_q))

        # The factor needs the weights, whose backward pass needs the factor. Evaluated twice as written; the two forward
        # passes are the same operations on the same operands, so the compiler keeps one.
        factor = path_factor(objective, jax.lax.stop_gradient(weights(drawn.z)[0]))
        log_w, aux = weights(jax.vmap(lambda c, z: jax.tree.map(lambda leaf: scale_tangent(leaf, c), z))(factor, drawn.z))
        return objective(log_w), no_aux(aux)

    advice = 'Write score() or, for few states, enumerated() for that block, as in rules={"c": score(), "z": pathwise()}.'
    return rule(
        "doubly_reparameterized()",
        Requirements(
            paper="Roeder et al. 2017; Tucker et al. 2019", differentiates_z=True, reparameterized=True, advice=advice
        ),
        surrogate,
    )


def path_factor(objective: Objective, log_w: Array) -> Array:
    """[K] factors (R_k - R_kk) / R_k by which the path's derivative differs from the chain rule's; 0 where R_k = 0."""
    first = jax.grad(objective)(log_w)
    basis = jnp.eye(log_w.shape[0], dtype=log_w.dtype)
    second = jax.vmap(lambda e: jnp.vdot(e, jax.jvp(jax.grad(objective), (log_w,), (e,))[1]))(basis)
    return jnp.where(first == 0.0, 0.0, 1.0 - second / jnp.where(first == 0.0, 1.0, first))


@jax.custom_jvp
def scale_tangent(x: Array, factor: Array) -> Array:
    """The identity in x, its derivative multiplied by `factor`."""
    return x


@scale_tangent.defjvp
def _scale_tangent_jvp(primals, tangents):
    x, factor = primals
    return x, factor * tangents[0]
