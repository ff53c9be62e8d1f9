"""The three guides of one VAE, and how each is trained: parts of `experiments.vae`."""

from typing import TYPE_CHECKING

import jax
import optax

import vijax as vj
from experiments.vae.__main__ import Config as VaeConfig
from experiments.vae.problem import Job, make_estimator, make_guide
from experiments.vae.training import Learner, learner
from vijax.models import Mlp
from vijax.optimize import steps_per_epoch
from vijax.types import Array, Key, PyTree

if TYPE_CHECKING:
    from experiments.amortization.__main__ import Config

GUIDES = ("per_datapoint", "amortized", "semi_amortized")
NAMES = {
    "per_datapoint": "one phi_i per image",
    "amortized": "encoder",
    "semi_amortized": "refined encoder",
}


def vae_config(config: "Config", guide: str) -> VaeConfig:
    """The settings of `experiments.vae` that train this guide, or what it refines."""
    return VaeConfig(
        data=config.data,
        data_dir=config.data_dir,
        own_files=config.own_files,
        guide="per_datapoint" if guide == "per_datapoint" else "amortized",
        latent_dim=config.latent_dim,
        widths=config.widths,
        batch_size=config.batch_size,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        row_learning_rate=config.row_learning_rate,
        test_steps=config.test_steps,
        evidence_samples=config.evidence_samples,
        max_scored=config.max_scored,
        seed=config.seed,
    )


def learner_of(config: "Config", job: Job, guide: str) -> Learner:
    """What trains theta and phi under this guide."""
    settings = vae_config(config, guide)
    if guide != "semi_amortized":
        return learner(settings, job)
    return learner(settings, job, refined(config, job, config.refinements))


def refined(config: "Config", job: Job, steps: int) -> vj.Guide:
    """The encoder, its answer improved by so many steps of ascent: by path derivatives, whose noise
    falls as q nears the posterior; with `pathwise`'s, a step may cost more than it brings.
    """
    encoder = make_guide(vae_config(config, "amortized"), job.train_x)
    return vj.guides.semi_amortized(
        encoder,
        steps,
        config.refinement_rate / job.train_x.shape[1],
        through=False,
        rule=vj.rules.doubly_reparameterized(),
        num_samples=config.refinement_samples,
    )


def encoder_of(config: "Config", job: Job, width: int) -> vj.Guide:
    """An encoder with one hidden layer."""
    family = vj.families.diag_normal(config.latent_dim)
    return vj.guides.amortized(family, Mlp((width,), 2 * config.latent_dim), x=job.train_x[0])


def fit_encoder(key: Key, config: "Config", job: Job, guide: vj.Guide, theta: PyTree) -> vj.Params:
    """An encoder for a decoder that stays as it is."""
    num_data = len(job.train_x)
    steps = config.width_epochs * steps_per_epoch(num_data, config.batch_size)
    estimator = make_estimator(job, guide, num_data)
    adam = optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))
    frozen = optax.partition(
        {"phi": adam, "theta": optax.set_to_zero()}, vj.Params("theta", "phi", "phi")
    )
    algorithm = vj.descent(estimator, frozen)
    start = estimator.init_params(key)._replace(theta=theta)
    chunk = min(100, steps)
    return vj.fit(
        key,
        algorithm,
        start,
        job.train_x,
        num_steps=steps,
        batch_size=config.batch_size,
        record_every=chunk,
        chunk_size=chunk,
    ).params


def first(x: Array, num: int) -> vj.Batch:
    """The first images of a split."""
    some = x[:num]
    return vj.Batch(some, jax.numpy.arange(len(some)))
