"""Exact gradients of the ELBO's loss on the problems that have one: closed forms, quadrature,
enumeration.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj
from vijax.families import Kl, need
from vijax.types import Array, Scalar

Exact = Callable[[vj.Params], vj.Params | None]
"""Params -> gradient of the loss there; None where it is not known."""


def conjugate(model: vj.Model, family: vj.Family, x: Array) -> Exact:
    """Of a model with one latent per datum whose evidence and posterior are known."""
    evidence, posterior = model.log_evidence, model.posterior
    assert evidence is not None and posterior is not None
    divergence = need(family, Kl).value

    def loss(params: vj.Params) -> Scalar:
        """Minus the sum of log p(x_i) - KL(q_i || posterior_i)."""

        def one(lam: Any, x: Array) -> Scalar:
            return divergence(lam, posterior(params.theta, x)) - evidence(params.theta, x)

        return jnp.sum(jax.vmap(one)(params.phi["z"], x))

    return jax.grad(loss)


def logistic(family: vj.Family, features: Array, label: Array) -> Exact:
    """Of logistic regression under independent normals. The likelihood of a datum sees w only
    through one normal number, so one dimension is integrated over.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    points = jnp.asarray(nodes, jnp.float32)[None, :]
    weights = jnp.asarray(weights / weights.sum(), jnp.float32)
    divergence = need(family, Kl).value

    def loss(params: vj.Params) -> Scalar:
        lam = params.phi["w"]
        spread = jnp.sqrt(jnp.square(features) @ jnp.square(jnp.exp(lam["log_scale"])))
        logits = (features @ lam["loc"])[:, None] + spread[:, None] * points
        log_lik = vj.densities.bernoulli(label[:, None], logits)
        prior = jax.tree.map(jnp.zeros_like, lam)
        return divergence(lam, prior) - jnp.sum(log_lik @ weights)

    return jax.grad(loss)


def enumerated(model: vj.Model, guide: vj.Guide, x: Array) -> Exact:
    """Of a model with few states per datum, by the rule that sums over all of them."""
    exact = vj.estimator(model, guide, rules=vj.rules.enumerated(), num_data=len(x))
    batch = vj.Batch(x, jnp.arange(len(x)))

    def gradient(params: vj.Params) -> vj.Params:
        place, unused = params._replace(control={"z": ()}), jax.random.key(0)
        state = exact.init(unused, place)
        return jax.jit(exact.estimate)(unused, place, state, batch)[0].grads

    return gradient


def hierarchical(x: Array) -> Exact:
    """Of a normal mean over normal local latents, both with independent normal q."""

    def expected(mean: Array, variance: Array, log_scale: Array) -> Scalar:
        """E of a normal log density whose argument less its mean has this mean and variance,
        summed.
        """
        return jnp.sum(
            -0.5 * vj.densities.LOG_2PI
            - log_scale
            - 0.5 * (mean**2 + variance) * jnp.exp(-2.0 * log_scale)
        )

    def entropy(lam: Any) -> Scalar:
        return jnp.sum(lam["log_scale"] + 0.5 * (vj.densities.LOG_2PI + 1.0))

    def loss(params: vj.Params) -> Scalar:
        w, z, log_scale = params.phi["w"], params.phi["z"], params.theta["log_scale"]
        var_w, var_z = jnp.exp(2.0 * w["log_scale"]), jnp.exp(2.0 * z["log_scale"])
        spread = jnp.broadcast_to(log_scale, z["loc"].shape)
        between = expected(z["loc"] - w["loc"][None], var_z + var_w[None], spread)
        prior = expected(w["loc"], var_w, jnp.zeros_like(var_w))
        data = expected(x - z["loc"], var_z, jnp.zeros_like(var_z))
        return -(prior + between + data + entropy(w) + entropy(z))

    return jax.grad(loss)


def only_at(params: vj.Params, gradient: vj.Params) -> Exact:
    """A gradient that is known at these params alone."""

    def exact(where: vj.Params) -> vj.Params | None:
        mine, theirs = params._replace(control=()), where._replace(control=())
        same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), theirs, mine)
        return gradient if all(jax.tree.leaves(same)) else None

    return exact
