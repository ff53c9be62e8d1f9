"""What the settings of `experiments.gradient_variance` mean."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import vijax as vj
from experiments.common.harness import at_least
from experiments.gradient_variance import files, problems
from experiments.gradient_variance.estimators import Estimators, build, estimator, judge, unbiased
from experiments.gradient_variance.problems import Problem
from vijax import objectives
from vijax.lab.cost import check_rounds

if TYPE_CHECKING:
    from experiments.gradient_variance.__main__ import Config

OBJECTIVES = {"elbo": objectives.elbo, "iwae": objectives.iwae, "renyi": objectives.renyi(0.5)}


class Job(NamedTuple):
    """What the settings mean.

    Attributes:
      estimators: by name; the first is what ratios refer to.
      unbiased: names of those whose rules say that they are.
      refused: name -> reason.
      trainer: of the ELBO: its run is the path.
      judge: of the objective, unbiased: measures the reference where nothing is exact.
    """

    problem: Problem
    estimators: Estimators
    unbiased: list[str]
    refused: dict[str, str]
    trainer: vj.Estimator
    judge: vj.Estimator | None


def check(config: "Config", usual: "Config") -> None:
    """Raises ValueError for settings that are impossible, or would be ignored.

    Args:
      usual: the settings where none is given.
    """
    at_least(config, num_samples=1, num_draws=2, train_steps=0, control_steps=0, sweep=1)
    at_least(config, sweep_estimators=0, rounds=0)
    if config.rounds:
        check_rounds(config.rounds)
    if config.table is not None and config.problem != "logistic":
        raise ValueError(
            f"--table={config.table} chooses the data of --problem=logistic, but --problem="
            f"{config.problem} has its own: leave one of the two out."
        )
    given = [
        field.name
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(usual, field.name)
    ]
    ignored = set(given) - {"preset", "seed", "smoke", "results_dir"}
    if config.preset != "none" and ignored:
        raise ValueError(
            f"--preset={config.preset} has all settings of its own but the seed, and would ignore "
            f"{', '.join(f'--{name}' for name in sorted(ignored))}: leave that out."
        )


def prepare(config: "Config") -> Job:
    """Problem and estimators; a ValueError if none is left."""
    objective = OBJECTIVES[config.objective]
    if config.table is not None:
        problem = problems.logistic(config.table)
    elif config.problem in problems.PROBLEMS:
        problem = problems.PROBLEMS[config.problem]()
    else:
        problem = files.from_file(config.problem)
    usual = problem.estimators[:2] if config.smoke else problem.estimators
    names = config.estimators or (*usual, *problem.own(config.num_samples, objective))
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
    return Job(problem, made, unbiased(made, problem), refused, trainer, chosen)
