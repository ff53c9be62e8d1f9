"""How well does a VAE describe held-out images, with an encoder or with one phi_i per image?

A standard normal latent, a decoder network, a diagonal normal q (Kingma and Welling 2014; Rezende
et al. 2014). Expect on the 8 x 8 digits, default settings, 360 held-out images: test ELBO about
-17.8 nats per image, log-evidence about -16.9.

    python -m experiments.vae --guide=per_datapoint --objective=iwae --rule=doubly_reparameterized

history.csv has the learning curve by step, images seen and seconds; params.npz the fitted
parameters, leaf by leaf, which `harness.read_params` reads.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax

import vijax as vj
from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.common.images import score
from experiments.vae import figures
from experiments.vae.curve import CURVE_SAMPLES
from experiments.vae.held_out import HeldOut, held_out_fitter, posteriors
from experiments.vae.problem import Job, build
from experiments.vae.results import Scored, outcome, summary
from experiments.vae.training import Trained, learner, train
from vijax.diagnostics import Evidence
from vijax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    data: Literal["digits", "mnist", "fashion_mnist", "omniglot"] = "digits"
    # Folder with the files, downloaded there if missing; None: the user's cache folder
    data_dir: str | None = None
    # Take files in data_dir that are not the published ones (another checksum)
    own_files: bool = False
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
    # Trainings, with seeds seed, seed + 1, ...; of several, means and the spread between them
    seeds: int = 1
    smoke: bool = False  # a few seconds' run that shows that everything works
    results_dir: str = "results"
    # Go on with this unfinished results folder, under its settings
    resume: str | None = None
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


def run(config: Config) -> Iterator[Outcome]:
    """Train, infer the test images' latents, score both splits; once per seed. Pure: a function of
    the settings (and of the clock).
    """
    job, trained, scored = build(config), [], []
    held_out, learn = held_out_fitter(config, job), learner(config, job)
    for number in range(config.seeds):
        keys = jax.random.split(jax.random.key(config.seed + number), 3)
        what = "train" if config.seeds == 1 else f"train, seed {config.seed + number}"
        before = list(trained)
        kept = harness.checkpoint(f"seed_{config.seed + number}")
        for one in train(keys[0], config, job, learn, held_out, what, kept):
            trained = [*before, one]
            yield outcome(config, job, trained, scored)
        scored.append(judge(keys[1], keys[2], config, job, trained[-1], held_out))
        yield outcome(config, job, trained, scored)
        if trained[-1].interrupted:
            return


def judge(
    test_key: Key, score_key: Key, config: Config, job: Job, one: Trained, held_out: HeldOut | None
) -> Scored:
    """Both splits under a training's parameters; rows phi_i of test images are fitted first."""
    guide, params = one.guide, one.params
    if held_out is not None:  # new rows phi_i, theta frozen
        guide, params = held_out.guide, held_out.fit(test_key, params, None, config.test_steps)
    many = config.evidence_samples

    def scores(guide: vj.Guide, params: vj.Params, x: Array, k: int, what: str) -> Evidence:
        return score(score_key, job.model, guide, params, x, k, what)

    # Few samples are enough for an ELBO, whose noise averages out over the images
    return Scored(
        trained=one,
        train=scores(one.guide, one.params, job.scored_train, CURVE_SAMPLES, "score train"),
        test=scores(guide, params, job.scored_test, many, "score test"),
        posteriors=posteriors(guide, params, job.scored_test),
    )


def plot(folder: Path) -> list[Path]:
    """All figures of a results folder, from the folder alone."""
    config, metrics, arrays = harness.read(folder)
    if "original" not in arrays:
        raise ValueError(
            f"{folder} is of a run that ended before its test images were scored: there is only "
            "its learning curve, history.csv."
        )
    history = harness.read_tables(folder)["history"]
    return figures.draw(folder, config, metrics, arrays, history)


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    return harness.script("vae", Config, __doc__, args, run, summary, plot, smoke=smoke_settings)


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


if __name__ == "__main__":
    harness.console(main)
