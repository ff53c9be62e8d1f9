"""Families on finite sets: Bernoulli and categorical vectors."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vijax import densities
from vijax.families.base import family, replace_each
from vijax.types import Array, Family, Key, PyTree, Scalar, WeakDerivative


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

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> WeakDerivative:
        on, off = replace_each(z, jnp.ones_like(z)), replace_each(z, jnp.zeros_like(z))
        probs = jax.nn.sigmoid(lam["logits"])
        return WeakDerivative(
            {"logits": on}, {"logits": off}, {"logits": probs * jax.nn.sigmoid(-lam["logits"])}
        )

    def entropy(lam: PyTree) -> Scalar:
        return -jnp.sum(densities.bernoulli(jax.nn.sigmoid(lam["logits"]), lam["logits"]))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        mean = jax.nn.sigmoid(lam["logits"])
        return jnp.sum(
            densities.bernoulli(mean, lam["logits"]) - densities.bernoulli(mean, lam2["logits"])
        )

    def support() -> Array:
        return jnp.asarray(
            np.array(list(itertools.product((0.0, 1.0), repeat=dim))), dtype=jnp.result_type(float)
        )

    return family(
        f"bernoulli({dim})",
        init=init,
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        entropy=entropy,
        kl=kl,
        support=support,
        support_size=2**dim,
        bernoulli_logits=lambda lam: lam["logits"],
        num_uniforms=dim,
        from_uniform=lambda u: u,
        weak_derivative=weak_derivative,
    )


def categorical(num_classes: int, num_sites: int | None = None) -> Family:
    """Categorical variables as one-hot vectors of floats: one, z [C], or `num_sites` independent
    ones, z [D, C].

    lam: `logits` of z's shape, up to a constant per site. The support has C (C^D) points.
    """
    if num_classes < 2 or (num_sites is not None and num_sites < 1):
        raise ValueError(
            f"categorical({num_classes}, num_sites={num_sites}): at least 2 classes and 1 site "
            f"are needed."
        )
    shape = (num_classes,) if num_sites is None else (num_sites, num_classes)

    def init(key: Key) -> PyTree:
        return {"logits": 0.01 * jax.random.normal(key, shape)}

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.gumbel(key, (num_samples, *shape))

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        chex.assert_shape(z, shape)
        return jnp.sum(densities.categorical(z, lam["logits"]))

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        z = jax.nn.one_hot(
            jnp.argmax(lam["logits"] + noise, axis=-1), num_classes, dtype=noise.dtype
        )
        return z, log_prob(lam, z)

    def entropy(lam: PyTree) -> Scalar:
        return -jnp.sum(densities.categorical(jax.nn.softmax(lam["logits"]), lam["logits"]))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        probs = jax.nn.softmax(lam["logits"])
        return jnp.sum(
            densities.categorical(probs, lam["logits"])
            - densities.categorical(probs, lam2["logits"])
        )

    def support() -> Array:
        # [S, D]
        classes = np.array(list(itertools.product(range(num_classes), repeat=num_sites or 1)))
        return jax.nn.one_hot(classes, num_classes, dtype=jnp.result_type(float)).reshape(
            -1, *shape
        )

    sizes = f"{num_classes}" if num_sites is None else f"{num_classes}, num_sites={num_sites}"
    return family(
        f"categorical({sizes})",
        init=init,
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        entropy=entropy,
        kl=kl,
        support=support,
        support_size=num_classes ** (num_sites or 1),
        categorical_logits=lambda lam: lam["logits"],
        num_uniforms=math.prod(shape),
        from_uniform=lambda u: -jnp.log(-jnp.log(u)).reshape(shape),
    )
