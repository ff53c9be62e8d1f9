"""What the settings of `experiments.vae` mean: data, model, objective, rule, guide."""

from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

import vijax as vj
from experiments.common import data, harness
from vijax.models import Likelihood, Mlp, bernoulli_pixels, normal_pixels, vae
from vijax.types import Array

if TYPE_CHECKING:
    from experiments.vae.__main__ import Config

RULES = {
    "pathwise": vj.rules.pathwise,
    "doubly_reparameterized": vj.rules.doubly_reparameterized,
    "score": vj.rules.score,
}


class Job(NamedTuple):
    """One question.

    Attributes:
      train_x: [N, P] as the likelihood takes them; grey if binarized afresh at every visit.
      scored_train: [M, P] the first M of them, binarized once.
      scored_test: [M', P].
    """

    images: data.Dataset
    train_x: Array
    scored_train: Array
    scored_test: Array
    likelihood: Likelihood
    decoder: Mlp
    model: vj.Model
    objective: vj.Objective
    rule: vj.Rule
    num_samples: int


def build(config: "Config") -> Job:
    """Data, model, objective and rule. Refuses settings that would answer another question than
    they seem to ask.
    """
    check(config)
    images = data.load(config.data, config.data_dir, own_files=config.own_files)
    gaussian, most = config.likelihood == "gaussian", config.max_scored or None
    fixed = data.threshold if config.binarize == "threshold" else data.sampled(config.seed)
    observe = (lambda x: x) if gaussian else fixed
    train_x = images.train_x if config.binarize == "dynamic" else observe(images.train_x)
    likelihood = bernoulli_pixels()
    if gaussian:
        least = images.grey_step if config.min_scale is None else config.min_scale
        likelihood = normal_pixels(min_scale=least)
    decoder = Mlp(config.widths[::-1], images.train_x.shape[1] * likelihood.outputs_per_pixel)
    objectives = {
        "elbo": vj.objectives.elbo,
        "iwae": vj.objectives.iwae,
        "renyi": vj.objectives.renyi(config.alpha),
    }
    num_samples = config.num_samples
    if num_samples is None:
        num_samples = 1 if config.objective == "elbo" and config.rule != "score" else 5
    return Job(
        images=images,
        train_x=jnp.asarray(train_x),
        scored_train=jnp.asarray(observe(images.train_x[:most])),
        scored_test=jnp.asarray(observe(images.test_x[:most])),
        likelihood=likelihood,
        decoder=decoder,
        model=vae(decoder, config.latent_dim, likelihood),
        objective=objectives[config.objective],
        rule=RULES[config.rule](),
        num_samples=num_samples,
    )


def check(config: "Config") -> None:
    """Raises ValueError for combinations without a meaning."""
    if config.binarize == "dynamic" and config.guide == "per_datapoint":
        raise ValueError(
            "--binarize=dynamic shows a new draw of an image at every visit, but a row phi_i "
            "belongs to one observed x_i: q could not follow it. Use --binarize=static (one draw) "
            "or threshold, or --guide=amortized."
        )
    if config.binarize == "dynamic" and config.likelihood == "gaussian":
        raise ValueError(
            "--likelihood=gaussian models grey values: there is nothing to binarize. Leave "
            "--binarize out."
        )
    counts = ("num_samples", "latent_dim", "widths", "batch_size", "epochs", "test_steps", "seeds")
    harness.at_least(config, **dict.fromkeys(counts, 1), evidence_samples=2, max_scored=0)


def make_guide(config: "Config", x: Array) -> vj.Guide:
    """q(z_i) for the images x [N, P]: an encoder of x_i, or a row of a table."""
    family = vj.families.diag_normal(config.latent_dim)
    if config.guide == "per_datapoint":
        return vj.guides.per_datapoint(family, num_data=len(x))
    return vj.guides.amortized(family, Mlp(config.widths, 2 * config.latent_dim), x=x[0])


def make_estimator(job: Job, guide: vj.Guide, num_data: int) -> vj.Estimator:
    """The one estimator of the job, for either guide and either split."""
    return vj.estimator(
        job.model,
        guide,
        objective=job.objective,
        rules=job.rule,
        num_samples=job.num_samples,
        num_data=num_data,
    )
