"""Families on finite sets: Bernoulli and categorical vectors."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vijax import densities
from vijax.families.base import family
from vijax.types import Array, Family, Key, PyTree, Scalar


def bernoulli(dim: int) -> Family:
    """Independent Bernoulli variables, z in {0, 1}^dim as floats.

    lam: `logits` [D]. z: [D]. The support has 2^D points.
    """
    if dim < 1:
        raise ValueError(f"bernoulli(dim={dim}): dim must be at least 1.")

    def init(key: Key) -> PyTree:
        return {"logits": 0.01 * jax.random.normal(key, (dim,))}

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.uniform(key, (num_samples, dim))

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (dim,))
        return jnp.sum(densities.bernoulli(z, lam["logits"]))

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        z = (noise < jax.nn.sigmoid(lam["logits"])).astype(noise.dtype)
        return z, log_prob(lam, z)

    def entropy(lam: PyTree) -> Scalar:
        return -jnp.sum(densities.bernoulli(jax.nn.sigmoid(lam["logits"]), lam["logits"]))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        mean = jax.nn.sigmoid(lam["logits"])
        return jnp.sum(densities.bernoulli(mean, lam["logits"]) - densities.bernoulli(mean, lam2["logits"]))

    def support() -> Array:
        return jnp.asarray(np.array(list(itertools.product((0.0, 1.0), repeat=dim))), dtype=jnp.result_type(float))

    return family(
        f"bernoulli({dim})", init=init, log_prob=log_prob, noise=noise, transport=transport, entropy=entropy, kl=kl,
        support=support, support_size=2**dim, logits=lambda lam: lam["logits"],
    )  # fmt: skip


def categorical(num_classes: int) -> Family:
    """One categorical variable, z a one-hot vector of floats.

    lam: `logits` [C], up to a constant. z: [C]. The support has C points. For several, use `product`.
    """
    if num_classes < 2:
        raise ValueError(f"categorical(num_classes={num_classes}): at least 2 classes are needed.")

    def init(key: Key) -> PyTree:
        return {"logits": 0.01 * jax.random.normal(key, (num_classes,))}

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.gumbel(key, (num_samples, num_classes))

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, (num_classes,))
        return densities.categorical(z, lam["logits"])

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        z = jax.nn.one_hot(jnp.argmax(lam["logits"] + noise), num_classes, dtype=noise.dtype)
        return z, log_prob(lam, z)

    def entropy(lam: PyTree) -> Scalar:
        return -densities.categorical(jax.nn.softmax(lam["logits"]), lam["logits"])

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        probs = jax.nn.softmax(lam["logits"])
        return densities.categorical(probs, lam["logits"]) - densities.categorical(probs, lam2["logits"])

    return family(
        f"categorical({num_classes})", init=init, log_prob=log_prob, noise=noise, transport=transport, entropy=entropy,
        kl=kl, support=lambda: jnp.eye(num_classes), support_size=num_classes, logits=lambda lam: lam["logits"],
    )  # fmt: skip
