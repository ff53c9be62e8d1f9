"""Families on finite sets: Bernoulli and categorical vectors."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vijax import densities, supports
from vijax.families.base import as_shape, family, replace_each, sized, uniform_noise, vector_only
from vijax.families.kinds import BernoulliSites, CategoricalSites, Pairs, WeakDerivative
from vijax.families.traits import Entropy, Kl, Moments, Natural, finite_support
from vijax.types import Array, Family, Key, PyTree, Scalar


def bernoulli(size: int | tuple[int, ...]) -> Family:
    """Independent Bernoulli variables, z in {0, 1}^D as floats.

    lam: `logits` [D]. z: [D]. The support has 2^D points.

    Args:
      size: D, or the shape of z and of the logits: `(3, 2)`, or `()` for one bit.
    """
    shape = as_shape("bernoulli", size)
    total = math.prod(shape)

    def init(key: Key) -> PyTree:
        return {"logits": 0.01 * jax.random.normal(key, shape)}

    def noise(key: Key, num_samples: int) -> Array:
        return jax.random.uniform(key, (num_samples, *shape))

    def log_prob(lam: PyTree, z: Array) -> Scalar:
        return jnp.sum(densities.bernoulli(z, lam["logits"]))

    def transport(lam: PyTree, noise: Array) -> tuple[Array, Scalar]:
        z = (noise < jax.nn.sigmoid(lam["logits"])).astype(noise.dtype)
        return z, log_prob(lam, z)

    def weak_derivative(key: Key, lam: PyTree, z: Array) -> Pairs:
        on, off = replace_each(z, jnp.ones_like(z)), replace_each(z, jnp.zeros_like(z))
        probs = jax.nn.sigmoid(lam["logits"])
        return Pairs(
            {"logits": on}, {"logits": off}, {"logits": probs * jax.nn.sigmoid(-lam["logits"])}
        )

    def entropy(lam: PyTree) -> Scalar:
        return -jnp.sum(densities.bernoulli(jax.nn.sigmoid(lam["logits"]), lam["logits"]))

    def kl(lam: PyTree, lam2: PyTree) -> Scalar:
        mean = jax.nn.sigmoid(lam["logits"])
        return jnp.sum(
            densities.bernoulli(mean, lam["logits"]) - densities.bernoulli(mean, lam2["logits"])
        )

    def values() -> Array:
        every = np.array(list(itertools.product((0.0, 1.0), repeat=total)))
        return jnp.asarray(every.reshape(-1, *shape), dtype=jnp.result_type(float))

    def natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
        fisher = jax.nn.sigmoid(lam["logits"]) * jax.nn.sigmoid(-lam["logits"])
        fisher = jnp.maximum(fisher, jnp.finfo(fisher.dtype).tiny)
        return {"logits": lam["logits"] + rate * slope["logits"] / fisher}

    def mean(lam: PyTree) -> Array:
        return jax.nn.sigmoid(lam["logits"])

    return family(
        sized("bernoulli", shape),
        init=init,
        support=supports.binary(*shape),
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        traits=[
            Entropy(entropy),
            Kl(kl),
            Moments(mean, lambda lam: mean(lam) * jax.nn.sigmoid(-lam["logits"])),
            finite_support(values, 2**total),
            vector_only(shape, BernoulliSites(lambda lam: lam["logits"])),
            Natural(natural_step),
            uniform_noise(shape, lambda uniforms: uniforms),
            WeakDerivative(weak_derivative),
        ],
    )


def categorical(num_classes: int, num_sites: int | None = None) -> Family:
    """Categorical variables as one-hot vectors of floats: one, z [C], or `num_sites` independent
    ones, z [D, C].

    lam: `logits` of z's shape, up to a constant per site. The support has C (C^D) points.

    Raises:
      ValueError: if there are fewer than 2 classes or 1 site.
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

    def values() -> Array:
        # [S, D]
        classes = np.array(list(itertools.product(range(num_classes), repeat=num_sites or 1)))
        return jax.nn.one_hot(classes, num_classes, dtype=jnp.result_type(float)).reshape(
            -1, *shape
        )

    def natural_step(lam: PyTree, slope: PyTree, rate: Array) -> PyTree:
        prob = jnp.maximum(jax.nn.softmax(lam["logits"]), jnp.finfo(lam["logits"].dtype).tiny)
        return {"logits": lam["logits"] + rate * slope["logits"] / prob}

    def mean(lam: PyTree) -> Array:
        return jax.nn.softmax(lam["logits"])

    sizes = f"{num_classes}" if num_sites is None else f"{num_classes}, num_sites={num_sites}"
    return family(
        f"categorical({sizes})",
        init=init,
        support=supports.one_hot(*shape),
        log_prob=log_prob,
        noise=noise,
        transport=transport,
        traits=[
            Entropy(entropy),
            Kl(kl),
            Moments(mean, lambda lam: mean(lam) * (1.0 - mean(lam))),
            finite_support(values, num_classes ** (num_sites or 1)),
            CategoricalSites(lambda lam: lam["logits"]),
            Natural(natural_step),
            uniform_noise(shape, lambda u: -jnp.log(-jnp.log(u))),
        ],
    )
