"""The working parts of `experiments.gradient_variance`: what the settings mean, the training path,
the reference, the sweep over K.
"""

from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import optax
import pandas as pd
from tqdm.auto import tqdm

import vijax as vj
from experiments.gradient_variance.estimators import Estimators, build, estimator, judge
from experiments.gradient_variance.problems import PROBLEMS, Problem, from_file
from vijax import lab, objectives
from vijax.types import Key

if TYPE_CHECKING:
    from experiments.gradient_variance.__main__ import Config

OBJECTIVES = {"elbo": objectives.elbo, "iwae": objectives.iwae, "renyi": objectives.renyi(0.5)}
CHECKPOINTS = 4


class Job(NamedTuple):
    """What the settings mean.

    Attributes:
      refused: name -> reason.
      trainer: of the ELBO: its run is the path.
      judge: of the objective, unbiased: measures the reference where nothing is exact.
    """

    problem: Problem
    estimators: Estimators
    refused: dict[str, str]
    trainer: vj.Estimator
    judge: vj.Estimator | None


def prepare(config: "Config") -> Job:
    """Problem and estimators; a ValueError if none is left."""
    make, objective = PROBLEMS.get(config.problem), OBJECTIVES[config.objective]
    problem = from_file(config.problem) if make is None else make(config.table)
    names = config.estimators or (problem.estimators[:2] if config.smoke else problem.estimators)
    made, refused = build(names, problem, objective, config.num_samples)
    if not made:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in refused.items())
        raise ValueError(f"no estimator is legal here:\n{reasons}")
    chosen = judge(made, problem, objective, config.num_samples)
    if config.objective == "elbo" and chosen is not None:
        trainer = chosen  # one program the fewer
    elif problem.trainer:
        trainer = estimator(problem.trainer, problem, objectives.elbo, config.num_samples)
    else:
        trainer = next(iter(made.values())) if chosen is None else chosen
    return Job(problem, made, refused, trainer, chosen)


def training_path(key: Key, config: "Config", job: Job) -> dict[int, vj.Params]:
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
        vj.descent(job.trainer, optax.adam(config.learning_rate)),
        params,
        repeat(problem.batch),
        num_steps=every * (CHECKPOINTS - 1),
        chunk_size=every,
        record_every=every,
        callbacks=[lambda seen: path.update({seen.step: seen.params})],
    )
    return path


def learn(
    key: Key, config: "Config", job: Job, estimators: Estimators, params: vj.Params
) -> dict[str, lab.Learned]:
    """What every estimator learns or remembers at these parameters."""
    batch, steps = job.problem.batch, config.control_steps
    return {
        name: lab.learn(key, one, params, batch, num_steps=steps)
        for name, one in estimators.items()
    }


def reference(key: Key, config: "Config", job: Job, params: vj.Params) -> lab.Reference | None:
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
    learned = learn(key, config, job, {"judge": job.judge}, params)["judge"]
    report = lab.gradient_report(
        key,
        job.judge,
        params._replace(control=learned.control),
        learned.state,
        problem.batch,
        num_draws=10 * config.num_draws,
    )
    return lab.Reference(report.mean, report.mean_error)


def kind(known: lab.Reference | None) -> str:
    """What the bias was looked for against."""
    if known is None:
        return "none: no unbiased estimator is legal here"
    return "exact" if known.error is None else "measured"


def sweep(
    key: Key, config: "Config", job: Job, params: vj.Params, bar: tqdm
) -> dict[str, pd.DataFrame]:
    """Signal-to-noise ratio against K of the importance-weighted bound, for the first estimators
    that are legal there.
    """
    if not config.sweep or not config.sweep_estimators:
        return {}
    given, problem = config.estimators or job.problem.estimators, job.problem._replace(own={})
    names = [name for name in given if name != "all-legal"] or list(job.estimators)
    legal, _ = build(names, problem, objectives.iwae, max(config.sweep))
    chosen = list(legal)[: config.sweep_estimators]
    if not chosen:
        return {}

    def at(num_samples: float) -> lab.Point:
        made, _ = build(chosen, problem, objectives.iwae, int(num_samples))
        bar.update(1)
        learned = learn(key, config, job, made, params)
        return lab.Point(made, params, problem.batch, learned=learned)

    result = lab.sweep(key, config.sweep, at, num_draws=config.num_draws)
    return {"sweep": lab.to_dataframe(result), "slopes": lab.to_dataframe(lab.slopes(result))}
