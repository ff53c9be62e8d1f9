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
it brings estimators of its own, `estimators(model, guide) -> {name: Estimator}`; the README shows
one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax

from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.gradient_variance import figures, measuring
from experiments.gradient_variance.reproductions import REPRODUCTIONS
from vijax import lab


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    problem: str = "logistic"  # one of PROBLEMS in problems.py, or a file of yours
    # Of --problem=logistic
    table: Literal["breast_cancer", "wine", "iris", "digits"] = "breast_cancer"
    # Names of vijax.catalogue, block=name+block=name, all-legal; none: the problem's list
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
    sweep_estimators: int = 2  # how many, from the head of the list; 0: no sweep
    rounds: int = 11  # of interleaved timing
    # A reproduction: snr_against_k, closed_form_variances, ...; all other settings are then its own
    preset: str = "none"
    seed: int = 0
    # A short run, of two estimators unless some are named, that shows that everything works
    smoke: bool = False
    results_dir: str = "results"
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


def run(config: Config) -> Outcome:
    """The leaderboard, the path and the sweep as tables."""
    if config.preset != "none":
        return REPRODUCTIONS[config.preset].run(jax.random.key(config.seed), smoke=config.smoke)
    job = measuring.prepare(config)
    path_key, judge_key, learn_key, compare_key, sweep_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    path = measuring.training_path(path_key, config, job)
    learned: dict[int, dict[str, lab.Learned]] = {}
    references: dict[int, lab.Reference | None] = {}
    with harness.progress_bar(2 * len(path) + len(config.sweep), "gradients", "point") as bar:
        for step, params in path.items():
            learned[step] = measuring.learn(learn_key, config, job, job.estimators, params)
            references[step] = measuring.reference(judge_key, config, job, params)
            bar.update(1)
        along = lab.along(
            compare_key,
            job.estimators,
            path,
            job.problem.batch,
            num_draws=config.num_draws,
            learned=learned,
            reference=references,
            rounds=config.rounds,
        )
        bar.update(len(path))
        swept = measuring.sweep(sweep_key, config, job, path[max(path)], bar)
    table = lab.to_dataframe(along)
    tables = {"leaderboard": table[table["at"] == max(path)], "along": table, **swept}
    metrics = {
        "problem": config.problem,
        "objective": config.objective,
        "num_samples": config.num_samples,
        "refused": job.refused,
        "reference": measuring.kind(references[max(path)]),
    }
    return Outcome(metrics, {}, tables)


def plot(folder: Path) -> list[Path]:
    """The figures of a results folder, from the folder alone."""
    config, metrics, arrays = harness.read(folder)
    if config["preset"] != "none":
        return REPRODUCTIONS[config["preset"]].plot(metrics, arrays, folder)
    return figures.draw(folder, harness.read_tables(folder))


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    config = harness.parse(Config, __doc__ or "", args)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    if config.preset not in ("none", *REPRODUCTIONS):
        raise ValueError(f"--preset={config.preset}: choose from {', '.join(REPRODUCTIONS)}.")
    chosen = smoke_settings(config) if config.smoke else config
    return harness.execute("gradient_variance", chosen, run, report, plot)


def smoke_settings(config: Config) -> Config:
    """The same question in a few seconds: few draws, few steps."""
    return dataclasses.replace(
        config,
        num_draws=50,
        train_steps=min(config.train_steps, 6),
        control_steps=5,
        sweep=(2, 4),
        sweep_estimators=1,
        rounds=2,
    )


def report(outcome: Outcome) -> str:
    """The leaderboard, best first; the slopes; what was refused, and why."""
    metrics, tables = outcome.metrics, outcome.tables
    if "claims" in metrics:
        return figures.claims_table(metrics["claims"])
    setting = (
        f"{metrics['problem']}, {metrics['objective']}, K = {metrics['num_samples']}; "
        f"reference {metrics['reference']}"
    )
    board = tables["leaderboard"]
    lines = [figures.leaderboard(board, block, setting) for block in ("phi", "theta")]
    lines += [figures.slopes_table(tables["slopes"])] if "slopes" in tables else []
    lines += [f"refused: {name}: {reason}" for name, reason in metrics["refused"].items()]
    return "\n".join(line for line in lines if line)


if __name__ == "__main__":
    main()
