"""Negatively coupled draws of a Bernoulli vector: ARM, DisARM, ARMS. One way of sampling, two ways
of giving credit.

Groups of n draws share their noise so that no two of them tend to agree. Each is a draw of q; a
sample's signal is its integrand against its group's mean, and its credit is either the noise itself
(ARM) or its mean given the draws (the rest).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vijax.families import BernoulliSites, Density, log_probs, need
from vijax.rules.base import from_gradient, keys, live_weights, minus_direct_term, no_aux, rule
from vijax.rules.discrete import changes
from vijax.types import (
    Array,
    Aux,
    Integrand,
    Key,
    Objective,
    PyTree,
    Q,
    Requirements,
    Rule,
    Sample,
    Scalar,
    Setting,
)

Credit = Callable[[Array, Array, Array], Array]
"""(logits [1, 1, D], z [K, n, D], uniforms [K, n, D]) -> [K, n, D], what the signal of each draw is
multiplied with.
"""


def arm() -> Rule:
    """Augment-REINFORCE-merge: (f(z) - f(z')) (u - 1/2) on an antithetic pair z = 1[u > 1 - p], z'
    = 1[u < p].

    Yin and Zhou 2019, eq. 9. Kept as the point of comparison: `disarm` is its mean given the pair,
    never worse.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     a Bernoulli family with logits. K samples are K pairs.
    State:        none.
    Cost:         2K evaluations of the integrand per datum, no derivative in z; 4K^2 scalars for
                  non-linear objectives.
    """
    return _coupled("arm()", 2, _noise_credit, "Yin and Zhou 2019")


def disarm() -> Rule:
    """ARM with the noise integrated out given the pair: zero where z_i = z'_i. Dong et al. 2020 =
    U2G, Yin et al. 2020.

    For a non-linear objective each sample has a partner of its own and is exchanged for it alone:
    "local DisARM" for multi-sample bounds (Dong et al. 2020, eq. 8), here averaged over which of
    the partners are the samples.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     a Bernoulli family with logits. K samples are K pairs.
    State:        none.
    Cost:         2K evaluations of the integrand per datum, no derivative in z; 4K^2 scalars for
                  non-linear objectives.
    """
    return _coupled("disarm()", 2, _draw_credit, "Dong et al. 2020; Yin et al. 2020")


def arms(size: int = 4) -> Rule:
    """`size` draws coupled by a Dirichlet copula; leave-one-out, then corrected for their
    correlation.

    Dimitriev and Zhou 2021, eq. 9-11. Size 2 is `disarm()`.

    Args:
      size: n, draws per group, at least 2. K samples are K independent groups.

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     a Bernoulli family with logits.
    State:        none.
    Cost:         nK evaluations of the integrand per datum, no derivative in z; n^2 K^2 scalars for
                  non-linear objectives.

    Raises:
      ValueError: if fewer than 2 draws are coupled.
    """
    if not isinstance(size, int) or size < 2:
        raise ValueError(
            f"arms(size={size!r}): a group needs at least 2 draws, each the others' baseline."
        )
    return _coupled(f"arms({size})", size, _draw_credit, "Dimitriev and Zhou 2021")


def copula(key: Key, num_groups: int, size: int, like: Array) -> Array:
    """[K, n, D] uniforms, negatively coupled within a group: (1 - d)^(n - 1) with d ~ Dirichlet(1,
    ..., 1).
    """
    if size == 2:
        first = jax.random.uniform(key, (num_groups, *like.shape), like.dtype)
        return jnp.stack([first, 1.0 - first], axis=1)
    parts = jax.random.exponential(key, (num_groups, size, *like.shape), like.dtype)
    total = jnp.sum(parts, axis=1, keepdims=True)
    return jnp.clip((total - parts) / total, 0.0) ** (size - 1)


def threshold(logits: Array, uniforms: Array) -> Array:
    """Draws z of q from uniforms that broadcast with logits: the less likely value where the
    uniform is below its probability.

    Negative coupling serves best between the events "the less likely value".
    """
    rare = uniforms < jax.nn.sigmoid(-jnp.abs(logits))
    return jnp.where(logits > 0.0, ~rare, rare).astype(logits.dtype)


def _coupled(name: str, size: int, credit: Credit, paper: str) -> Rule:
    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        live = need(q.family, BernoulliSites).logits(q.lam)
        logits = jax.lax.stop_gradient(live)
        noise_key, inner_keys = keys(key, setting.num_samples * size)
        uniforms = copula(noise_key, setting.num_samples, size, logits)
        every = logits[None, None]
        z = threshold(every, uniforms)
        value, signal, aux = evaluate_groups(integrand, q, z, inner_keys, setting.objective)
        gradient = jnp.tensordot(signal, credit(every, z, uniforms), axes=2)
        return from_gradient(value, live, gradient), no_aux(aux)

    requires = Requirements(
        needs=(BernoulliSites, Density),
        evaluations=f"{size}K",
        paper=paper,
        advice=(
            "Write local_expectation() or score(), which take categorical and other families too."
        ),
    )
    return rule(name, requires, surrogate)


def evaluate_groups(
    integrand: Integrand, q: Q, z: Array, inner_keys: Key, objective: Objective
) -> tuple[Scalar, Array, PyTree]:
    """The integrand at K groups of n draws of q, the derivative of the draws themselves left out.

    Args:
      z: [K, n, ...].
      inner_keys: [K n].

    Returns:
      (value [], the mean over j of the objective at every group's draw j; signal [K, n], see
      `group_signal`; the integrand's aux, leaves [K n, ...]).
    """
    each = z.reshape(-1, *z.shape[2:])
    log_q = log_probs(q.family, q.lam, each)
    log_w, slope, aux = live_weights(integrand, Sample(each, log_q, inner_keys))
    log_w = log_w.reshape(z.shape[:2])
    value = jnp.mean(jax.vmap(objective.value, in_axes=1)(log_w))
    signal = group_signal(objective, jax.lax.stop_gradient(log_w))
    return value + minus_direct_term(slope, log_q), signal, aux


def group_signal(objective: Objective, log_w: Array) -> Array:
    """[K, n] objective with sample k's entry taken from draw j of its group, minus its mean over
    the group.

    The other K - 1 entries are those of draw i of their groups, averaged over i.
    """

    def given_others(others: Array) -> Array:
        # R(swapped) - R(others); the second term falls out with the group's mean.
        swapped = changes(objective, others, log_w)
        return swapped - jnp.mean(swapped, axis=1, keepdims=True)

    return jnp.mean(jax.vmap(given_others, in_axes=1)(log_w), axis=0)


def _noise_credit(logits: Array, z: Array, uniforms: Array) -> Array:
    """ARM: u - 1/2, for the u that makes z = 1[u > 1 - p]."""
    return jnp.where(logits > 0.0, uniforms, 1.0 - uniforms) - 0.5


def _draw_credit(logits: Array, z: Array, uniforms: Array) -> Array:
    """(z - p) p (1 - p) / (p - P(z_j = z_k = 1)) / (n - 1): the score, its loss of variance by the
    coupling made up for.
    """
    size = z.shape[1]
    rare = jax.nn.sigmoid(-jnp.abs(logits))
    # P(two draws both take the rare value)
    both = jnp.clip(2.0 * rare ** (1.0 / (size - 1)) - 1.0, 0.0) ** (size - 1)
    share = jnp.where(both > 0.0, both / jnp.where(both > 0.0, rare, 1.0), 0.0)
    scale = jax.nn.sigmoid(jnp.abs(logits)) / (1.0 - share) / (size - 1)
    # The signals of a group add up to nothing, so z minus the group's mean serves for z - p:
    # exactly 0 where all agree.
    return (z - jnp.mean(z, axis=1, keepdims=True)) * scale
