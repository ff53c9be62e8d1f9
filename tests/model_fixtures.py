"""Every model at one theta, and what scipy says of its densities. A new model is one entry in
`MODELS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import special, stats

import vijax as vj
from vijax import models


class ModelFixture(NamedTuple):
    """A model and what the batteries need to know of it; log-densities are scipy's.

    Attributes:
      log_prior: w -> log p(w), of a global latent.
      log_local: (w, z) -> log p(z | w), of a local one.
      log_lik: (w, z, x) -> log p(x | z, w).
      w: four values of a global latent to look at.
      x: one datum; None: simulated ones.
      stated: latents whose prior the model states as a family.
    """

    model: vj.Model
    theta: Any
    log_lik: Callable
    log_prior: Callable | None = None
    log_local: Callable | None = None
    w: Any = None
    x: Any = None
    stated: tuple[str, ...] = ()


RNG = np.random.default_rng(0)
PCA = {"weights": RNG.normal(size=(4, 2)), "bias": RNG.normal(size=4), "log_noise": np.array(-0.3)}
MIXTURE = {
    "logits": RNG.normal(size=3),
    "loc": RNG.normal(size=(3, 2)),
    "log_scale": 0.3 * RNG.normal(size=(3, 2)),
}
FACTORS = {
    "logits": RNG.normal(size=2),
    "weights": RNG.normal(size=(2, 3, 1)),
    "bias": RNG.normal(size=(2, 3)),
    "log_noise": np.array(-0.2),
}
NORMAL = {"loc": RNG.normal(size=2), "log_scale": 0.3 * RNG.normal(size=2)}
SPREAD = {"log_scale": np.array([0.3, -0.2])}
FEATURES = {"features": RNG.normal(size=3), "label": np.array(1.0)}
STUDY = jax.tree.map(lambda leaf: leaf[0], models.eight_schools_data())
DECODER = {"weights": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=3)}
ONE_LAYER = {"top": RNG.normal(size=2), "nets": [[(RNG.normal(size=(3, 2)), RNG.normal(size=3))]]}
TWO_LAYERS = {
    "top": RNG.normal(size=2),
    "nets": [
        [(RNG.normal(size=(2, 2)), RNG.normal(size=2))],
        [(RNG.normal(size=(3, 2)), RNG.normal(size=3))],
    ],
}


def points(dim):
    return np.random.default_rng(2).normal(size=(4, dim))


def log_normal(x, loc, scale):
    return stats.norm.logpdf(x, loc, scale).sum()


def log_bits(x, logits):
    return stats.bernoulli.logpmf(x, special.expit(logits)).sum()


def linear(net, above):
    """The logits of a belief net's layer given the bits above it."""
    ((weights, bias),) = net
    return weights @ (2.0 * above - 1.0) + bias


def mixtures():
    """Weights and means of three components."""
    rng = np.random.default_rng(5)
    return [{"weights": rng.dirichlet(np.ones(3)), "loc": rng.normal(size=(3, 2))} for _ in "1234"]


def study_log_prior(w):
    return (
        log_normal(w[0], 0.0, 5.0)
        + stats.halfcauchy.logpdf(np.exp(w[1]), scale=5.0)
        + w[1]
        + log_normal(w[2:], 0.0, 1.0)
    )


MODELS = {
    "conjugate_normal": ModelFixture(
        models.conjugate_normal(2, noise_scale=0.7),
        NORMAL,
        lambda w, z, x: log_normal(x, z, 0.7),
        log_local=lambda w, z: log_normal(z, NORMAL["loc"], np.exp(NORMAL["log_scale"])),
        stated=("z",),
    ),
    "probabilistic_pca": ModelFixture(
        models.probabilistic_pca(4, 2),
        PCA,
        lambda w, z, x: log_normal(x, PCA["weights"] @ z + PCA["bias"], np.exp(-0.3)),
        log_local=lambda w, z: log_normal(z, 0.0, 1.0),
        stated=("z",),
    ),
    "gaussian_mixture": ModelFixture(
        models.gaussian_mixture(3, 2),
        MIXTURE,
        lambda w, z, x: log_normal(x, z @ MIXTURE["loc"], np.exp(z @ MIXTURE["log_scale"])),
        log_local=lambda w, z: np.log(special.softmax(MIXTURE["logits"])) @ z,
        stated=("z",),
    ),
    "mixture_of_factor_analyzers": ModelFixture(
        models.mixture_of_factor_analyzers(2, 3, 1),
        FACTORS,
        lambda w, z, x: log_normal(
            x,
            np.tensordot(z["c"], FACTORS["weights"], 1) @ z["z"] + z["c"] @ FACTORS["bias"],
            np.exp(-0.2),
        ),
        log_local=lambda w, z: (
            np.log(special.softmax(FACTORS["logits"])) @ z["c"] + log_normal(z["z"], 0.0, 1.0)
        ),
        stated=("z",),
    ),
    "hierarchical_normal": ModelFixture(
        models.hierarchical_normal(2, prior_scale=1.5, noise_scale=0.6),
        SPREAD,
        lambda w, z, x: log_normal(x, z, 0.6),
        log_prior=lambda w: log_normal(w, 0.0, 1.5),
        log_local=lambda w, z: log_normal(z, w, np.exp(SPREAD["log_scale"])),
        w=points(2),
        stated=("w", "z"),
    ),
    "bayesian_gaussian_mixture": ModelFixture(
        models.bayesian_gaussian_mixture(3, 2, concentration=1.5, prior_scale=2.0, noise_scale=0.6),
        (),
        lambda w, z, x: log_normal(x, z @ w["loc"], 0.6),
        log_prior=lambda w: (
            stats.dirichlet.logpdf(w["weights"], np.full(3, 1.5)) + log_normal(w["loc"], 0.0, 2.0)
        ),
        log_local=lambda w, z: np.log(w["weights"]) @ z,
        w=mixtures(),
        stated=("w", "z"),
    ),
    "linear_regression": ModelFixture(
        models.linear_regression(3, noise_scale=0.6, prior_scale=1.4),
        (),
        lambda w, z, x: log_normal(x["label"], x["features"] @ w, 0.6),
        log_prior=lambda w: log_normal(w, 0.0, 1.4),
        w=points(3),
        x=FEATURES,
        stated=("w",),
    ),
    "logistic_regression": ModelFixture(
        models.logistic_regression(3, prior_scale=1.4),
        (),
        lambda w, z, x: log_bits(x["label"], x["features"] @ w),
        log_prior=lambda w: log_normal(w, 0.0, 1.4),
        w=points(3),
        x=FEATURES,
        stated=("w",),
    ),
    "eight_schools": ModelFixture(
        models.eight_schools(),
        (),
        lambda w, z, x: log_normal(x["effect"], w[0] + np.exp(w[1]) * w[2:], x["standard_error"]),
        log_prior=study_log_prior,
        w=points(10),
        x=STUDY,
    ),
    "vae": ModelFixture(
        models.vae(
            (lambda key: DECODER, lambda theta, z: theta["weights"] @ z + theta["bias"]),
            2,
            models.bernoulli_pixels(),
        ),
        DECODER,
        lambda w, z, x: log_bits(x, DECODER["weights"] @ z + DECODER["bias"]),
        log_local=lambda w, z: log_normal(z, 0.0, 1.0),
        stated=("z",),
    ),
    "sigmoid_belief_net": ModelFixture(
        models.sigmoid_belief_net(3, (2,)),
        ONE_LAYER,
        lambda w, z, x: log_bits(x, linear(ONE_LAYER["nets"][0], z)),
        log_local=lambda w, z: log_bits(z, ONE_LAYER["top"]),
        stated=("z",),
    ),
    "sigmoid_belief_net of two layers": ModelFixture(
        models.sigmoid_belief_net(3, (2, 2)),
        TWO_LAYERS,
        lambda w, z, x: log_bits(x, linear(TWO_LAYERS["nets"][1], z["h1"])),
        log_local=lambda w, z: (
            log_bits(z["h2"], TWO_LAYERS["top"])
            + log_bits(z["h1"], linear(TWO_LAYERS["nets"][0], z["h2"]))
        ),
    ),
}
