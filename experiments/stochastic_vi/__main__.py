"""How many steps should a datum's phi_i take for every step of theta, and where should they start?

Stochastic VI (Hoffman et al. 2013): draw a batch, take T steps on its phi_i, then one step on
theta. Probabilistic PCA, where the evidence, its maximum (Tipping and Bishop 1999, eq. 7-8) and
every posterior are known: the bound is evaluated exactly, as log p(x) - KL(q || posterior). Every
run has the same number of gradients, so a larger T means fewer steps of theta. Rows go on from
where they were left, or start every time at the prior, or the steps start at a linear encoder that
learns from what they reach; `until` ends the inner loop when its bound stops rising.

Expect: rows that are kept come within 0.02 nats per datum of the maximum at every T, five steps
from an encoder within 0.1; their q have the exact posteriors' means and standard deviations. Steps
from the prior that do not arrive are not only short by the KL that they leave: theta moves to where
q is good enough, nats below the maximum. About two minutes on two cores, most of it compiling.

    python -m experiments.stochastic_vi --local_steps=1,3,30 --batch_size=100
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.common import harness
from experiments.common.compilations import cheaply
from experiments.common.harness import Outcome
from experiments.stochastic_vi import figures
from experiments.stochastic_vi.training import Trained, build, runs, train


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    local_steps: tuple[int, ...] = (1, 5, 20)  # T of rows that are kept
    restarted_steps: tuple[int, ...] = (5, 20)  # T of rows that start at the prior, the encoder
    # Nats per datum: the loop of `until` ends when two means of 5 bounds differ by less
    tolerance: float = 0.1
    num_gradients: int = 20_000  # of every run: T times the steps of theta
    num_data: int = 1000
    observed_dim: int = 10
    latent_dim: int = 2
    noise_scale: float = 0.5  # of the data, in their units
    batch_size: int = 50
    row_rate: float = 0.05  # of Adam, for phi_i
    theta_rate: float = 0.02  # of Adam, for theta and the encoder; falls to 0
    num_points: int = 25  # of every curve
    seed: int = 0
    smoke: bool = False  # a few seconds' run that shows that everything works
    results_dir: str = "results"
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


def run(config: Config) -> Iterator[Outcome]:
    """Every run of the same number of gradients, one after another."""
    harness.at_least(
        config, local_steps=1, restarted_steps=1, num_gradients=1, num_points=1, latent_dim=1
    )
    job, found = build(config), []
    planned = runs(config, job)
    bar = harness.progress_bar(len(planned), "train", "run")
    with cheaply(when=config.smoke), bar:
        for one in planned:
            found.append(train(config, job, one))
            bar.update()
            yield outcome(config, job.maximum, found)


def outcome(config: Config, maximum: float, found: Sequence[Trained]) -> Outcome:
    """All that there is so far; bounds in nats per datum."""
    table = pd.DataFrame(
        [
            {"policy": one.policy, "run": one.name} | point._asdict()
            for one in found
            for point in one.path
        ]
    )
    metrics = {
        "maximum_evidence": maximum,
        "num_gradients": config.num_gradients,
        "runs": {one.name: summarize(one, maximum) for one in found},
    }
    arrays = {
        f"{what}_{one.name}": value
        for one in found
        for what, value in one.posteriors._asdict().items()
    }
    return Outcome(metrics, arrays, {"path": table})


def summarize(one: Trained, maximum: float) -> dict[str, float | str]:
    """The end of a run, and how far its q are from the exact posteriors at its theta: root mean
    square errors of means in posterior standard deviations, mean ratio of standard deviations.
    """
    last, seen = one.path[-1], one.posteriors
    away = (seen.mean - seen.exact_mean) / seen.exact_scale
    return {
        "policy": one.policy,
        "bound": last.bound,
        "short_of_maximum": maximum - last.bound,
        "evidence": last.evidence,
        "kl": last.evidence - last.bound,
        "mean_error": float(np.sqrt(np.mean(away**2))),
        "scale_ratio": float(np.mean(seen.scale / seen.exact_scale)),
        "local_steps": one.local_steps,
        "theta_steps": last.theta_steps,
        "seconds": last.seconds,
    }


def report(done: Outcome) -> str:
    """One line per run."""
    metrics = done.metrics
    lines = [
        f"maximum of log p(x) = {metrics['maximum_evidence']:.4f} nats per datum (closed form); "
        f"{metrics['num_gradients']} gradients a run",
        "to expect: kept rows less than 0.02 below it, steps from an encoder less than 0.1, scale "
        "ratios of 1; steps from the prior nats below",
        f"{'run':22s} {'T':>5s} {'max - bound':>12s} {'KL(q||post)':>12s} {'mean error':>11s} "
        f"{'scale ratio':>12s} {'seconds':>8s}",
    ]
    lines += [
        f"{name:22s} {one['local_steps']:5.1f} {one['short_of_maximum']:12.4f} {one['kl']:12.4f} "
        f"{one['mean_error']:11.3f} {one['scale_ratio']:12.3f} {one['seconds']:8.2f}"
        for name, one in metrics["runs"].items()
    ]
    return "\n".join(lines)


def plot(folder: Path) -> list[Path]:
    """All figures of a results folder, from the folder alone."""
    config, metrics, arrays = harness.read(folder)
    return figures.draw(folder, config, metrics, arrays, harness.read_tables(folder)["path"])


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    return harness.script(
        "stochastic_vi", Config, __doc__, args, run, report, plot, smoke=smoke_settings
    )


def smoke_settings(config: Config) -> Config:
    """The same question in a few seconds: fewer runs, fewer gradients, fewer data."""
    return dataclasses.replace(
        config,
        local_steps=(12,),
        restarted_steps=(5,),
        num_gradients=6000,
        num_data=100,
        observed_dim=5,
        num_points=5,
    )


if __name__ == "__main__":
    harness.console(main)
