"""Tiny problems whose bounds can be computed exactly: see exact.py."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj
from vijax import densities, families, guides, models

N = 3  # data in every problem
ROWS = (2, 0)  # the minibatch


class Problem(NamedTuple):
    """A model, a guide and data.

    Attributes:
      x: numpy, leaves [N, ...]
      nodes: quadrature points per normal dimension
    """

    name: str
    model: vj.Model
    guide: vj.Guide
    x: Any
    nodes: int


def log_normal(x, loc, log_scale):
    return jnp.sum(densities.normal(x, loc, log_scale))


def linear_encoder(num_outputs, num_inputs):
    """An (init, apply) pair: a flat vector, linear in the datum."""
    return (
        lambda key: {
            "matrix": jax.random.normal(key, (num_outputs, num_inputs)),
            "bias": jnp.zeros(num_outputs),
        },
        lambda params, x: params["matrix"] @ jnp.atleast_1d(x) + params["bias"],
    )


def generic(like):
    """Numbers for every leaf of a tree of shapes, so that nothing sits at a special point by
    accident.
    """
    random = np.random.default_rng(6)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.25 * random.normal(size=leaf.shape), jnp.result_type(float)),
        like,
    )


NORMAL_X = np.array([0.3, -1.1, 1.6])
PAIR_X = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def normal() -> Problem:
    """z ~ Normal(prior), x ~ Normal(weight z + bias, 0.7); conjugate; a table of phi_i."""

    def init(key):
        return {
            "prior": {"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)},
            "weight": jnp.ones(()),
            "bias": jnp.zeros(()),
        }

    def log_lik(theta, z, x):
        return log_normal(x, theta["weight"] * z[0] + theta["bias"], np.log(0.7))

    family = families.diag_normal(1)
    prior = vj.Prior(family, lambda theta: theta["prior"])
    model = models.latent_model(init, log_lik=log_lik, prior=prior)
    return Problem("normal", model, guides.per_datapoint(family, N), NORMAL_X, 24)


def full() -> Problem:
    """z ~ Normal(0, I_2), x in {0, 1}^2 with logits W z; a full covariance from an encoder."""

    def log_joint(theta, z, x):
        return log_normal(z, 0.0, 0.0) + jnp.sum(densities.bernoulli(x, theta["weights"] @ z))

    model = models.latent_model(lambda key: {"weights": jnp.eye(2)}, log_joint)
    return Problem(
        "full", model, guides.amortized(families.full_normal(2), linear_encoder(8, 2)), PAIR_X, 16
    )


def binary() -> Problem:
    """b in {0, 1}^3 with a random table f of its 8 states; an encoder."""

    def init(key):
        return {"prior": {"logits": jnp.zeros(3)}, "table": jax.random.normal(key, (2, 2, 2))}

    def log_lik(theta, b, x):
        state = b.astype(int)
        return theta["table"][state[0], state[1], state[2]] * x

    family = families.bernoulli(3)
    prior = vj.Prior(family, lambda theta: theta["prior"])
    model = models.latent_model(init, log_lik=log_lik, prior=prior)
    return Problem("binary", model, guides.amortized(family, linear_encoder(3, 1)), NORMAL_X, 0)


def classes() -> Problem:
    """A 4-class z, x ~ Normal(location of its class, 1); a table of phi_i."""

    def log_joint(theta, z, x):
        return jnp.sum(densities.categorical(z, theta["logits"])) + log_normal(
            x, z @ theta["locs"], 0.0
        )

    model = models.latent_model(
        lambda key: {"logits": jnp.zeros(4), "locs": jnp.arange(4) - 1.5}, log_joint
    )
    return Problem("classes", model, guides.per_datapoint(families.categorical(4), N), NORMAL_X, 0)


def mixture() -> Problem:
    """A class c and a normal z given c: blocks that can have different rules."""

    def log_joint(theta, latent, x):
        prior = jnp.sum(densities.categorical(latent["c"], theta["logits"]))
        return (
            prior
            + log_normal(latent["z"], latent["c"] @ theta["locs"], 0.0)
            + log_normal(x, latent["z"][0], -0.3)
        )

    family = families.product(c=families.categorical(2), z=families.diag_normal(1))
    model = models.latent_model(
        lambda key: {"logits": jnp.zeros(2), "locs": jnp.array([-1.0, 1.0])}, log_joint
    )
    return Problem("mixture", model, guides.per_datapoint(family, N), NORMAL_X, 16)


def two_layers() -> Problem:
    """z1 ~ Normal(0, 1), z2 ~ Normal(a z1, 1), x ~ Normal(z2, 1), with q(z1) q(z2 | z1)."""

    def log_joint(theta, z, x):
        layers = log_normal(z["first"], 0.0, 0.0) + log_normal(
            z["second"], theta["slope"] * z["first"], 0.0
        )
        return layers + log_normal(x, z["second"][0], 0.0)

    model = models.latent_model(lambda key: {"slope": jnp.full((), 0.8)}, log_joint)
    return Problem("two_layers", model, guides.per_datapoint(normal_chain(), N), NORMAL_X, 12)


def normal_chain() -> vj.Family:
    """Normal z1, and z2 whose mean is affine in z1."""

    def locate(lam, z1):
        return {"loc": lam["slope"] * z1 + lam["loc"], "log_scale": lam["log_scale"]}

    def init(key):
        return {"slope": jnp.zeros(1), "loc": jnp.zeros(1), "log_scale": jnp.zeros(1)}

    return families.chain(
        ("first", families.diag_normal(1)), ("second", families.diag_normal(1)), locate, init
    )


def regression() -> Problem:
    """Bayesian logistic regression with a global w in R^2 and a learned prior."""
    family = families.diag_normal(2)

    def init(key):
        return {"loc": jnp.zeros(2), "log_scale": jnp.zeros(2)}

    model = models.bayes_model(
        vj.Prior(family, lambda theta: theta),
        lambda theta, w, x: densities.bernoulli(x["y"], x["features"] @ w),
        init=init,
    )
    return Problem(
        "regression",
        model,
        guides.shared(family),
        {"features": PAIR_X, "y": np.array([1.0, 0.0, 1.0])},
        10,
    )


def global_normal() -> Problem:
    """A normal global w over two local bits whose logits depend on it."""

    def log_local(theta, w, z, x):
        return jnp.sum(densities.bernoulli(z, theta["weights"] * w)) + log_normal(
            x, jnp.sum(z) - w[0], 0.0
        )

    model = models.hierarchical_model(
        lambda theta, w: log_normal(w, 0.0, 0.0),
        log_local,
        init=lambda key: {"weights": jnp.array([0.5, -1.0])},
    )
    local = guides.amortized(families.bernoulli(2), linear_encoder(2, 1))
    return Problem(
        "global_normal",
        model,
        guides.hierarchical(w=guides.shared(families.diag_normal(1)), z=local),
        NORMAL_X,
        24,
    )


def global_bits() -> Problem:
    """One global bit w over a local normal z."""

    def log_local(theta, w, z, x):
        return log_normal(z, theta["loc"] * w, 0.0) + log_normal(x, z[0], 0.0)

    model = models.hierarchical_model(
        lambda theta, w: jnp.sum(densities.bernoulli(w, theta["logits"])),
        log_local,
        init=lambda key: {"logits": jnp.zeros(1), "loc": jnp.ones(1)},
    )
    local = guides.per_datapoint(families.diag_normal(1), N)
    return Problem(
        "global_bits",
        model,
        guides.hierarchical(w=guides.shared(families.bernoulli(1)), z=local),
        NORMAL_X,
        21,
    )


def batch_of(problem: Problem, rows=ROWS) -> vj.Batch:
    index = np.array(rows, np.int32)
    return vj.Batch(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float))[index], problem.x),
        jnp.asarray(index),
    )
