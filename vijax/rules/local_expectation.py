"""Sum one site of z exactly, the others drawn: local expectation gradients, and BitFlip as a
setting.
"""

import jax
import jax.numpy as jnp

from vijax.baselines import replace_one
from vijax.rules.base import draw, evaluate_at, mean_aux, rule
from vijax.rules.discrete import live_weights, site_logits, spare_key
from vijax.types import Array, Aux, Family, Key, PyTree, Requirements, Rule


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
    """
    if num_sites is not None and (not isinstance(num_sites, int) or num_sites < 1):
        raise ValueError(
            f"local_expectation(num_sites={num_sites!r}): give an int of at least 1, or None for "
            f"all sites."
        )

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        drawn = draw(key, family, jax.lax.stop_gradient(lam), num_samples)
        log_w, centre, aux = live_weights(integrand, family, lam, drawn.z, drawn.key)
        probs = jax.nn.softmax(_class_logits(family, lam))  # [D, C], live
        sites_key, value_key = jax.random.split(spare_key(key))
        sites = jax.vmap(lambda k: _choose(k, probs.shape[0], num_sites))(
            jax.random.split(sites_key, num_samples)
        )
        classes = jax.vmap(lambda z: _as_classes(family, z))(drawn.z)
        neighbours, chance = jax.vmap(lambda c, i: _neighbours(c, i, probs))(classes, sites)
        z = jax.vmap(lambda c: _from_classes(family, c, drawn.z.shape[1:]))(
            neighbours.reshape(-1, *probs.shape)
        )
        stand_in = evaluate_at(integrand, family, lam, z, value_key)[0].reshape(num_samples, -1)
        change = -jax.vmap(lambda s: replace_one(objective, log_w, s), in_axes=1, out_axes=1)(
            stand_in
        )
        # A site's own present value changes nothing, so the derivatives of the other values'
        # chances are all there is.
        change = jax.lax.stop_gradient(change).reshape(chance.shape)
        local = probs.shape[0] / sites.shape[1] * jnp.sum(chance * change)
        return objective(log_w) + centre + local - jax.lax.stop_gradient(local), Aux(
            (), mean_aux(aux)
        )

    advice = "Write score() instead."
    return rule(
        f"local_expectation({'' if num_sites is None else num_sites})",
        Requirements(
            paper="Titsias and Lazaro-Gredilla 2015" if num_sites is None else "Kunes et al. 2022",
            bernoulli=True,
            categorical=True,
            evaluations=f"K(1 + {'D' if num_sites is None else num_sites}(C-1))",
            advice=advice,
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


def _class_logits(family: Family, lam: PyTree) -> Array:
    """[D, C] logits of every site, a Bernoulli site as two classes."""
    logits = site_logits(family, lam)
    if family.bernoulli_logits is not None:
        return jnp.stack([jnp.zeros_like(logits), logits], axis=-1).reshape(-1, 2)
    return logits.reshape(-1, logits.shape[-1])


def _as_classes(family: Family, z: Array) -> Array:
    """[D, C] one-hot rows of z."""
    if family.bernoulli_logits is not None:
        return jnp.stack([1.0 - z, z], axis=-1).reshape(-1, 2)
    return z.reshape(-1, z.shape[-1])


def _from_classes(family: Family, classes: Array, shape: tuple[int, ...]) -> Array:
    """The inverse of `_as_classes`."""
    return (classes[:, 1] if family.bernoulli_logits is not None else classes).reshape(shape)
