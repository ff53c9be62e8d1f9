"""Sigmoid belief networks: layers of binary latents, and the matching recognition network."""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from vijax import densities
from vijax.families import bernoulli, chain
from vijax.guides import amortized
from vijax.inference import Guide, Model, Prior
from vijax.models.base import latent_model
from vijax.models.data import check_unit
from vijax.types import Array, Family, Key, PyTree, Scalar


def sigmoid_belief_net(num_pixels: int, sizes: Sequence[int] = (200,), *, hidden: int = 0) -> Model:
    """Sigmoid belief network with one or two layers of binary latents. Neal 1992; Mnih and Gregor
    2014, section 4.

    top ~ Bernoulli(sigmoid(bias)); every lower layer, and x, ~ Bernoulli(sigmoid(net(2 above -
    1))).

    z: [H1] for one layer, {"h1": [H1], "h2": [H2]} for two, h1 next to the data.
    x: [P] in {0, 1}.

    Args:
      num_pixels: P.
      sizes: (H1,) or (H1, H2).
      hidden: width of two tanh layers inside each net (the "nonlinear" variant); 0 for linear nets.
    """
    _check_sizes(sizes)
    widths = (*reversed(sizes), num_pixels)  # top to bottom

    def init(key: Key) -> PyTree:
        keys = jax.random.split(key, len(sizes))
        nets = [
            init_net(k, a, b, hidden) for k, a, b in zip(keys, widths[:-1], widths[1:], strict=True)
        ]
        return {"top": jnp.zeros(sizes[-1]), "nets": nets}

    def given_above(net: PyTree, above: Array, below: Array) -> Scalar:
        return jnp.sum(densities.bernoulli(below, apply_net(net, 2.0 * above - 1.0)))

    def log_lik(theta: PyTree, z: Array, x: Array) -> Scalar:
        chex.assert_shape(x, (num_pixels,))
        return given_above(theta["nets"][0], z, x)

    def log_joint(theta: PyTree, z: PyTree, x: Array) -> Scalar:
        chex.assert_shape(x, (num_pixels,))
        upper, lower = theta["nets"]
        log_top = jnp.sum(densities.bernoulli(z["h2"], theta["top"]))
        return log_top + given_above(upper, z["h2"], z["h1"]) + given_above(lower, z["h1"], x)

    def simulate(key: Key, theta: PyTree, num_data: int) -> tuple[PyTree, Array]:
        def one(key: Key) -> list[Array]:
            keys = jax.random.split(key, len(widths))
            drawn = [_flip(keys[0], theta["top"])]
            for net, k in zip(theta["nets"], keys[1:], strict=True):
                drawn.append(_flip(k, apply_net(net, 2.0 * drawn[-1] - 1.0)))
            return drawn

        *layers, x = jax.vmap(one)(jax.random.split(key, num_data))
        return (layers[0] if len(sizes) == 1 else {"h2": layers[0], "h1": layers[1]}), x

    def check(x: Array) -> None:
        check_unit(x, "sigmoid_belief_net: pixels")

    if len(sizes) == 2:
        return latent_model(init, log_joint, simulate=simulate, check=check)
    prior = Prior(bernoulli(sizes[0]), lambda theta: {"logits": theta["top"]})
    return latent_model(init, log_lik=log_lik, prior=prior, simulate=simulate, check=check)


def recognition_net(
    num_pixels: int, sizes: Sequence[int] = (200,), *, hidden: int = 0, mean: Array | float = 0.5
) -> Guide:
    """The guide of a `sigmoid_belief_net`: q(h1 | x), and q(h2 | h1) for two layers, with nets of
    the same kind.

    Args:
      mean: subtracted from x, a number or [P]; the pixels' mean speeds learning up (Mnih and Gregor
        2014).
    """
    _check_sizes(sizes)

    def init(key: Key) -> PyTree:
        keys = jax.random.split(key, len(sizes))
        return [
            init_net(k, a, b, hidden)
            for k, a, b in zip(keys, (num_pixels, *sizes), sizes, strict=False)
        ]

    def first(phi: PyTree, x: Array) -> PyTree:
        return {"logits": apply_net(phi[0], x - mean)}

    if len(sizes) == 1:
        return amortized(bernoulli(sizes[0]), (init, first))
    family: Family = chain(
        ("h1", bernoulli(sizes[0])),
        ("h2", bernoulli(sizes[1])),
        lambda net, h1: {"logits": apply_net(net, 2.0 * h1 - 1.0)},
        lambda key: init_net(key, sizes[0], sizes[1], hidden),
    )
    # The second net's weights are themselves the chain's parameters for h2: they pass through, the
    # same for every datum.
    return amortized(family, (init, lambda phi, x: {"h1": first(phi, x), "h2": phi[1]}))


def init_net(key: Key, num_in: int, num_out: int, hidden: int) -> PyTree:
    """Weights and biases of a linear map, or of two tanh layers and a linear one: a list of
    (weights [out, in], bias [out]).
    """
    widths = (num_in, hidden, hidden, num_out) if hidden else (num_in, num_out)
    return [
        (jax.random.normal(k, (b, a)) / math.sqrt(a), jnp.zeros(b))
        for k, a, b in zip(
            jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True
        )
    ]


def apply_net(net: PyTree, x: Array) -> Array:
    """[in] -> [out]."""
    *inner, (weights, bias) = net
    for w, b in inner:
        x = jnp.tanh(w @ x + b)
    return weights @ x + bias


def _flip(key: Key, logits: Array) -> Array:
    return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)


def _check_sizes(sizes: Sequence[int]) -> None:
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError(
            f"sizes={tuple(sizes)}: a sigmoid belief net here has one or two layers of at least "
            f"one unit."
        )
