"""Which gradient estimator has the least variance, and the least for its cost, on this model?

Measures bias, variance, signal-to-noise ratio and cost of many estimators on one problem at the
same parameters, with error bars: a leaderboard in which differences within the noise are ties;
variance along a training path; signal-to-noise ratio against K for the multi-sample bound. Expect
on the breast cancer data, default settings: quadratic control 0.3 of the pathwise gradient's
variance, the path derivative 0.8, the score function with leave-one-out baselines 24. `--preset`
runs a published comparison instead and prints the published value beside ours.

    python -m experiments.gradient_variance --problem=sbn --estimators=all-legal
    python -m experiments.gradient_variance --problem=path/to/file.py
    python -m experiments.gradient_variance --preset=snr_against_k

A file of yours defines `problem() -> (model, guide, params, batch, exact_gradient_or_None)` and, if
it brings estimators of its own, `estimators(model, guide, num_samples, objective) -> {name:
Estimator}`; the README shows one. A batch of fewer data than the model has is a minibatch, the same
for all draws: variances are those given the minibatch.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import jax
import pandas as pd

from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.gradient_variance import figures, job, measuring, tables
from experiments.gradient_variance.reproductions import REPRODUCTIONS
from vijax import lab


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    problem: str = "logistic"  # one of PROBLEMS in problems.py, or a file of yours
    # Of --problem=logistic alone; None: breast_cancer
    table: Literal["breast_cancer", "wine", "iris", "digits"] | None = None
    # Names of vijax.catalogue, block=name+block=name, names of your file's, all-legal; none: the
    # problem's list and all of your file's
    estimators: tuple[str, ...] = ()
    objective: Literal["elbo", "iwae", "renyi"] = "elbo"  # renyi: of order 1/2
    num_samples: int = 2  # K
    num_draws: int = 1000  # gradients per estimator and point
    # Of Adam before the leaderboard is measured; 0: at the problem's own parameters
    train_steps: int = 300
    learning_rate: float = 0.02  # of that Adam
    # In which learned control variates and running means get used to each point
    control_steps: int = 300
    sweep: tuple[int, ...] = (2, 8, 32)  # K of the sweep of the multi-sample bound
    # How many, from the head of the list, and all of your file's; 0: no sweep
    sweep_estimators: int = 2
    rounds: int = 11  # of interleaved timing, at least 6; 0: none
    # A reproduction: snr_against_k, closed_form_variances, ...; all other settings are then its own
    preset: str = "none"
    seed: int = 0
    # A short run, of two estimators unless some are named, that shows that everything works
    smoke: bool = False
    results_dir: str = "results"
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


def run(config: Config) -> Iterator[Outcome]:
    """The leaderboard, the other points of the path, the sweep: all that there is after each."""
    if config.preset != "none":
        yield REPRODUCTIONS[config.preset].run(jax.random.key(config.seed), smoke=config.smoke)
        return
    made = job.prepare(config)
    path_key, point_key, sweep_key = jax.random.split(jax.random.key(config.seed), 3)
    path = measuring.training_path(path_key, config, made)
    last, seen = max(path), {}
    with harness.progress_bar(
        len(path) + len(config.sweep) * bool(config.sweep_estimators), "gradients", "point"
    ) as bar:
        for step, measured in measuring.points(point_key, config, made, path):
            seen[step] = measured
            bar.update(1)
            yield outcome(config, made, seen, {})
        swept = measuring.sweep(sweep_key, config, made, path[last], bar)
    yield outcome(config, made, seen, swept)


def outcome(
    config: Config,
    made: job.Job,
    seen: Mapping[int, measuring.Measured],
    swept: Mapping[str, pd.DataFrame],
) -> Outcome:
    """Tables and metrics of the points measured so far, of which the last of the path came first.

    Args:
      seen: by step.
      swept: tables of the sweep over K, if it is done.
    """
    along = lab.to_dataframe(lab.concatenate([seen[step].comparison for step in sorted(seen)]))
    board = lab.to_dataframe(seen[max(seen)].comparison)
    batch_size, num_data = len(made.problem.batch.index), made.problem.num_data
    metrics = {
        "problem": config.problem if config.table is None else f"logistic ({config.table})",
        "objective": config.objective,
        "num_samples": config.num_samples,
        "num_draws": config.num_draws,
        "num_data": num_data,
        "batch_size": batch_size,
        "step": max(seen),
        "refused": made.refused,
        "reference": measuring.kind(seen[max(seen)].reference),
        "leaderboard": board.to_dict("records"),
    }
    if "slopes" in swept:
        metrics["slopes"] = swept["slopes"].to_dict("records")
    return Outcome(metrics, {}, {"leaderboard": board, "along": along, **swept})


def plot(folder: Path) -> list[Path]:
    """The figures of a results folder, from the folder alone."""
    config, metrics, arrays = harness.read(folder)
    if config["preset"] != "none":
        return REPRODUCTIONS[config["preset"]].plot(metrics, arrays, folder)
    return figures.draw(folder, harness.read_tables(folder), metrics)


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    config = harness.parse(Config, __doc__ or "", args, smoke=smoke_settings)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    if config.preset not in ("none", *REPRODUCTIONS):
        raise ValueError(f"--preset={config.preset}: choose from {', '.join(REPRODUCTIONS)}.")
    usual = Config(smoke=config.smoke)
    job.check(config, smoke_settings(usual) if config.smoke else usual)
    return harness.execute("gradient_variance", config, run, report, plot)


def smoke_settings(config: Config) -> Config:
    """The same question in a few seconds: few draws, few steps."""
    return dataclasses.replace(
        config,
        num_draws=50,
        train_steps=min(config.train_steps, 6),
        control_steps=5,
        sweep=(2, 4),
        sweep_estimators=1,
        rounds=6,
    )


def report(outcome: Outcome) -> str:
    """The leaderboard, best first; the slopes; what was refused, and why."""
    metrics, found = outcome.metrics, outcome.tables
    if "claims" in metrics:
        return tables.claims_table(metrics["claims"])
    setting = f"{tables.setting(metrics)}; reference {metrics['reference']}"
    board = found["leaderboard"]
    lines = [tables.leaderboard(board, block, setting) for block in ("phi", "theta")]
    lines += [tables.slopes_table(found["slopes"])] if "slopes" in found else []
    lines += [f"refused: {name}: {reason}" for name, reason in metrics["refused"].items()]
    return "\n".join(line for line in lines if line)


if __name__ == "__main__":
    harness.console(main)
