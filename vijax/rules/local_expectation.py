"""Sum one site of z exactly, the others drawn: local expectation gradients, and BitFlip as a
setting.
"""

import jax
import jax.numpy as jnp

from vijax.families import BernoulliSites, CategoricalSites, Density, log_probs
from vijax.rules.base import (
    draw,
    evaluate_at,
    live_weights,
    minus_direct_term,
    no_aux,
    rule,
    spare_key,
    stopped,
    zero_valued,
)
from vijax.rules.discrete import changes, class_logits, from_classes, to_classes
from vijax.types import Array, Aux, Integrand, Key, Q, Requirements, Rule, Scalar, Setting


def local_expectation(num_sites: int | None = None) -> Rule:
    """Per site of z, the exact expectation over its values given the other sites' draw. Titsias and
    Lazaro-Gredilla 2015.

    For Bernoulli sites p_i (1 - p_i) (f(z_i = 1) - f(z_i = 0)): also the conditional measure-valued
    gradient, and BitFlip Rao-Blackwellised. For objectives other than the ELBO, f is the objective
    with this sample's entry exchanged.

    Args:
      num_sites: None for all; else so many, drawn without replacement for each sample and scaled
        up. 1 is BitFlip-1 (Kunes et al. 2022).

    Unbiased for: the gradient of E[objective(log_w)], any objective, in theta and phi.
    Requires:     independent Bernoulli or one-hot categorical sites with logits.
    State:        none.
    Cost:         K (1 + n (C - 1)) evaluations of the integrand per datum for n sites of C classes,
                  no derivative in z.

    Raises:
      ValueError: if num_sites is below 1.
    """
    if num_sites is not None and (not isinstance(num_sites, int) or num_sites < 1):
        raise ValueError(
            f"local_expectation(num_sites={num_sites!r}): give an int of at least 1, or None for "
            f"all sites."
        )

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        objective, num_samples = setting.objective, setting.num_samples
        drawn = draw(key, stopped(q), num_samples)
        log_q = log_probs(q.family, q.lam, drawn.z)
        log_w, slope, aux = live_weights(integrand, drawn._replace(log_q=log_q))
        logits = class_logits(q.family, q.lam)
        probs = jax.nn.softmax(logits).reshape(-1, logits.shape[-1])  # [D, C], live
        sites_key, value_key = jax.random.split(spare_key(key))
        sites = jax.vmap(lambda k: _choose(k, probs.shape[0], num_sites))(
            jax.random.split(sites_key, num_samples)
        )
        classes = to_classes(q.family, drawn.z).reshape(num_samples, *probs.shape)
        neighbours, chance = jax.vmap(lambda c, i: _neighbours(c, i, probs))(classes, sites)
        z = from_classes(q.family, neighbours.reshape(-1, *logits.shape))
        stand_ins = evaluate_at(integrand, q, z, value_key)[0].reshape(num_samples, -1)
        change = changes(objective, log_w, stand_ins).reshape(chance.shape)
        # A site's own present value changes nothing, so the derivatives of the other values'
        # chances are all there is.
        local = probs.shape[0] / sites.shape[1] * jnp.sum(chance * change)
        value = objective.value(log_w) + minus_direct_term(slope, log_q)
        return value + zero_valued(local), no_aux(aux)

    return rule(
        f"local_expectation({'' if num_sites is None else num_sites})",
        Requirements(
            needs=(Density,),
            any_of=(BernoulliSites, CategoricalSites),
            evaluations=f"K(1 + {'D' if num_sites is None else num_sites}(C-1))",
            paper="Titsias and Lazaro-Gredilla 2015" if num_sites is None else "Kunes et al. 2022",
            advice="Write score() instead.",
        ),
        surrogate,
    )


def _choose(key: Key, total: int, num_sites: int | None) -> Array:
    """[n] sites, without replacement."""
    if num_sites is None or num_sites >= total:
        return jnp.arange(total)
    return jax.random.permutation(key, total)[:num_sites]


def _neighbours(classes: Array, sites: Array, probs: Array) -> tuple[Array, Array]:
    """The draw with one of the sites [n] moved to another class: one-hot [n, C-1, D, C], and its
    probability [n, C-1].
    """
    shifts = jnp.arange(1, classes.shape[1])
    # [n, C-1, C]
    moved = jax.vmap(lambda shift: jnp.roll(classes[sites], shift, axis=-1), out_axes=1)(shifts)
    at_site = jax.vmap(lambda site, rows: jax.vmap(lambda row: classes.at[site].set(row))(rows))
    return at_site(sites, moved), jnp.einsum("nsc,nc->ns", moved, probs[sites])
