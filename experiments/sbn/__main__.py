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
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from experiments.common import figures, harness
from experiments.common.harness import Outcome
from experiments.common.images import score
from experiments.sbn.rules import RULES, evaluations
from experiments.sbn.training import CHECKPOINTS, Trained, build, steps_per_chunk, train, variances
from vijax.diagnostics import Evidence

DEFAULT_RULES = ("rloo", "reinforce", "nvil", "disarm", "arms", "rebar", "relax", "double_cv")


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    rules: tuple[str, ...] = DEFAULT_RULES  # names in sbn/rules.py
    data: Literal["digits", "mnist", "fashion_mnist", "omniglot"] = "digits"
    # Folder with the files, downloaded there if missing; None: the user's cache folder
    data_dir: str | None = None
    # At 1/2; one Bernoulli draw; a new draw at every visit
    binarize: Literal["threshold", "static", "dynamic"] = "threshold"
    # Binary latents per stochastic layer, next to the data first; one or two layers
    layers: tuple[int, ...] = (50,)
    hidden: int = 0  # width of two tanh layers in every conditional ("nonlinear"); 0: linear
    batch_size: int = 50
    num_steps: int = 1500  # per rule
    learning_rate: float = 3e-3  # of Adam, for theta and phi
    control_rate: float = 1e-2  # of Adam, for learned baselines and control variates
    num_draws: int = 256  # gradients per variance
    evidence_samples: int = 100  # K of the test multi-sample bound
    max_scored: int = 2000  # most test images that are scored; 0: all
    seed: int = 0
    # The defaults of Dong et al. 2020; any setting given beside it wins
    preset: Literal["none", "published"] = "none"
    smoke: bool = False  # a few seconds' run that shows that everything works
    results_dir: str = "results"
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


def run(config: Config) -> Outcome:
    """Train with every rule, score each on the test images, measure variances along the first
    rule's path.
    """
    job = build(config)
    train_key, variance_key, score_key = jax.random.split(jax.random.key(config.seed), 3)
    num_rules = len(config.rules)
    with harness.progress_bar(num_rules * (CHECKPOINTS - 1), "train", "chunk") as bar:
        runs = {name: train(train_key, config, job, name, bar) for name in config.rules}
    with harness.progress_bar(num_rules * CHECKPOINTS, "gradient variances", "point") as bar:
        measured = variances(variance_key, config, job, runs, bar)
    arrays = {"checkpoint": np.arange(CHECKPOINTS) * steps_per_chunk(config)}
    by_rule = {}
    for name, trained in runs.items():
        evidence = score(
            score_key,
            job.model,
            job.guide,
            trained.path[-1].params,
            job.test_x,
            config.evidence_samples,
            f"score {name}",
        )
        by_rule[name] = summarize(trained, evidence, measured[name]) | {
            "evaluations_per_step": evaluations(RULES[name], config.layers[0])
        }
        arrays |= {
            f"step_{name}": trained.step,
            f"curve_{name}": trained.curve,
            f"variance_{name}": measured[name],
        }
    metrics = {"num_train": len(job.train_x), "num_test": len(job.test_x), "rules": by_rule}
    return Outcome(metrics, arrays)


def plot(folder: Path) -> list[Path]:
    """Both figures of a results folder, from the folder alone: one line per rule."""
    config, metrics, arrays = harness.read(folder)
    names, written = list(metrics["rules"]), []
    figure, axes = figures.new(6.4, 4.0)
    figures.lines(axes, {n: (arrays[f"step_{n}"], smooth(arrays[f"curve_{n}"])) for n in names})
    low = min(float(np.quantile(arrays[f"curve_{n}"], 0.15)) for n in names)
    axes.set(xlabel="step", ylabel="train ELBO, nats per image", ylim=(low, None))
    written.append(figures.save(figure, folder, "train_elbo"))

    figure, axes = figures.new(6.4, 4.0)
    series = {n: (arrays["checkpoint"], arrays[f"variance_{n}"]) for n in names}
    figures.lines(axes, series, marker="o")
    along = f"step of the {config['rules'][0]} run"
    axes.set(xlabel=along, ylabel="variance of phi's gradient", yscale="log")
    written.append(figures.save(figure, folder, "gradient_variance"))
    return written


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    config = harness.parse(Config, __doc__ or "", args, presets=PRESETS)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    chosen = smoke_settings(config) if config.smoke else config
    return harness.execute("sbn", chosen, run, report, plot)


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


def summarize(trained: Trained, evidence: Evidence, variance: np.ndarray) -> dict[str, Any]:
    """One rule's numbers, in nats per image."""
    tail, bound = max(1, len(trained.curve) // 10), np.asarray(evidence.log_evidence)
    return {
        "train_elbo": float(np.mean(trained.curve[-tail:])),
        "test_elbo": float(np.mean(evidence.elbo)),
        "test_bound": float(np.mean(bound)),
        "test_bound_images_se": float(np.std(bound, ddof=1) / len(bound) ** 0.5),
        "microseconds_per_step": trained.microseconds,
        "log10_variance_median": float(np.median(np.log10(np.maximum(variance, 1e-30)))),
    }


def report(outcome: Outcome) -> str:
    """The table, best test bound first."""
    metrics = outcome.metrics
    lines = [
        f"sigmoid belief net, {metrics['num_train']} training and {metrics['num_test']} test "
        "images, nats per image",
        f"  {'rule':16s} {'train ELBO':>10s} {'test ELBO':>9s} {'test bound':>15s} "
        f"{'log10 var':>9s} {'us/step':>8s}  cost",
    ]
    for name, m in sorted(metrics["rules"].items(), key=lambda item: -item[1]["test_bound"]):
        bound = f"{m['test_bound']:8.2f} +- {m['test_bound_images_se']:.2f}"
        lines.append(
            f"  {name:16s} {m['train_elbo']:10.2f} {m['test_elbo']:9.2f} {bound:>15s} "
            f"{m['log10_variance_median']:9.2f} {m['microseconds_per_step']:8.0f}  "
            f"{m['evaluations_per_step']}"
        )
    return "\n".join(lines)


def smooth(curve: np.ndarray, width: int = 9) -> np.ndarray:
    """Running mean over `width` records, shorter at the ends."""
    kernel = np.ones(min(width, len(curve)))
    return np.convolve(curve, kernel, "same") / np.convolve(np.ones_like(curve), kernel, "same")


if __name__ == "__main__":
    main()
