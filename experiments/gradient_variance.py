"""Which gradient estimator has the least variance, and the least for its cost, on this model?

Measures bias, variance, signal-to-noise ratio and cost of many estimators on one problem at the
same parameters, with error bars: a leaderboard in which differences within the noise are ties;
variance along a training path; signal-to-noise ratio against K for the multi-sample bound.
`--preset` runs a published comparison instead and prints the published value beside ours.

    python -m experiments.gradient_variance --problem=sbn --estimators=all-legal
    python -m experiments.gradient_variance --problem=path/to/file.py
    python -m experiments.gradient_variance --preset=snr_against_k

A file of yours defines `problem() -> (model, guide, params, batch, exact_gradient_or_None)` and, if
it brings estimators of its own, `estimators(model, guide) -> {name: Estimator}`; the README shows
one.
"""

import dataclasses
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax
import pandas as pd

import vijax as vj
from experiments import gradient_figures, gradient_problems, harness
from experiments.gradient_estimators import Estimators, build, estimator, judge
from experiments.gradient_problems import PROBLEMS, Problem
from experiments.harness import Outcome
from experiments.reproductions import REPRODUCTIONS
from vijax import lab, objectives

OBJECTIVES = {"elbo": objectives.elbo, "iwae": objectives.iwae, "renyi": objectives.renyi(0.5)}
CHECKPOINTS = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    problem: str = "logistic"  # one of PROBLEMS in gradient_problems.py, or a file of yours
    # Of --problem=logistic
    table: Literal["breast_cancer", "wine", "iris", "digits"] = "breast_cancer"
    estimators: tuple[
        str, ...
    ] = ()  # of vijax.catalogue, block=name+block=name, all-legal; none: the problem's list
    objective: Literal["elbo", "iwae", "renyi"] = "elbo"  # renyi: of order 1/2
    num_samples: int = 2  # K
    num_draws: int = 1000  # gradients per estimator and point
    train_steps: int = (
        300  # of Adam before the leaderboard is measured; 0: at the problem's own parameters
    )
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


class Job(NamedTuple):
    """What the settings mean.

    Attributes:
      refused: name -> reason
      trainer: of the ELBO: its run is the path
      judge: of the objective, unbiased: measures the reference where nothing is exact
    """

    problem: Problem
    estimators: Estimators
    refused: dict[str, str]
    trainer: vj.Estimator
    judge: vj.Estimator | None


def prepare(config: Config) -> Job:
    """Problem and estimators; a ValueError if none is left."""
    make = PROBLEMS.get(config.problem)
    problem = (
        make(config.table) if make is not None else gradient_problems.from_file(config.problem)
    )
    names = config.estimators or (problem.estimators[:2] if config.smoke else problem.estimators)
    made, refused = build(names, problem, OBJECTIVES[config.objective], config.num_samples)
    if not made:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
        raise ValueError(f"no estimator is legal here:\n{reasons}")
    chosen = judge(made, problem, OBJECTIVES[config.objective], config.num_samples)
    trainer = (
        estimator(problem.trainer, problem, objectives.elbo, config.num_samples)
        if problem.trainer
        else chosen
    )
    trainer = next(iter(made.values())) if trainer is None else trainer
    if config.objective == "elbo" and chosen is not None:
        trainer = chosen  # one program the fewer
    return Job(problem, made, refused, trainer, chosen)


def training_path(key: jax.Array, config: Config, job: Job) -> dict[int, vj.Params]:
    """Step -> theta and phi: CHECKPOINTS points of one run, the last is where the leaderboard is
    measured.
    """
    problem = job.problem
    if not config.train_steps:
        return {0: problem.params}
    params = problem.params._replace(control=job.trainer.init_params(key).control)
    every = max(1, config.train_steps // (CHECKPOINTS - 1))
    path = {0: params}
    vj.fit(
        key,
        job.trainer,
        optax.adam(config.learning_rate),
        params,
        repeat(problem.batch),
        num_steps=every * (CHECKPOINTS - 1),
        chunk_size=every,
        record_every=every,
        callbacks=[lambda seen: path.update({len(path) * every: seen.params})],
    )
    return path


def reference(key: jax.Array, config: Config, job: Job, params: vj.Params) -> lab.Reference | None:
    """The exact gradient if it is known; else measured by the judge in 10 times the draws; None
    without a judge.
    """
    problem = job.problem
    if problem.exact is not None and config.objective == "elbo":
        exact = problem.exact(params._replace(control=()))
        if exact is not None:
            return lab.Reference(exact)
    if job.judge is None:
        return None
    learned = lab.learn(key, job.judge, params, problem.batch, num_steps=config.control_steps)
    report = lab.gradient_report(
        key,
        job.judge,
        params._replace(control=learned.control),
        learned.state,
        problem.batch,
        num_draws=10 * config.num_draws,
    )
    return lab.Reference(report.mean, report.mean_error)


def run(config: Config) -> Outcome:
    """The leaderboard, the path and the sweep as tables."""
    if config.preset != "none":
        return REPRODUCTIONS[config.preset].run(jax.random.key(config.seed), smoke=config.smoke)
    job = prepare(config)
    path_key, judge_key, learn_key, compare_key, sweep_key = jax.random.split(
        jax.random.key(config.seed), 5
    )
    path = training_path(path_key, config, job)
    learned: dict[int, dict[str, lab.Learned]] = {}
    references: dict[int, lab.Reference | None] = {}
    with harness.progress_bar(2 * len(path) + len(config.sweep), "gradients", "point") as bar:
        for step, params in path.items():
            learned[step] = {
                name: lab.learn(
                    learn_key, one, params, job.problem.batch, num_steps=config.control_steps
                )
                for name, one in job.estimators.items()
            }
            references[step] = reference(judge_key, config, job, params)
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
        swept = sweep(sweep_key, config, job, path[max(path)], bar)
    table = lab.to_dataframe(along)
    tables = {"leaderboard": table[table["at"] == max(path)], "along": table, **swept}
    metrics = {
        "problem": config.problem,
        "objective": config.objective,
        "num_samples": config.num_samples,
        "refused": job.refused,
        "reference": kind(references[max(path)]),
    }
    return Outcome(metrics, {}, tables)


def kind(known: lab.Reference | None) -> str:
    """What the bias was looked for against."""
    if known is None:
        return "none: no unbiased estimator is legal here"
    return "exact" if known.error is None else "measured"


def sweep(
    key: jax.Array, config: Config, job: Job, params: vj.Params, bar: Any
) -> dict[str, pd.DataFrame]:
    """Signal-to-noise ratio against K of the importance-weighted bound, for the first estimators
    that are legal there.
    """
    names = [
        name for name in (config.estimators or job.problem.estimators) if name != "all-legal"
    ] or list(job.estimators)
    if not config.sweep or not config.sweep_estimators:
        return {}
    legal, _ = build(names, job.problem._replace(own={}), objectives.iwae, max(config.sweep))
    chosen = list(legal)[: config.sweep_estimators]
    if not chosen:
        return {}

    def at(num_samples: float) -> lab.Point:
        made, _ = build(chosen, job.problem._replace(own={}), objectives.iwae, int(num_samples))
        bar.update(1)
        learned = {
            name: lab.learn(key, one, params, job.problem.batch, num_steps=config.control_steps)
            for name, one in made.items()
        }
        return lab.Point(made, params, job.problem.batch, learned=learned)

    result = lab.sweep(key, config.sweep, at, num_draws=config.num_draws)
    return {"sweep": lab.to_dataframe(result), "slopes": lab.to_dataframe(lab.slopes(result))}


def report(outcome: Outcome) -> str:
    """The leaderboard, best first; the slopes; what was refused, and why."""
    metrics, tables = outcome.metrics, outcome.tables
    if "claims" in metrics:
        return gradient_figures.claims_table(metrics["claims"])
    setting = (
        f"{metrics['problem']}, {metrics['objective']}, K = {metrics['num_samples']}; "
        f"reference {metrics['reference']}"
    )
    lines = [
        gradient_figures.leaderboard(tables["leaderboard"], block, setting)
        for block in ("phi", "theta")
    ]
    lines += [gradient_figures.slopes_table(tables["slopes"])] if "slopes" in tables else []
    lines += [f"refused: {name}: {reason}" for name, reason in metrics["refused"].items()]
    return "\n".join(line for line in lines if line)


def plot(folder: Path) -> list[Path]:
    """The figures of a results folder, from the folder alone."""
    config, metrics, arrays = harness.read(folder)
    if config["preset"] != "none":
        return REPRODUCTIONS[config["preset"]].plot(metrics, arrays, folder)
    return gradient_figures.draw(folder, harness.read_tables(folder))


def resolve(config: Config) -> Config:
    """The settings behind --smoke; refuses a preset that does not exist."""
    if config.preset not in ("none", *REPRODUCTIONS):
        raise ValueError(f"--preset={config.preset}: choose from {', '.join(REPRODUCTIONS)}.")
    if config.smoke:
        config = dataclasses.replace(
            config,
            num_draws=50,
            train_steps=min(config.train_steps, 6),
            control_steps=5,
            sweep=(2, 4),
            sweep_estimators=1,
            rounds=2,
        )
    return config


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    config = harness.parse(Config, __doc__ or "", args)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    return harness.execute("gradient_variance", resolve(config), run, report, plot)


if __name__ == "__main__":
    main()
