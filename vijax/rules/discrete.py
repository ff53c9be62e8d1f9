"""What the rules for Bernoulli and categorical sites share: logits and means, sites as one-hot
classes, samples exchanged for others.
"""

import jax
import jax.numpy as jnp

from vijax.baselines import replace_one
from vijax.families import BernoulliSites, CategoricalSites, need
from vijax.types import Array, Family, Key, Objective, PyTree


def site_logits(family: Family, lam: PyTree) -> Array:
    """The logits of z's shape: [D] for a Bernoulli vector, [C] or [D, C] for categorical sites."""
    kind = BernoulliSites if _is_binary(family) else CategoricalSites
    return need(family, kind).logits(lam)


def site_mean(family: Family, logits: Array) -> Array:
    """E[z], of z's shape; dlog q(z)/dlogits is z minus it."""
    return jax.nn.sigmoid(logits) if _is_binary(family) else jax.nn.softmax(logits)


def class_logits(family: Family, lam: PyTree) -> Array:
    """Logits [..., C]; a Bernoulli vector is [D, 2] with logits 0 and eta."""
    logits = site_logits(family, lam)
    if _is_binary(family):
        return jnp.stack([jnp.zeros_like(logits), logits], axis=-1)
    return logits


def class_noise(key: Key, family: Family, lam: PyTree, num_samples: int) -> Array:
    """Noise [K, ..., C] for which argmax(logits + noise) is a draw of q: Gumbel, up to a constant
    per site.
    """
    shape = (num_samples, *site_logits(family, lam).shape)
    if not _is_binary(family):
        return jax.random.gumbel(key, shape)
    uniform = jax.random.uniform(key, shape)
    logistic = jnp.log1p(-uniform) - jnp.log(jnp.maximum(uniform, jnp.finfo(uniform.dtype).tiny))
    return jnp.stack([jnp.zeros_like(logistic), logistic], axis=-1)


def to_classes(family: Family, z: Array) -> Array:
    """One-hot classes [..., C] of z; the inverse of `from_classes`."""
    return jnp.stack([1.0 - z, z], axis=-1) if _is_binary(family) else z


def from_classes(family: Family, classes: Array) -> Array:
    """The latent out of class weights [..., C]: themselves, or the weight of 1 for a Bernoulli
    vector.
    """
    return classes[..., 1] if _is_binary(family) else classes


def changes(objective: Objective, log_w: Array, stand_ins: Array) -> Array:
    """[K, P] what it changes in the objective to exchange sample k's log-weight for each of its
    stand-ins [K, P]; no derivative flows through it.
    """
    fixed = jax.lax.stop_gradient(log_w)

    def change(stand_in: Array) -> Array:
        return -replace_one(objective, fixed, stand_in)

    return jax.vmap(change, in_axes=1, out_axes=1)(jax.lax.stop_gradient(stand_ins))


def _is_binary(family: Family) -> bool:
    return family.traits.get(BernoulliSites) is not None
