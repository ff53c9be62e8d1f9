"""The exact models at one data set each, with the oracles' evidence and posterior, and the exact
ELBO of any q.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles

import vijax as vj
from vijax import families, models
from vijax.families import FiniteSupport, log_probs, transports


class Exact(NamedTuple):
    """A model at one data set, all of its latents as one z of `family`, which contains the
    posterior.

    Attributes:
      log_joint: z -> [] log p(x, z)
      log_evidence: the oracle's
      posterior: the oracle's, as lam
      ours: () -> (log_evidence, posterior lam or None) by the model
    """

    family: vj.Family
    log_joint: Any
    log_evidence: float
    posterior: Any
    ours: Any


def normal_lam(loc, covariance):
    """Lam of `full_normal` by numpy's Cholesky factor."""
    factor = np.linalg.cholesky(covariance)
    scale = np.diag(factor)
    return {"loc": loc, "log_scale": np.log(scale), "lower": np.tril(factor / scale[:, None], -1)}


def conjugate_normal():
    rng = np.random.default_rng(0)
    model, x = models.conjugate_normal(3, noise_scale=0.7), rng.normal(size=3)
    theta = {"loc": rng.normal(size=3), "log_scale": 0.5 * rng.normal(size=3)}
    prior = np.diag(np.exp(2.0 * theta["log_scale"]))
    evidence, loc, cov = oracles.linear_gaussian(
        x, np.eye(3), np.zeros(3), 0.49 * np.eye(3), theta["loc"], prior
    )
    lam = {"loc": loc, "log_scale": 0.5 * np.log(np.diag(cov))}
    return Exact(
        families.diag_normal(3),
        lambda z: model.log_local(theta, None, z, x),
        evidence,
        lam,
        lambda: (model.log_evidence(theta, x), model.posterior(theta, x)),
    )


def linear_regression():
    rng = np.random.default_rng(1)
    model = models.linear_regression(3, noise_scale=0.6, prior_scale=1.4)
    x = {"features": rng.normal(size=(7, 3)), "label": rng.normal(size=7)}
    evidence, loc, cov = oracles.linear_gaussian(
        x["label"], x["features"], np.zeros(7), 0.36 * np.eye(7), np.zeros(3), 1.96 * np.eye(3)
    )

    def log_joint(w):
        return model.log_prior((), w) + jnp.sum(
            jax.vmap(lambda row: model.log_local((), w, None, row))(x)
        )

    return Exact(
        families.full_normal(3),
        log_joint,
        evidence,
        normal_lam(loc, cov),
        lambda: (model.log_evidence((), x), model.posterior((), x)),
    )


def probabilistic_pca():
    rng = np.random.default_rng(2)
    model, x = models.probabilistic_pca(5, 2), rng.normal(size=5)
    theta = {
        "weights": rng.normal(size=(5, 2)),
        "bias": rng.normal(size=5),
        "log_noise": np.array(-0.4),
    }
    evidence, loc, cov = oracles.linear_gaussian(
        x, theta["weights"], theta["bias"], np.exp(-0.8) * np.eye(5), np.zeros(2), np.eye(2)
    )
    return Exact(
        families.full_normal(2),
        lambda z: model.log_local(theta, None, z, x),
        evidence,
        normal_lam(loc, cov),
        lambda: (model.log_evidence(theta, x), model.posterior(theta, x)),
    )


def hierarchical_normal():
    """w and both z_i as one vector [3]: the joint posterior has correlations that no mean-field
    guide has.
    """
    model, x = (
        models.hierarchical_normal(1, prior_scale=1.3, noise_scale=0.8),
        np.array([0.4, -1.7]),
    )
    theta = {"log_scale": np.array([0.2])}
    evidence, loc, cov = oracles.hierarchical_normal(x, 1.3, np.exp(0.2), 0.8)

    def log_joint(v):
        local = jax.vmap(lambda z, row: model.log_local(theta, v[:1], z, row))(
            v[1:, None], x[:, None]
        )
        return model.log_prior(theta, v[:1]) + jnp.sum(local)

    return Exact(
        families.full_normal(3),
        log_joint,
        evidence,
        normal_lam(loc, cov),
        lambda: (model.log_evidence(theta, x[:, None]), None),
    )


def gaussian_mixture():
    rng = np.random.default_rng(3)
    model, x = models.gaussian_mixture(3, 2), rng.normal(size=2)
    theta = {
        "logits": rng.normal(size=3),
        "loc": rng.normal(size=(3, 2)),
        "log_scale": 0.3 * rng.normal(size=(3, 2)),
    }
    joint = oracles.mixture_log_joint(x[None], **theta)[0]
    return Exact(
        families.categorical(3),
        lambda z: model.log_local(theta, None, z, x),
        float(oracles.mixture_log_evidence(x[None], theta)[0]),
        {"logits": joint},
        lambda: (model.log_evidence(theta, x), model.posterior(theta, x)),
    )


def random_lam(seed, family):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape), families.lam_like(family))


def support_and_probs(family, lam):
    """Points and weights at which E_q of the log weights is exact: the support, or Gauss-Hermite
    nodes moved to q.
    """
    if finite := family.traits.get(FiniteSupport):
        z = finite.values()
        return z, jnp.exp(log_probs(family, lam, z))
    # The log weight is quadratic in z: three nodes per dimension are exact.
    nodes, weights = oracles.gauss_hermite(families.z_like(family).shape[0], 3)
    z, _ = transports(family, lam, jnp.asarray(nodes))
    return z, jnp.asarray(weights)


def exact_elbo(exact, lam):
    z, weights = support_and_probs(exact.family, lam)
    log_w = jax.vmap(exact.log_joint)(z) - log_probs(exact.family, lam, z)
    return jnp.vdot(weights, log_w)
