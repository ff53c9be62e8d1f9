"""What does an encoder lose against a q of its own for every image, and does refining it help?

One VAE, a standard normal latent with a diagonal normal q, trained with three guides: a table with
a row phi_i per image (the classical scheme), an encoder (Kingma and Welling 2014), and an encoder
whose answer is refined by a few steps of ascent (Kim et al. 2018; Krishnan et al. 2018).
log p(x) - ELBO is then split per image (Cremer, Li and Duvenaud 2018) into the approximation gap,
what a diagonal normal costs, and the amortization gap, what the guide's answer costs within the
family. Rows of test images are fitted with theta frozen. Expect on the 8 x 8 digits, default
settings, test images: approximation gaps of 0.41 to 0.45 nats for all three, amortization gaps of
0.02 (rows), 0.42 (encoder) and 0.21 (refined). About four minutes on two cores.

    python -m experiments.amortization --refinements=10
    python -m experiments.amortization --data=mnist --epochs=30 --latent_dim=20 --widths=200,200

Figures: ELBO against time, the two gaps of every image, test ELBO against steps of refinement, gap
against the width of encoders that are trained for one fixed decoder. history.csv has the curves.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax

from experiments.amortization import figures
from experiments.amortization.measures import Judged, annealed, by_refinement, by_width, judge
from experiments.amortization.problem import GUIDES, learner_of, vae_config
from experiments.amortization.report import outcome, report
from experiments.common import harness
from experiments.common.compilations import cheaply
from experiments.common.harness import Outcome
from experiments.vae.curve import CURVE_SAMPLES
from experiments.vae.held_out import held_out_fitter
from experiments.vae.problem import build
from experiments.vae.training import train


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    data: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    # Folder with the files, downloaded there if missing; None: the user's cache folder
    data_dir: str | None = None
    # Take files in data_dir that are not the published ones (another checksum)
    own_files: bool = False
    latent_dim: int = 10  # D
    widths: tuple[int, ...] = (128, 128)  # hidden layers of the encoder; of the decoder in reverse
    batch_size: int = 64
    epochs: int = 200
    learning_rate: float = 1e-3  # of Adam, at the start; falls to 0 along a cosine
    row_learning_rate: float = 0.03  # the same for the rows phi_i
    test_steps: int = 1000  # that fit phi_i of test images, theta frozen
    refinements: int = 5  # steps of the refined encoder
    # Of these steps, over the number of pixels, of which log p(x | z) is a sum: 0.03 for 8 x 8
    refinement_rate: float = 1.92
    refinement_samples: int = 4  # of each
    refinement_steps: tuple[int, ...] = (0, 1, 2, 5, 10, 20)  # when tested, in the figure
    evidence_samples: int = 1000  # K of the test log-evidence
    max_scored: int = 360  # most images of either split that are scored; 0: all
    gap_images: int = 128  # images of either split whose gaps are measured
    gap_steps: int = 300  # of the search for the best q of an image
    gap_fit_samples: int = 4  # per step of it
    gap_samples: int = 500  # per bound
    bound_samples: int = 100  # per ELBO of refined guides and of encoders of other widths
    encoder_widths: tuple[int, ...] = (4, 32, 256)  # of one hidden layer, theta frozen
    width_epochs: int = 50
    annealed_images: int = 16  # test images whose evidence is found by annealing as well
    annealed_chains: int = 128
    annealed_temperatures: int = 50
    seed: int = 0
    smoke: bool = False  # a short run that shows that everything works
    results_dir: str = "results"
    # Go on with this unfinished results folder, under its settings
    resume: str | None = None
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


def run(config: Config) -> Iterator[Outcome]:
    """Train and judge the three guides one after the other, then refine and vary the encoder."""
    check(config)
    with cheaply(when=config.smoke):
        yield from stages(config)


def stages(config: Config) -> Iterator[Outcome]:
    """The parts of `run`."""
    job = build(vae_config(config, "amortized"))
    keys = jax.random.split(jax.random.key(config.seed), 5)
    judged: dict[str, Judged] = {}
    for name in GUIDES:
        settings = vae_config(config, name)
        learn, held_out = learner_of(config, job, name), held_out_fitter(settings, job)
        one = None
        kept = harness.checkpoint(name)
        for one in train(keys[0], settings, job, learn, held_out, f"train, {name}", kept):
            yield outcome(config, job, judged, (name, one))
        assert one is not None
        if one.interrupted:
            return
        judged[name] = judge(keys[1], config, job, name, one, held_out)
        yield outcome(config, job, judged)
    steps = by_refinement(keys[2], config, job, judged)
    yield outcome(config, job, judged, refinement=steps)
    widths = by_width(keys[3], config, job, judged["amortized"])
    reference = annealed(keys[4], config, job, judged["amortized"])
    yield outcome(config, job, judged, refinement=steps, widths=widths, reference=reference)


def check(config: Config) -> None:
    """Raises ValueError for settings without a meaning."""
    ones = (
        "refinements",
        "refinement_samples",
        "gap_images",
        "gap_steps",
        "gap_fit_samples",
        "encoder_widths",
    )
    least = dict.fromkeys((*ones, "width_epochs", "annealed_images", "annealed_temperatures"), 1)
    harness.at_least(config, refinement_steps=0)
    twos = ("evidence_samples", "gap_samples", "bound_samples", "annealed_chains", "gap_images")
    harness.at_least(config, **(least | dict.fromkeys(twos, 2)))
    if config.max_scored and config.max_scored < config.gap_images:
        raise ValueError(
            f"--gap_images={config.gap_images} are more than the --max_scored={config.max_scored} "
            "images that there are."
        )


def plot(folder: Path) -> list[Path]:
    """All figures of a results folder, from the folder alone."""
    config, metrics, arrays = harness.read(folder)
    return figures.draw(folder, config, metrics, arrays, harness.read_tables(folder)["history"])


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    return harness.script(
        "amortization", Config, __doc__, args, run, report, plot, smoke=smoke_settings
    )


def smoke_settings(config: Config) -> Config:
    """The same question in half a minute: narrow networks, few epochs, few images."""
    return dataclasses.replace(
        config,
        epochs=10,
        widths=(32,),
        latent_dim=3,
        test_steps=100,
        max_scored=64,
        gap_images=32,
        gap_steps=100,
        gap_samples=100,
        # One number of samples for every score: a program less to compile for each guide
        bound_samples=CURVE_SAMPLES,
        evidence_samples=CURVE_SAMPLES,
        refinement_steps=(0, 20),
        encoder_widths=(8,),
        width_epochs=5,
        annealed_images=4,
        annealed_chains=32,
        annealed_temperatures=20,
    )


if __name__ == "__main__":
    harness.console(main)
