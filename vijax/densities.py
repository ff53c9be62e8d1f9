"""Log-densities for model authors and families, elementwise and in nats, with fused derivatives
where autodiff wastes work.

Each takes the value first and its parameters after it, broadcasts as `jnp` does, and returns an
array: sum it yourself. These are the few that need more than a formula, and a log-joint may use any
other: `jax.scipy.stats` has gamma, beta, t, cauchy, laplace, multivariate_normal, binom and more as
`logpdf(x, ...)` or `logpmf(x, ...)`, NumPyro's distributions as `.log_prob(x)`.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from vijax.types import Array

LOG_2PI = 1.8378770664093453


def normal(x: Array, loc: Array | float, log_scale: Array | float) -> Array:
    """Log Normal(x; loc, exp(log_scale)^2)."""
    return -0.5 * jnp.square((x - loc) * jnp.exp(-log_scale)) - log_scale - 0.5 * LOG_2PI


def standard_normal(x: Array) -> Array:
    """Log Normal(x; 0, 1)."""
    return -0.5 * jnp.square(x) - 0.5 * LOG_2PI


@jax.custom_jvp
def bernoulli(x: Array, logits: Array) -> Array:
    """Log Bernoulli(x; sigmoid(logits)) for x in {0, 1}, extended linearly to real x: x logits -
    softplus(logits).

    The derivative in `logits` is x - sigmoid(logits), one transcendental and exact everywhere (1/2
    at 0), so that the value's log1p is dropped by the compiler whenever only the gradient is used.
    """
    return x * logits - jax.nn.softplus(logits)


def _bernoulli_jvp(primals, tangents):
    x, logits = primals
    x_dot, logits_dot = tangents
    value = bernoulli(x, logits)
    dot = jnp.zeros_like(value)
    if not isinstance(logits_dot, SymbolicZero):
        dot = (x - jax.nn.sigmoid(logits)) * logits_dot
    if not isinstance(x_dot, SymbolicZero):
        dot = dot + logits * x_dot
    return value, dot


bernoulli.defjvp(_bernoulli_jvp, symbolic_zeros=True)


@jax.custom_jvp
def categorical(x: Array, logits: Array) -> Array:
    """Log Categorical(x; softmax(logits)) for one-hot x, over the last axis: [..., C], [..., C] ->
    [...].

    Extended linearly to real x. The derivative in `logits` is x - sum(x) softmax(logits), exact at
    ties.
    """
    return jnp.sum(x * jax.nn.log_softmax(logits), axis=-1)


def _categorical_jvp(primals, tangents):
    x, logits = primals
    x_dot, logits_dot = tangents
    value = categorical(x, logits)
    dot = jnp.zeros_like(value)
    if not isinstance(logits_dot, SymbolicZero):
        residual = x - jnp.sum(x, axis=-1, keepdims=True) * jax.nn.softmax(logits)
        dot = jnp.sum(residual * logits_dot, axis=-1)
    if not isinstance(x_dot, SymbolicZero):
        dot = dot + jnp.sum(jax.nn.log_softmax(logits) * x_dot, axis=-1)
    return value, dot


categorical.defjvp(_categorical_jvp, symbolic_zeros=True)


def poisson(x: Array, log_rate: Array) -> Array:
    """Log Poisson(x; exp(log_rate)) for counts x."""
    return x * log_rate - jnp.exp(log_rate) - jax.lax.lgamma(x + 1.0)
