"""How well does a VAE describe held-out images, with an encoder or with one phi_i per image?

A standard normal latent, a decoder network, a diagonal normal q (Kingma and Welling 2014; Rezende
et al. 2014). Expect on the 8 x 8 digits, default settings, 360 held-out images: test ELBO about
-17.8 nats per image, log-evidence about -16.9.

    python -m experiments.vae --guide=per_datapoint --objective=iwae --rule=doubly_reparameterized
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.common.images import score
from experiments.vae import figures, report
from experiments.vae.held_out import held_out_fitter, posterior_means
from experiments.vae.problem import Job, build
from experiments.vae.training import CURVE_SAMPLES, train
from vijax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    data: Literal["digits", "mnist", "fashion_mnist", "omniglot"] = "digits"
    # Folder with the files, downloaded there if missing; None: the user's cache folder
    data_dir: str | None = None
    # At 1/2; one Bernoulli draw; a new draw at every visit
    binarize: Literal["threshold", "static", "dynamic"] = "threshold"
    # An encoder, or a table of phi_i, one row per image
    guide: Literal["amortized", "per_datapoint"] = "amortized"
    # Of binarized pixels, or mean and log-variance per pixel
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    objective: Literal["elbo", "iwae", "renyi"] = "elbo"
    alpha: float = 0.5  # order of the Renyi bound
    # Score uses leave-one-out baselines
    rule: Literal["pathwise", "doubly_reparameterized", "score"] = "pathwise"
    # K per image and step; None: 1 where that is enough (elbo without score), else 5
    num_samples: int | None = None
    latent_dim: int = 10  # D
    widths: tuple[int, ...] = (128, 128)  # hidden layers of the encoder; of the decoder in reverse
    # Least standard deviation of a gaussian pixel; None: the spacing of the grey values
    min_scale: float | None = None
    batch_size: int = 64
    epochs: int = 300
    learning_rate: float = 1e-3  # of Adam, at the start; falls to 0 along a cosine
    row_learning_rate: float = 0.03  # the same for the rows phi_i of --guide=per_datapoint
    # Steps that fit phi_i of test images, theta frozen, --guide=per_datapoint only
    test_steps: int = 1000
    evidence_samples: int = 1000  # K of the test log-evidence
    max_scored: int = 2000  # most images of either split that are scored; 0: all
    seed: int = 0
    smoke: bool = False  # a few seconds' run that shows that everything works
    results_dir: str = "results"
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


def run(config: Config) -> Outcome:
    """Train, infer the test images' latents, score both splits. Pure: a function of the settings
    (and of the clock).
    """
    job = build(config)
    train_key, test_key, score_key = jax.random.split(jax.random.key(config.seed), 3)
    held_out = held_out_fitter(config, job)
    trained = train(train_key, config, job, held_out)
    guide, params = trained.guide, trained.params
    if held_out is not None:  # new rows phi_i, theta frozen
        guide, params = held_out.guide, held_out.fit(test_key, params, None, config.test_steps)
    few = CURVE_SAMPLES  # enough for an ELBO, whose noise averages out over the images
    train_scores = score(
        score_key, job.model, trained.guide, trained.params, job.scored_train, few, "score train"
    )
    test_scores = score(
        score_key, job.model, guide, params, job.scored_test, config.evidence_samples, "score test"
    )
    metrics = report.summarize(train_scores, test_scores) | {
        "num_train": len(job.train_x),
        "num_samples": job.num_samples,
        "evidence_samples": config.evidence_samples,
        "compile_seconds": trained.compile_seconds,
        "compilations": trained.compilations,
        "seconds_per_epoch": trained.seconds_per_epoch,
        "training_seconds": trained.seconds,
        "epochs_run": float(trained.epoch[-1]),
        "interrupted": trained.interrupted,
    }
    arrays = {
        "epoch": trained.epoch,
        "train_curve": trained.train_curve,
        "test_curve": trained.test_curve,
        "train_elbo": train_scores.elbo,
        "test_elbo": test_scores.elbo,
        "test_log_evidence": test_scores.log_evidence,
        "test_standard_error": test_scores.standard_error,
    } | pictures(config, job, params.theta, posterior_means(guide, params, job.scored_test))
    return Outcome(metrics, {name: np.asarray(value) for name, value in arrays.items()})


def plot(folder: Path) -> list[Path]:
    """All figures of a results folder, from the folder alone."""
    return figures.draw(folder, harness.read(folder)[2])


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    config = harness.parse(Config, __doc__ or "", args)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    chosen = smoke_settings(config) if config.smoke else config
    return harness.execute("vae", chosen, run, lambda done: report.report(done.metrics), plot)


def smoke_settings(config: Config) -> Config:
    """The same question in a few seconds: narrow networks, few epochs, few samples."""
    return dataclasses.replace(
        config,
        epochs=10,
        widths=(32,),
        test_steps=50,
        max_scored=128,
        evidence_samples=CURVE_SAMPLES,  # one program less to compile
    )


def pictures(config: Config, job: Job, theta: PyTree, latent: Array) -> dict[str, Any]:
    """Images and latents to look at: originals beside reconstructions, means at draws of the prior,
    and the posterior means [M', D] of the test images.
    """

    @jax.jit
    @jax.vmap
    def decode(z: Array) -> Array:
        return job.likelihood.mean(job.decoder.apply(theta, z)).reshape(job.images.image_shape)

    label = job.images.test_label[: len(latent)]
    shown = one_per_class(label)
    prior = np.random.default_rng(config.seed).standard_normal((100, config.latent_dim), np.float32)
    return {
        "latent": latent,
        "label": label,
        "original": job.scored_test[shown].reshape(-1, *job.images.image_shape),
        "reconstruction": decode(latent[shown]),
        "prior_means": decode(prior),
    }


def one_per_class(label: np.ndarray) -> np.ndarray:
    """[<= 10] rows: the first of each of the first ten classes, or simply the first ten if there
    are fewer classes.
    """
    rows = np.unique(label, return_index=True)[1][:10]
    return rows if len(rows) == 10 else np.arange(min(10, len(label)))


if __name__ == "__main__":
    main()
