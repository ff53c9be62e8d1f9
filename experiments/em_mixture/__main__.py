"""How far from the evidence are EM, CAVI, stochastic VI and gradient VI on one mixture?

Ten data, three components: the exact posterior is a mixture of 3^10 = 59,049 terms, one per
assignment, and every method is held against their sum. EM and its variants take weights and means
as theta at its maximum (Dempster et al. 1977; Neal and Hinton 1998; Cappe and Moulines 2009); CAVI,
stochastic VI (Hoffman et al. 2013) and gradient VI give them conjugate priors and a q (Bishop 2006,
section 10.2). Expect: EM's bound IS the log-likelihood after every E-step (gap 0); hard E-steps
lose what the largest of the 59,049 terms is below their sum (0.10 nats); a mean-field q loses log
3! = 1.79 nats for naming its components and 0.58 for the correlations that it leaves out: 2.37 by
CAVI and stochastic VI, 2.38 by gradient VI, each equal to KL(q || posterior) summed over the
assignments. Half a minute on two cores.

    python -m experiments.em_mixture --rules=enumerated,arsm --noise_scale=1.2
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.em_mixture import figures
from experiments.em_mixture.labellings import all_labellings
from experiments.em_mixture.methods import METHODS, RULES, by_gradients, conjugate, point_estimates
from experiments.em_mixture.picture import bounds
from experiments.em_mixture.problem import at_theta, build, kl_to_posterior, together
from experiments.em_mixture.results import outcome, report
from vijax.models.bayesian_gaussian_mixture import MAX_ASSIGNMENTS
from vijax.testing.averages import in_float


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    num_data: int = 10  # N; components^N assignments are summed
    num_components: int = 3
    noise_scale: float = 0.9  # standard deviation of the data around their component's mean
    prior_scale: float = 2.5  # of the means around 0
    concentration: float = 1.0  # of the weights' symmetric Dirichlet prior
    batch_size: int = 2  # of the incremental, online and stochastic methods; divides num_data
    passes: int = 60  # over the data, of EM; twice as many of CAVI, four times of stochastic VI
    methods: tuple[str, ...] = METHODS  # names in methods.py; EM and CAVI at least
    rules: tuple[str, ...] = ("enumerated", "score", "disarm_tree")  # of q(z) in gradient VI
    gradient_steps: int = 3000  # of Adam, on all data
    num_samples: int = 4  # draws of w per step of gradient VI
    num_draws: int = 20_000  # behind the numbers with a standard error
    seed: int = 0
    smoke: bool = False  # a few seconds' run that shows that everything works
    results_dir: str = "results"
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


def run(config: Config) -> Iterator[Outcome]:
    """All methods from one start; in float64, so that equal numbers are equal."""
    check(config)
    facts: dict[str, Any] = {
        "num_data": config.num_data,
        "num_components": config.num_components,
        "num_assignments": config.num_components**config.num_data,
        "log_labellings": math.lgamma(config.num_components + 1),
    }
    with harness.progress_bar(4, "methods", "group") as bar:
        with in_float(64):
            problem = build(config)
            rows, thetas = point_estimates(config, problem)
            seen = bounds(config, problem, thetas["EM"])
            arrays = {f"picture/{name}": values for name, values in seen.items()}
            at_em = at_theta(problem)(thetas["EM"])
            arrays |= {
                "x": np.asarray(problem.x),
                "together/exact": together(problem.every, problem.log_joint),
                "together/EM": together(problem.every, at_em),
            }
            facts["touching"] = float(np.abs(seen["touched"] - seen["there"]).max())
            facts["least_em_rise"] = float(np.diff(rows[0].curve).min())
        bar.update(1)
        yield outcome(rows, arrays, facts)
        with in_float(64):
            divergence = kl_to_posterior(problem)
            found, fitted = conjugate(config, problem, divergence)
            share = np.asarray(jax.nn.softmax(fitted["CAVI"].phi["z"]["logits"], axis=1))
            same = np.eye(config.num_data, dtype=bool)
            arrays |= {"together/CAVI": np.where(same, 1.0, share @ share.T)}
            facts["least_cavi_rise"] = float(np.diff(found[0].curve).min())
            rows += found
        bar.update(1)
        yield outcome(rows, arrays, facts)
        with in_float(64):
            gap = problem.evidence - found[0].bound
            rows += all_labellings(config, problem, fitted["CAVI"].phi, gap)
        bar.update(1)
        yield outcome(rows, arrays, facts)
        with in_float(64):
            rows += by_gradients(config, problem, divergence)
        bar.update(1)
        yield outcome(rows, arrays, facts)


def check(config: Config) -> None:
    """Refuse settings that would be found out late."""
    harness.at_least(
        config,
        num_components=2,
        num_data=config.num_components,
        batch_size=1,
        passes=2,
        gradient_steps=100,
        num_samples=1,
        num_draws=2,
    )
    unknown = [name for name in config.rules if name not in RULES]
    if unknown:
        raise ValueError(f"--rules: no rule {unknown[0]!r}; choose from {', '.join(RULES)}.")
    if not {"EM", "CAVI"} <= set(config.methods) <= set(METHODS):
        raise ValueError(
            f"--methods={','.join(config.methods)}: give EM, CAVI and any of {', '.join(METHODS)}."
        )
    if config.num_data % config.batch_size:
        raise ValueError(f"--batch_size={config.batch_size} must divide --num_data.")
    if config.num_components**config.num_data > MAX_ASSIGNMENTS:
        raise ValueError(
            f"--num_components={config.num_components} to the --num_data={config.num_data} are "
            f"more than the {MAX_ASSIGNMENTS} assignments that are summed."
        )


def plot(folder: Path) -> list[Path]:
    """All figures of a results folder, from the folder alone."""
    _, metrics, arrays = harness.read(folder)
    return figures.draw(folder, metrics, arrays)


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    return harness.script(
        "em_mixture", Config, __doc__, args, run, report, plot, smoke=smoke_settings
    )


def smoke_settings(config: Config) -> Config:
    """The same question in a few seconds: fewer data, passes and steps, one rule."""
    return dataclasses.replace(
        config,
        num_data=6,
        passes=20,
        methods=("EM", "hard E-steps", "CAVI", "SVI"),
        rules=("enumerated",),
        gradient_steps=300,
        num_samples=2,
        num_draws=2000,
    )


if __name__ == "__main__":
    harness.console(main)
