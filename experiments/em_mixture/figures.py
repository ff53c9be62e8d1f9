"""The figures of `experiments.em_mixture`, from its results folder alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt

from experiments.common import figures
from experiments.common.figures import COLOURS, STYLE
from experiments.em_mixture.results import EXACT


def draw(folder: Path, metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Path]:
    """The picture of EM; the climbs; which data share a component; the gaps."""
    written = [_touching(folder, metrics, arrays), _climb(folder, metrics, arrays, "theta")]
    if "together/CAVI" in arrays:
        written += [_climb(folder, metrics, arrays, "w"), _assignments(folder, metrics, arrays)]
    return [*written, _gaps(folder, metrics)]


def _problem(metrics: Mapping[str, Any]) -> str:
    return f"{metrics['num_data']} data, {metrics['num_components']} components"


def _touching(folder: Path, metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Path:
    """Log-likelihood and bounds in one parameter; dots where E-steps were taken."""
    place, height, touch, touched, curves = (
        arrays[f"picture/{name}"] for name in ("place", "likelihood", "touch", "touched", "bounds")
    )
    figure, axes = figures.new(6.8, 4.2)
    axes.plot(place, height, color="black", linewidth=2.2, label="log p(x; theta)")
    for number, (curve, colour) in enumerate(zip(curves, COLOURS, strict=False)):
        axes.plot(place, curve, color=colour, label=f"bound after E-step {number + 1}")
        top = int(np.argmax(curve))
        axes.plot(place[top], curve[top], marker="^", markersize=6, color=colour, zorder=3)
        axes.plot(touch[number], touched[number], "o", markersize=7, color=colour, zorder=4)
    room = 0.15 * (height.max() - touched[0])
    axes.set_ylim(touched[0] - 2.0 * room, height.max() + room)
    axes.set(
        xlabel="theta: first coordinate of one component's mean (data units)",
        ylabel="log-likelihood and ELBO of all data (nats)",
    )
    axes.set_title(
        f"EM, {_problem(metrics)}: each bound touches at its E-step (dot),\n"
        "and its top (triangle) is where the M-step goes"
    )
    axes.legend(loc="upper left", frameon=False)
    return figures.save(figure, folder, "bounds")


def _climb(
    folder: Path, metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray], about: str
) -> Path:
    """The bound on all data against passes over them, every method from the same start."""
    rows = [r for r in metrics["rows"] if r["about"] == about and f"curve/{r['method']}" in arrays]
    figure, axes = figures.new(7.4, 4.0)
    series = {
        r["method"]: (1.0 + arrays[f"passes/{r['method']}"], arrays[f"curve/{r['method']}"])
        for r in rows
    }
    figures.lines(axes, series)
    if about == "w":
        evidence = rows[0]["log_evidence"]
        axes.axhline(evidence, color="black", linewidth=1.0, label="log-evidence")
        below = evidence - metrics["log_labellings"]
        axes.axhline(
            below,
            color="black",
            linewidth=1.0,
            linestyle=":",
            label=f"less log {metrics['num_components']}!",
        )
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        low = min(series["CAVI"][1][0], evidence - 6.0)
        axes.set_ylim(low, evidence + 0.1 * (evidence - low))
    axes.set(xscale="log", xlabel="1 + passes over the data")
    what = "log p(x; theta)" if about == "theta" else "ELBO"
    axes.set_ylabel(f"{what} of all data (nats)")
    words = "weights and means at their maximum" if about == "theta" else "with conjugate priors"
    axes.set_title(f"{_problem(metrics)}, {words}")
    return figures.save(figure, folder, "log_likelihood" if about == "theta" else "elbo")


def _assignments(
    folder: Path, metrics: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Path:
    """The data, and for each pair the probability that they share a component."""
    panels = {
        f"exact, {metrics['num_assignments']:,} assignments": arrays["together/exact"],
        "EM, theta at its maximum": arrays["together/EM"],
        "CAVI": arrays["together/CAVI"],
    }
    x, names = arrays["x"], [str(i + 1) for i in range(len(arrays["x"]))]
    order = np.argsort(np.arange(len(x)) % metrics["num_components"], kind="stable")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 4, figsize=(12.6, 3.5))
    for i, (first, second) in enumerate(x):
        kind = i % metrics["num_components"]
        axes[0].plot(first, second, "osD^vPX"[kind % 7], color=COLOURS[kind % 7], markersize=8)
        axes[0].annotate(names[i], (first, second), (5, 4), textcoords="offset points", fontsize=8)
    axes[0].set(
        xlabel="$x_1$ (data units)", ylabel="$x_2$ (data units)", title="data, by true component"
    )
    axes[0].margins(0.12)
    for panel, (title, shared) in zip(axes[1:], panels.items(), strict=True):
        image = panel.imshow(shared[np.ix_(order, order)], vmin=0.0, vmax=1.0, cmap="cividis")
        ticks = np.arange(len(x))
        panel.set_xticks(ticks, [names[i] for i in order], fontsize=7)
        panel.set_yticks(ticks, [names[i] for i in order], fontsize=7)
        panel.grid(visible=False)
        panel.set(title=title, xlabel="datum")
    axes[1].set_ylabel("datum")
    figure.colorbar(image, ax=list(axes[1:]), label="probability of a common component")
    return figures.save(figure, folder, "assignments")


def _gaps(folder: Path, metrics: Mapping[str, Any]) -> Path:
    """Evidence less bound by method, standard errors where there are draws."""
    rows = metrics["rows"][::-1]
    figure, axes = figures.new(8.6, 1.4 + 0.28 * len(rows))
    colours = {"theta": COLOURS[0], "w": COLOURS[1]}
    words = {"theta": "theta at its maximum", "w": "weights and means integrated out"}
    for place, row in enumerate(rows):
        label = words.pop(row["about"], None)
        gap = max(row["gap"], 0.0) if row["gap"] < EXACT else row["gap"]
        error = row["bound_se"] or None
        axes.barh(place, gap, color=colours[row["about"]], height=0.65, label=label)
        axes.errorbar(gap, place, xerr=error, color="black", capsize=3, linestyle="")
        axes.annotate(
            f"{row['gap'] + 0.0:.3f}" if abs(row["gap"]) > EXACT else "0",
            (max(gap, 0.0), place),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    cost = metrics["log_labellings"]
    axes.axvline(cost, color="black", linestyle=":", label=f"log {metrics['num_components']}!")
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("gap: log-evidence less bound (nats)")
    figure.suptitle(
        f"{_problem(metrics)}, evidence by summing {metrics['num_assignments']:,} assignments; "
        "bars: standard errors over draws",
        fontsize=10,
    )
    axes.legend(loc="upper left", bbox_to_anchor=(0.2, 1.0), fontsize=8)
    return figures.save(figure, folder, "gaps")
