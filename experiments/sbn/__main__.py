"""Which gradient rule trains a sigmoid belief net best, and with how much gradient variance?

Binary latents in one or two layers (Mnih and Gregor 2014; settings of Dong et al. 2020). Every rule
starts from the same parameters. Variances are measured along ONE training path, that of the first
rule, with frozen parameters and a fixed batch; rules with learned control variates bring the
control that their own training had at that step. Expect on the 8 x 8 digits: antithetic and
leave-one-out rules a decade or more below plain REINFORCE, RELAX and REBAR with them; test bounds
(K = 100) from -20.07 (ARMS, 4 draws) and -20.17 (REBAR) to -20.52 (RLOO) and -20.81 (REINFORCE with
a running mean). About two minutes on two cores.

    python -m experiments.sbn --rules=rloo,disarm,rebar --layers=32,32
    python -m experiments.sbn --preset=published --layers=200,200 --hidden=200 --num_steps=100_000

history.csv has bounds and variances by rule, seed, step, images seen and seconds; params.npz the
fitted parameters.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax

from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.sbn import figures
from experiments.sbn.results import begun, outcome, report
from experiments.sbn.training import CHECKPOINTS, build, held_out_scores, training, variances

DEFAULT_RULES = ("rloo", "reinforce", "nvil", "disarm", "arms", "rebar", "relax", "double_cv")


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    rules: tuple[str, ...] = DEFAULT_RULES  # names in sbn/rules.py
    data: Literal["digits", "mnist", "fashion_mnist", "omniglot"] = "digits"
    # Folder with the files, downloaded there if missing; None: the user's cache folder
    data_dir: str | None = None
    # Take files in data_dir that are not the published ones (another checksum)
    own_files: bool = False
    # At 1/2; one Bernoulli draw; a new draw at every visit
    binarize: Literal["threshold", "static", "dynamic"] = "threshold"
    # Binary latents per stochastic layer, next to the data first; one or two layers
    layers: tuple[int, ...] = (50,)
    hidden: int = 0  # width of two tanh layers in every conditional ("nonlinear"); 0: linear
    batch_size: int = 50
    num_steps: int = 1500  # per rule; a multiple of 50
    learning_rate: float = 3e-3  # of Adam, for theta and phi
    control_rate: float = 1e-2  # of Adam, for learned baselines and control variates
    num_draws: int = 256  # gradients per variance
    evidence_samples: int = 100  # K of the test multi-sample bound
    max_scored: int = 2000  # most test images that are scored; 0: all
    seed: int = 0
    # Trainings of every rule, with seeds seed, seed + 1, ...; figures then show means and bands
    seeds: int = 1
    # The defaults of Dong et al. 2020; any setting given beside it wins
    preset: Literal["none", "published"] = "none"
    smoke: bool = False  # a few seconds' run that shows that everything works
    results_dir: str = "results"
    # Go on with this unfinished results folder, under its settings
    resume: str | None = None
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "published": {
        "data": "mnist",
        "binarize": "dynamic",
        "layers": (200,),
        "batch_size": 50,
        "num_steps": 1_000_000,
        "learning_rate": 1e-4,
        "control_rate": 1e-3,
    },
}


def run(config: Config) -> Iterator[Outcome]:
    """Train with every rule, score each on the test images along its path, measure variances along
    the first rule's path; once per seed.
    """
    job, found = build(config), []
    total = config.seeds * len(config.rules) * (3 * CHECKPOINTS - 1)
    with harness.progress_bar(total, "train and measure", "point") as bar:
        for seed in range(config.seed, config.seed + config.seeds):
            train_key, variance_key, score_key = jax.random.split(jax.random.key(seed), 3)
            reference = []
            for name in config.rules:
                one = None
                kept = harness.checkpoint(f"{name}_seed_{seed}")
                for trained in training(train_key, config, job, name, bar, kept):
                    one = begun(name, seed, trained)
                    yield outcome(config, job, [*found, one])
                assert one is not None
                own = one.trained.path
                reference = reference or own
                if one.trained.interrupted:  # score where it stands; begin nothing else
                    last = held_out_scores(score_key, config, job, own[-1:], bar)
                    yield outcome(
                        config, job, [*found, one._replace(scores=one.scores[:-1] + list(last))]
                    )
                    return
                variance, error = variances(variance_key, config, job, name, reference, own, bar)
                scores = list(held_out_scores(score_key, config, job, own, bar))
                one = one._replace(scores=scores, variance=variance, variance_error=error)
                found.append(one)
                yield outcome(config, job, found)


def plot(folder: Path) -> list[Path]:
    """All figures of a results folder, from the folder alone: one line per rule."""
    config, metrics, arrays = harness.read(folder)
    return figures.draw(folder, config, metrics, arrays, harness.read_tables(folder)["history"])


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    return harness.script(
        "sbn", Config, __doc__, args, run, report, plot, presets=PRESETS, smoke=smoke_settings
    )


def smoke_settings(config: Config) -> Config:
    """The same question in a few seconds: narrow layers, few steps, few samples."""
    return dataclasses.replace(
        config,
        layers=(8,) * len(config.layers),
        num_steps=50,
        num_draws=32,
        evidence_samples=10,
        max_scored=64,
    )


if __name__ == "__main__":
    harness.console(main)
