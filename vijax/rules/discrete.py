"""What the rules for Bernoulli and categorical latents share: means, weights with a live log q,
learned controls.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax.rules.base import evaluate, from_gradient
from vijax.types import Array, Family, Integrand, Key, PyTree, Sample, Scalar


def site_logits(family: Family, lam: PyTree) -> Array:
    """The logits of z's shape: [D] for a Bernoulli vector, [C] or [D, C] for categorical sites."""
    if family.bernoulli_logits is not None:
        return family.bernoulli_logits(lam)
    if family.categorical_logits is not None:
        return family.categorical_logits(lam)
    raise ValueError(f"{family.name} has neither bernoulli_logits nor categorical_logits.")


def site_mean(family: Family, logits: Array) -> Array:
    """E[z], of z's shape; dlog q(z)/dlogits is z minus it."""
    return jax.nn.sigmoid(logits) if family.bernoulli_logits is not None else jax.nn.softmax(logits)


def spare_key(key: Key) -> Key:
    """A key independent of everything that `draw(key, ...)` uses: that splits its key in two,
    children 0 and 1.
    """
    return jax.random.fold_in(key, 2)


def live_weights(
    integrand: Integrand, family: Family, lam: PyTree, z: PyTree, keys: Key
) -> tuple[Array, Scalar, PyTree]:
    """The integrand at M draws of q with log q live in lam: (log_w [M], centre [], aux).

    `centre` has value 0 and takes slope / M of every dlog q off, which has mean zero: added to the
    surrogate it cancels the direct dependence of a linear objective on log q exactly, sample by
    sample.
    """
    log_q = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, z)

    def weights(log_q: Array) -> tuple[Array, PyTree]:
        return evaluate(integrand, Sample(z, log_q, keys))

    log_w, slope, aux = jax.jvp(weights, (log_q,), (jnp.ones_like(log_q),), has_aux=True)
    slope = jax.lax.stop_gradient(slope)
    return log_w, -jnp.mean(slope * (log_q - jax.lax.stop_gradient(log_q))), aux


def learned_gradient(
    value: Scalar, wrt: Array, control: PyTree, gradient: Callable[[PyTree], Array]
) -> Scalar:
    """`value` with the gradient estimator `gradient(control)` in `wrt` and, in `control`, minus the
    gradient of its variance.

    E[g] does not depend on the control, so the gradient of ||g||^2 is an unbiased gradient of the
    variance's trace (Grathwohl et al. 2018, eq. 5). It is written out here: differentiating a
    stop-gradient surrogate does not give it.
    """

    def squared(control: PyTree) -> tuple[Scalar, Array]:
        g = gradient(control)
        return jnp.sum(jnp.square(g)), g

    slope, g = jax.grad(squared, has_aux=True)(jax.lax.stop_gradient(control))
    return from_gradient(from_gradient(value, wrt, g), control, jax.tree.map(jnp.negative, slope))
