"""Sum some values of z exactly, sample the rest: the variance left is that of the rest."""

import jax
import jax.numpy as jnp

from vijax.families import Density, FiniteSupport
from vijax.rules.base import evaluate, keys, rule, zero_valued
from vijax.rules.enumerated import weighed_support, weighted_aux
from vijax.rules.without_replacement import check_distinct, draw_distinct
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
    Sample,
    Scalar,
    Setting,
)


def sum_and_sample(num_summed: int, *, stochastic: bool = False, baseline: bool = True) -> Rule:
    """sum_{z in A} q(z) f(z) + q(not A) mean_k f(z_k), z_k drawn from q outside A. A: the most
    probable values of z.

    Liu et al. 2019, eq. 8. Any finite support will do; a vector of sites is one variable with as
    many values as it has points.

    Args:
      num_summed: size of A, at least 1.
      stochastic: draw A without replacement instead of taking the most probable; with one sample of
        the rest this is stochastic sum-and-sample, Kool et al. 2020, eq. 9.
      baseline: subtract the estimate of E[f] (from a draw of the rest: the estimate of the other
        draws), which needs num_samples >= 2 and no evaluation more; the gradient is then blind to f
        -> f + constant.

    Unbiased for: the gradient of the ELBO, in theta and phi; exact, without variance, if A is the
                  whole support.
    Requires:     a support of at most 65,536 points; a linear objective. num_samples draws of the
                  rest.
    State:        none.
    Cost:         num_summed + K evaluations of the integrand per datum, no derivative in z.

    Raises:
      ValueError: if num_summed is below 1.
    """
    if not isinstance(num_summed, int) or num_summed < 1:
        raise ValueError(
            f"sum_and_sample(num_summed={num_summed!r}): give an int of at least 1; score() sums "
            f"none."
        )
    settings = ", stochastic=True" * stochastic + ", baseline=False" * (not baseline)
    name = f"sum_and_sample({num_summed}{settings})"
    requires = Requirements(
        needs=(FiniteSupport, Density),
        linear=True,
        min_samples=2 if baseline else 1,
        evaluations=f"{num_summed} + K",
        paper="Kool et al. 2020" if stochastic else "Liu et al. 2019",
        advice="Write score() instead, or baseline=False for one sample.",
    )

    def check(family: Family, objective: Objective, num_samples: int, prior: Family | None) -> None:
        check_distinct(name, family, num_summed)

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        num_samples = setting.num_samples
        noise_key, inner_keys = keys(key, num_summed + num_samples)
        set_key, rest_key = jax.random.split(noise_key)
        support, log_q = weighed_support(q)
        fixed = jax.lax.stop_gradient(log_q)
        if stochastic:
            _, summed = draw_distinct(set_key, fixed, num_summed)
        else:
            _, summed = jax.lax.top_k(fixed, num_summed)
        rest = fixed.at[summed].set(-jnp.inf)
        # Exactly 0 if nothing is left: then the draws below count for nothing
        rest_prob = jnp.exp(jax.nn.logsumexp(rest))
        drawn = jax.random.categorical(rest_key, rest, shape=(num_samples,))
        chosen = jnp.concatenate([summed, drawn])
        each = jnp.full(num_samples, rest_prob / num_samples)
        weights = jnp.concatenate([jnp.exp(fixed[summed]), each])
        z = jax.tree.map(lambda leaf: leaf[chosen], support)
        values, aux = evaluate(integrand, Sample(z, fixed[chosen], inner_keys))
        seen = jax.lax.stop_gradient(values)
        signal = weights * (seen - (estimates(seen, weights, num_summed) if baseline else 0.0))
        total = jnp.vdot(weights, values) + jnp.vdot(signal, zero_valued(log_q[chosen]))
        return total, Aux((), weighted_aux(weights, aux))

    return rule(name, requires, surrogate, check=check)


def estimates(values: Array, weights: Array, num_summed: int) -> Array:
    """[A + K] estimates of E[f] that are independent of each drawn value: the whole one, and those
    without one draw.
    """
    num_drawn = values.shape[0] - num_summed
    whole = jnp.vdot(weights, values)
    drawn, rest_prob = values[num_summed:], num_drawn * weights[num_summed]
    mean = jnp.mean(drawn)
    without = whole + rest_prob * ((num_drawn * mean - drawn) / (num_drawn - 1) - mean)
    return jnp.concatenate([jnp.full(num_summed, whole), without])
