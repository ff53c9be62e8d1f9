"""The figures of `experiments.stochastic_vi`, from its results folder alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import figures


def draw(
    folder: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    path: Any,
) -> list[Path]:
    """How far the bound is from the maximum, along every run and at its end; q beside the exact
    posteriors.
    """
    problem = (
        f"probabilistic PCA, {config['latent_dim']} of {config['observed_dim']} dimensions, "
        f"N = {config['num_data']}, B = {config['batch_size']}"
    )
    path = path.assign(short=metrics["maximum_evidence"] - path.bound)
    return [
        along(folder, path, "theta_steps", "steps of theta", problem),
        along(folder, path, "seconds", "seconds of training", problem),
        at_the_end(folder, metrics, problem),
        posteriors(folder, metrics, arrays, problem),
    ]


def along(folder: Path, path: Any, column: str, label: str, problem: str) -> Path:
    """One line per run with kept rows."""
    kept = path[path.policy == "kept"]
    figure, axes = figures.new(6.8, 4.2)
    figures.lines(
        axes,
        {
            str(name): (rows[column].to_numpy(), rows.short.to_numpy())
            for name, rows in kept.groupby("run", sort=False)
        },
        marker="o",
    )
    axes.set(
        xlabel=label,
        ylabel="maximum of log p(x) less the bound,\nnats per datum",
        xscale="linear" if column == "seconds" else "log",
        yscale="log",
    )
    axes.set_title(f"{problem}\nall runs: {int(kept.gradients.max()):,} gradients")
    return figures.save(figure, folder, f"bound_by_{column}")


def at_the_end(folder: Path, metrics: Mapping[str, Any], problem: str) -> Path:
    """What every policy is short of, against T."""
    figure, axes = figures.new(6.8, 4.2)
    policies: dict[str, list[tuple[float, float]]] = {}
    for name, one in metrics["runs"].items():
        policy = "kept, until the bound stops rising" if "until" in name else LABELS[one["policy"]]
        policies.setdefault(policy, []).append((one["local_steps"], one["short_of_maximum"]))
    series = {name: tuple(np.array(points).T) for name, points in policies.items()}
    figures.lines(axes, series, marker="o")
    axes.set(
        xlabel="T, steps of phi$_i$ per step of theta",
        ylabel="maximum of log p(x) less the last bound,\nnats per datum",
        xscale="log",
        yscale="log",
    )
    axes.set_title(f"{problem}\n{metrics['num_gradients']:,} gradients a run")
    return figures.save(figure, folder, "bound_by_local_steps")


LABELS = {
    "kept": "rows go on from where they were",
    "prior": "rows start at the prior",
    "encoder": "steps start at a linear encoder",
}


def posteriors(
    folder: Path, metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray], problem: str
) -> Path:
    """Means and standard deviations of q against the exact ones, the longest run of each policy."""
    longest = {one["policy"]: name for name, one in metrics["runs"].items() if "until" not in name}
    with figures.plt.rc_context(figures.STYLE):
        figure, panels = figures.plt.subplots(1, 2, figsize=(8.4, 4.0))
    for what, axes in zip(("mean", "scale"), panels, strict=True):
        seen = [arrays[f"exact_{what}_{name}"].ravel() for name in longest.values()]
        ends = np.min(np.concatenate(seen)), np.max(np.concatenate(seen))
        room = 0.3 * (ends[1] - ends[0]) + 0.02
        low, high = ends[0] - room, ends[1] + room
        axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=0)
        for exact, name, colour in zip(seen, longest.values(), figures.COLOURS, strict=False):
            axes.plot(
                exact, arrays[f"{what}_{name}"].ravel(), ".", color=colour, markersize=3, alpha=0.5
            )
            axes.plot([], [], "o", color=colour, label=name)
        word = "mean" if what == "mean" else "standard deviation"
        axes.set(xlabel=f"exact posterior {word}", ylabel=f"{word} of q", xlim=(low, high))
    panels[0].legend(loc="upper left")
    figure.suptitle(f"{problem}: every datum's q and its exact posterior", fontsize=10)
    return figures.save(figure, folder, "posteriors")
