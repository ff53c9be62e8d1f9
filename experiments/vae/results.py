"""What the trainings of `experiments.vae` amount to: tables, numbers, images to look at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.common.images import fingerprint
from experiments.vae import figures, report
from experiments.vae.held_out import Posteriors
from experiments.vae.problem import Job
from experiments.vae.training import Trained
from vijax.diagnostics import Evidence
from vijax.types import Array, PyTree

if TYPE_CHECKING:
    from experiments.vae.__main__ import Config


class Scored(NamedTuple):
    """One training, and both splits scored under it; `posteriors` are of the test images."""

    trained: Trained
    train: Evidence
    test: Evidence
    posteriors: Posteriors


def outcome(config: "Config", job: Job, trained: list[Trained], scored: list[Scored]) -> Outcome:
    """All that there is so far. Scores of an image and the metrics are means over seeds; pictures
    are of the first.
    """
    numbers = range(config.seed, config.seed + len(trained))
    history = pd.DataFrame(
        [
            {"seed": number} | point._asdict()
            for number, one in zip(numbers, trained, strict=True)
            for point in one.history
        ]
    )
    params = {f"seed_{number}": one.params for number, one in zip(numbers, trained, strict=True)}
    metrics = {
        "num_train": len(job.train_x),
        "num_samples": job.num_samples,
        "evidence_samples": config.evidence_samples,
        "scored_images": fingerprint(job.scored_train, job.scored_test),
        "seeds_scored": len(scored),
        "compile_seconds": trained[0].compile_seconds,
        "compilations": trained[0].compilations,
        "seconds_per_epoch": float(np.median([one.seconds_per_epoch for one in trained])),
        "training_seconds": sum(one.seconds for one in trained),
        "epochs_run": trained[-1].epochs,
        "interrupted": trained[-1].interrupted,
    }
    arrays, tables = curves(trained), {"history": history}
    if scored:
        train_scores = mean_scores([one.train for one in scored])
        test_scores = mean_scores([one.test for one in scored])
        metrics = report.summarize(train_scores, test_scores) | metrics
        splits = [report.split(*one.posteriors, one.test.elbo) for one in scored]
        metrics |= {name: float(np.mean([one[name] for one in splits])) for name in splits[0]}
        each = [report.summarize(one.train, one.test) for one in scored]
        metrics |= harness.over_seeds(each, ("train_elbo", "test_elbo", "test_log_evidence", "gap"))
        arrays |= {
            "train_elbo": train_scores.elbo,
            "test_elbo": test_scores.elbo,
            "test_log_evidence": test_scores.log_evidence,
            "gap": test_scores.log_evidence - test_scores.elbo,
            "test_standard_error": test_scores.standard_error,
            "test_k_hat": test_scores.k_hat,
            "test_kl": np.mean([one.posteriors.kl.sum(axis=1) for one in scored], axis=0),
            "kl_of_units": scored[0].posteriors.kl,
        } | pictures(config, job, trained[0].params.theta, scored[0].posteriors.mean)
    return Outcome(
        metrics, {name: np.asarray(value) for name, value in arrays.items()}, tables, params
    )


def curves(trained: Sequence[Trained]) -> dict[str, Any]:
    """Learning curves by epoch [T], the mean over seeds, and of each seed [seeds, T]; as far as all
    of them go.
    """
    every = list(zip(*(one.history for one in trained), strict=False))  # [T] of [seeds]
    train, test = (
        np.array([[getattr(point, name) for point in row] for row in every]).T
        for name in ("train_elbo", "test_elbo")
    )
    return {
        "epoch": [row[0].epoch for row in every],
        "train_curve": train.mean(axis=0),
        "test_curve": test.mean(axis=0),
        "train_curves": train,
        "test_curves": test,
    }


def mean_scores(scores: Sequence[Evidence]) -> Evidence:
    """Means over seeds of every image's scores; sampling errors, the worst tails."""
    stacked: Evidence = jax.tree.map(lambda *leaves: np.stack(leaves), *scores)
    mean: Evidence = jax.tree.map(lambda leaf: leaf.mean(axis=0), stacked)
    return mean._replace(
        standard_error=(stacked.standard_error**2).sum(axis=0) ** 0.5 / len(scores),
        k_hat=stacked.k_hat.max(axis=0),
        reliable=stacked.reliable.all(axis=0),
    )


def summary(done: Outcome) -> str:
    """The report, or one line where nothing has been scored yet."""
    metrics = done.metrics
    if "test_elbo" not in metrics:
        last = done.tables["history"].iloc[-1]
        return (
            f"VAE, {metrics['num_train']} training images, {metrics['epochs_run']:.0f} epochs, not "
            f"scored: ELBO train {last.train_elbo:.2f}, test {last.test_elbo:.2f} nats per image"
        )
    text = report.report(metrics)
    if metrics["seeds_scored"] > 1:
        spread = ", ".join(
            f"{name} {metrics[f'{name}_seeds_se']:.3f}" for name in ("test_elbo", "gap")
        )
        text += (
            f"\n  means of {metrics['seeds_scored']} seeds; standard errors over seeds: {spread}"
        )
    return text


def pictures(config: "Config", job: Job, theta: PyTree, latent: Array) -> dict[str, Any]:
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
    } | ({"manifold": decode(figures.quantile_grid())} if config.latent_dim == 2 else {})


def one_per_class(label: np.ndarray) -> np.ndarray:
    """[<= 10] rows: the first of each of the first ten classes, or simply the first ten if there
    are fewer classes.
    """
    rows = np.unique(label, return_index=True)[1][:10]
    return rows if len(rows) == 10 else np.arange(min(10, len(label)))
