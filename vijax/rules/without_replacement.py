"""K different values of z, drawn without replacement by Gumbel-top-k: no evaluation is spent twice
on one value.

Any finite support will do; a vector of sites is one variable with as many values as it has points.
The estimators differ in how the values drawn are weighted and which baseline the others give.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.families import Density, FiniteSupport, need
from vijax.rules.base import evaluate, keys, rule, zero_valued
from vijax.rules.enumerated import weighed_support, weighted_aux
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

MAX_UNORDERED = 12


class Drawn(NamedTuple):
    """What K draws without replacement leave to be weighted.

    Attributes:
      log_probs: [K] of the values drawn, in the order of drawing.
      log_rest: [] log probability of all values not drawn.
      threshold: [] the largest perturbed log probability among those not drawn.
    """

    log_probs: Array
    log_rest: Array
    threshold: Array


class Weights(NamedTuple):
    """The estimate is value . f, its gradient sum_s score_s (f_s - sum_t baseline_st f_t) dlog q_s.

    Attributes:
      value: [K]
      score: [K]
      baseline: [K, K]
    """

    value: Array
    score: Array
    baseline: Array


Weighting = Callable[[Drawn], Weights]


def unordered_set(*, baseline: bool = True) -> Rule:
    """Mean over the orders in which the set could have been drawn. Kool et al. 2020, eq. 12 and 17.

    Args:
      baseline: use the other values as a baseline, which needs K >= 2 and makes the gradient blind
        to f -> f + constant. Without it K = 1 is REINFORCE.

    Unbiased for: the gradient of the ELBO, in theta and phi; exact, without variance, if K is the
                  size of the support.
    Requires:     a support of at most 65,536 points; a linear objective; K <= 12 (all subsets are
                  visited).
    State:        none.
    Cost:         K evaluations of the integrand per datum at different z, no derivative in z; K 2^K
                  scalars.
    """

    def weigh(drawn: Drawn) -> Weights:
        log_whole, log_without_one, log_without_two = leave_out(drawn)
        value = jnp.exp(drawn.log_probs + log_without_one - log_whole)
        second = jnp.exp(drawn.log_probs[None, :] + log_without_two - log_without_one[:, None])
        return Weights(value, value, second if baseline else jnp.zeros_like(second))

    name = "unordered_set()" if baseline else "unordered_set(baseline=False)"
    return _without_replacement(
        name,
        weigh,
        min_samples=2 if baseline else 1,
        max_samples=MAX_UNORDERED,
        unbiased=True,
        paper="Kool et al. 2020",
    )


def importance_without_replacement(*, baseline: bool = True, normalized: bool = False) -> Rule:
    """Weights q_s / P(s drawn | threshold), the threshold that of the first value not drawn. Kool
    et al. 2019, eq. 9-15.

    Args:
      baseline: use the other values as a baseline, which needs K >= 2.
      normalized: Biased. Divide by the sum of the weights; a lower variance, and exact only where K
        is the support's size.

    Unbiased for: the gradient of the ELBO, in theta and phi, unless normalized; heavy-tailed
                  weights.
    Requires:     a support of at most 65,536 points; a linear objective.
    State:        none.
    Cost:         K evaluations of the integrand per datum at different z, no derivative in z.
    """

    def weigh(drawn: Drawn) -> Weights:
        probs = jnp.exp(drawn.log_probs)
        weights = jnp.exp(drawn.log_probs - log_inclusion(drawn.log_probs - drawn.threshold))
        total = jnp.sum(weights)
        # With one's own entry at its probability instead of its weight, the baseline is
        # uncorrelated with the score.
        others = jnp.where(jnp.eye(weights.shape[0], dtype=bool), probs[:, None], weights[None, :])
        if normalized:
            others, score = (
                jnp.broadcast_to(weights / total, others.shape),
                weights / (total - weights + probs),
            )
            return Weights(weights / total, score, others if baseline else jnp.zeros_like(others))
        return Weights(weights, weights, others if baseline else jnp.zeros_like(others))

    settings = ", ".join(["baseline=False"] * (not baseline) + ["normalized=True"] * normalized)
    return _without_replacement(
        f"importance_without_replacement({settings})",
        weigh,
        min_samples=2 if baseline else 1,
        max_samples=None,
        unbiased=not normalized,
        paper="Kool et al. 2019",
    )


def _without_replacement(
    name: str,
    weigh: Weighting,
    *,
    min_samples: int,
    max_samples: int | None,
    unbiased: bool,
    paper: str,
) -> Rule:
    requires = Requirements(
        needs=(FiniteSupport, Density),
        linear=True,
        min_samples=min_samples,
        unbiased=unbiased,
        paper=paper,
        advice="Write score() instead, or baseline=False for one sample.",
    )

    def check(family: Family, objective: Objective, num_samples: int, prior: Family | None) -> None:
        check_distinct(name, family, num_samples)
        if max_samples is not None and num_samples > max_samples:
            raise ValueError(
                f"{name} on {family.name}: num_samples={num_samples} would visit 2^{num_samples} "
                f"subsets; at most "
                f"{max_samples} samples are allowed. Write importance_without_replacement(), "
                f"whose cost is linear in K."
            )

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        noise_key, inner_keys = keys(key, setting.num_samples)
        support, log_q = weighed_support(q)
        fixed = jax.lax.stop_gradient(log_q)
        drawn, chosen = draw_distinct(noise_key, fixed, setting.num_samples)
        weights = jax.tree.map(jax.lax.stop_gradient, weigh(drawn))
        z = jax.tree.map(lambda leaf: leaf[chosen], support)
        values, aux = evaluate(integrand, Sample(z, fixed[chosen], inner_keys))
        seen = jax.lax.stop_gradient(values)
        signal = weights.score * (seen - weights.baseline @ seen)
        total = jnp.vdot(weights.value, values) + jnp.vdot(signal, zero_valued(log_q[chosen]))
        return total, Aux((), weighted_aux(weights.value, aux))

    return rule(name, requires, surrogate, check=check)


def check_distinct(name: str, family: Family, num_distinct: int) -> None:
    """Refuse to draw more different values than there are."""
    size = need(family, FiniteSupport).size
    if num_distinct > size:
        raise ValueError(
            f"{name} on {family.name}: {num_distinct} different values are wanted, but the "
            f"support has {size}. Write enumerated(), which is exact and costs as much."
        )


def draw_distinct(key: Key, log_probs: Array, num_distinct: int) -> tuple[Drawn, Array]:
    """Draw different indices one after the other, each from what is left: (what they are like,
    indices [K]).

    All at once by the largest Gumbel-perturbed log probabilities. Vieira 2014; Kool et al. 2019.
    """
    perturbed = log_probs + jax.random.gumbel(key, log_probs.shape)
    largest, index = jax.lax.top_k(perturbed, min(num_distinct + 1, log_probs.shape[0]))
    chosen = index[:num_distinct]
    threshold = (
        largest[num_distinct]
        if num_distinct < log_probs.shape[0]
        else jnp.asarray(-jnp.inf, log_probs.dtype)
    )
    log_rest = jax.nn.logsumexp(log_probs.at[chosen].set(-jnp.inf))
    return Drawn(log_probs[chosen], log_rest, threshold), chosen


def log_inclusion(excess: Array) -> Array:
    """Log P(perturbed log probability > threshold) = log(1 - exp(-exp(excess))), `excess` that
    minus the threshold.
    """
    rare = jnp.minimum(excess, -10.0)
    usual = jnp.maximum(excess, -10.0)
    return jnp.where(
        excess < -10.0, rare - 0.5 * jnp.exp(rare), jnp.log(-jnp.expm1(-jnp.exp(usual)))
    )


def leave_out(drawn: Drawn) -> tuple[Array, Array, Array]:
    """Log probability that U is drawn before all outside S, for U = S [], S minus one [K] and S
    minus two [K, K] values.

    With clocks at rates q: U rings before the rest r does. The first to ring is some u of U, so
    P(U) = sum_u q_u / (q(U) + r) P(U - u), P({}) = 1: one pass over all subsets, every term
    positive. P(S - s) / P(S) is Kool's leave-one-out ratio R(S, s).
    """
    size = drawn.log_probs.shape[0]
    members = (np.arange(2**size)[:, None] >> np.arange(size)) & 1 == 1  # [2^K, K]
    # The subset without the member
    smaller = np.where(members, np.arange(2**size)[:, None] & ~(1 << np.arange(size)), 0)
    mass = jax.nn.logsumexp(jnp.where(members, drawn.log_probs[None, :], -jnp.inf), axis=-1)
    rate = jnp.logaddexp(mass, drawn.log_rest)
    first = (
        jnp.where(members, drawn.log_probs[None, :] - rate[:, None], -jnp.inf).at[0].set(-jnp.inf)
    )
    empty = jnp.where(np.arange(2**size) == 0, 0.0, -jnp.inf).astype(drawn.log_probs.dtype)

    def grow(_, log_prob: Array) -> Array:
        return jax.nn.logsumexp(first + log_prob[smaller], axis=-1).at[0].set(0.0)

    log_prob = jax.lax.fori_loop(0, size, grow, empty)
    bit, whole = 1 << np.arange(size), 2**size - 1
    return log_prob[whole], log_prob[whole & ~bit], log_prob[whole & ~(bit[:, None] | bit[None, :])]
