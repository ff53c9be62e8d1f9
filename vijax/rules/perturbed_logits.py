"""Gumbel-perturbed logits given which one is the largest: a draw of them, and the mean gap to the
next.
"""

import jax
import jax.numpy as jnp

from vijax.types import Array, Key


def perturbed_given(key: Key, logits: Array, hard: Array) -> Array:
    """Gumbel-perturbed logits [..., C] given which one is the largest. Paulus et al. 2021, eq. 15;
    Maddison et al. 2014.

    The largest is a Gumbel at logsumexp(logits) whichever it is; the others are Gumbels cut off
    there.
    """
    top_key, rest_key = jax.random.split(key)
    top = jax.nn.logsumexp(logits, axis=-1, keepdims=True) + jax.random.gumbel(
        top_key, (*logits.shape[:-1], 1)
    )
    others = -jnp.logaddexp(-jax.random.gumbel(rest_key, logits.shape) - logits, -top)
    return jnp.where(hard > 0.0, top, others)


def mean_gap(logits: Array, hard: Array) -> Array:
    """[..., 1] mean distance from the largest to the next Gumbel-perturbed logit, given the winner:
    -log(1 - q) / q.

    Fan et al. 2022, section 4; it tends to 1 as q does to 0.
    """
    log_probs = jax.nn.log_softmax(logits)
    log_rest = jax.nn.logsumexp(jnp.where(hard > 0.0, -jnp.inf, log_probs), axis=-1, keepdims=True)
    prob = jnp.sum(hard * jnp.exp(log_probs), axis=-1, keepdims=True)
    return jnp.where(prob > 1e-3, -log_rest / jnp.maximum(prob, 1e-3), 1.0 + 0.5 * prob)
