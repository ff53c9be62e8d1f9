"""What is measured of a trained guide: scores, gaps, refinement, width, and the evidence by another
way.
"""

from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

import vijax as vj
from experiments.amortization.problem import encoder_of, first, fit_encoder, refined, vae_config
from experiments.common import harness
from experiments.common.images import score
from experiments.vae.curve import CURVE_SAMPLES
from experiments.vae.held_out import HeldOut
from experiments.vae.problem import Job, make_guide
from experiments.vae.training import Trained
from vijax import diagnostics
from vijax.diagnostics import Evidence
from vijax.diagnostics.gaps import Gaps
from vijax.types import Array, Key

if TYPE_CHECKING:
    from experiments.amortization.__main__ import Config


class Judged(NamedTuple):
    """A trained guide with everything that was measured of it.

    Attributes:
      train: scores of the training images.
      test: of the test images, whose rows phi_i were fitted with theta frozen where there is a
        table.
      train_gaps: of the first images of the split.
      test_gaps: likewise.
    """

    guide: str
    trained: Trained
    train: Evidence
    test: Evidence
    train_gaps: Gaps
    test_gaps: Gaps


def judge(
    key: Key, config: "Config", job: Job, name: str, one: Trained, held_out: HeldOut | None
) -> Judged:
    """Scores and gaps of both splits."""
    fit_key, score_key, gap_key = jax.random.split(key, 3)
    guide, params = one.guide, one.params
    if held_out is not None:
        guide, params = held_out.guide, held_out.fit(fit_key, params, None, config.test_steps)

    rows = None  # one table for the first images of either split: one compilation
    if held_out is not None:
        rows = make_guide(vae_config(config, name), job.scored_train[: config.gap_images])

    def gaps(guide: vj.Guide, params: vj.Params, x: Array) -> Gaps:
        if rows is not None:
            phi = jax.tree.map(lambda leaf: leaf[: config.gap_images], params.phi)
            guide, params = rows, params._replace(phi=phi)
        return diagnostics.inference_gap(
            gap_key,
            job.model,
            guide,
            params,
            first(x, config.gap_images),
            steps=config.gap_steps,
            fit_samples=config.gap_fit_samples,
            num_samples=config.gap_samples,
        )

    many, what = config.evidence_samples, f"score {name}"
    return Judged(
        guide=name,
        trained=one,
        train=score(score_key, job.model, one.guide, one.params, job.scored_train, CURVE_SAMPLES),
        test=score(score_key, job.model, guide, params, job.scored_test, many, what),
        train_gaps=gaps(one.guide, one.params, job.scored_train),
        test_gaps=gaps(guide, params, job.scored_test),
    )


def by_refinement(
    key: Key, config: "Config", job: Job, judged: dict[str, Judged]
) -> dict[str, np.ndarray]:
    """{guide: [T, M] test ELBO of every image after so many steps from its encoder's answer}."""
    found = {name: [] for name in ("amortized", "semi_amortized") if name in judged}
    x = job.scored_test[: config.gap_images]
    with harness.progress_bar(len(config.refinement_steps), "refine", "guide") as bar:
        for steps in config.refinement_steps:
            guide = refined(config, job, steps)
            for name, elbos in found.items():
                params = judged[name].trained.params
                scores = score(key, job.model, guide, params, x, config.bound_samples)
                elbos.append(scores.elbo)
            bar.update(1)
    return {name: np.stack(elbos) for name, elbos in found.items()}


def by_width(key: Key, config: "Config", job: Job, judged: Judged) -> dict[str, np.ndarray]:
    """{split: [widths, M] amortization gap of every image of encoders of these widths, each trained
    for the decoder of `judged`}: the best bounds are those of its own gaps.
    """
    fit_key, score_key = jax.random.split(key)
    theta = judged.trained.params.theta
    gaps = {"train": [], "test": []}
    splits = {
        "train": (job.scored_train, judged.train_gaps.best.value),
        "test": (job.scored_test, judged.test_gaps.best.value),
    }
    with harness.progress_bar(len(config.encoder_widths), "widths", "encoder") as bar:
        for width in config.encoder_widths:
            guide = encoder_of(config, job, width)
            params = fit_encoder(fit_key, config, job, guide, theta)
            for split, (x, best) in splits.items():
                some = x[: config.gap_images]
                scores = score(score_key, job.model, guide, params, some, config.bound_samples)
                gaps[split].append(np.asarray(best) - np.asarray(scores.elbo))
            bar.update(1)
    return {split: np.stack(values) for split, values in gaps.items()}


def annealed(key: Key, config: "Config", job: Job, judged: Judged) -> diagnostics.Annealed:
    """Log-evidence of a few test images by chains that start from the encoder's q."""
    return diagnostics.annealed_evidence(
        key,
        job.model,
        judged.trained.params,
        first(job.scored_test, config.annealed_images),
        start=judged.trained.guide,
        num_chains=config.annealed_chains,
        num_temperatures=config.annealed_temperatures,
        num_leapfrog=5,
    )


def num_parameters(params: vj.Params) -> int:
    """Numbers in theta and phi."""
    return sum(leaf.size for leaf in jax.tree.leaves((params.theta, params.phi)))
