"""Figures and tables of `experiments.gradient_variance`, from its result tables alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.common import figures

HALF_WIDTH = 1.96  # of a 95 % interval, in standard errors
BIASED = 0.001  # p-value below which an estimator is called biased


def draw(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Every figure that the tables of a folder allow."""
    board = _of_phi(tables["leaderboard"])
    written = [_variances(folder, board)]
    if board.microseconds.notna().all():
        written.append(_front(folder, board))
    along = _of_phi(tables["along"])
    if along["at"].nunique() > 1:
        written.append(_curves(folder, along))
    if "sweep" in tables:
        written.append(_scaling(folder, _of_phi(tables["sweep"])))
    return written


def claims_table(claims: Sequence[Mapping[str, Any]]) -> str:
    """Ours beside the published value, one line each."""
    width = max(len(claim["what"]) for claim in claims)
    lines = [f"  {'what':{width}s} {'published':>26s} {'ours':>12s} {'+-':>9s}"]
    for claim in claims:
        published = (
            claim["published"]
            if isinstance(claim["published"], str)
            else f"{claim['published']:.5g}"
        )
        error = f"{claim['error']:9.2g}" if claim["error"] else " " * 9
        verdict = "" if claim["agrees"] else "  DISAGREES"
        lines.append(
            f"  {claim['what']:{width}s} {published:>26s} {claim['ours']:12.5g} {error}{verdict}  "
            f"{claim['source']}"
        )
    return "\n".join(lines)


def leaderboard(board: Any, block: str, setting: str) -> str:
    """One line per estimator, best first; empty if the block has no parameters."""
    rows = board[board.block == block].sort_values(["rank", "variance"]).to_dict("records")
    if not rows:
        return ""
    width = max(len(row["estimator"]) for row in rows)
    first = board.estimator.iloc[0]
    lines = [
        f"gradient in {block}: {setting}; equal ranks are ties, ratios and efficiencies are to "
        f"{first}",
        f"  rank  {'estimator':{width}s} {'variance':>9s} {'+-':>7s} {'ratio':>8s} "
        f"{'[95 % interval]':>19s} {'SNR':>7s} "
        f"{'bias z':>7s} {'evals':>7s} {'us':>8s} {'efficiency':>10s} {'[95 % interval]':>19s}",
    ]
    for row in rows:
        ratio, efficiency = (_interval(row, name) for name in ("ratio", "efficiency"))
        star = "*" if row["p_value"] < BIASED or not np.isfinite(row["variance"]) else " "
        lines.append(
            f"  {row['rank']:4d}  {row['estimator']:{width}s} {row['variance']:9.3g} "
            f"{row['variance_error']:7.1g} "
            f"{row['ratio']:8.3g} {ratio} {row['snr']:7.3g} {row['worst_z']:6.1f}{star} "
            f"{row['evaluations']:7d} "
            f"{row['microseconds']:8.1f} {row['efficiency']:10.3g} {efficiency}"
        )
    note = (
        f"  bias z: the largest of an element; *: p < {BIASED} over all, or infinite; "
        f"efficiency: 1 / (variance x time)"
    )
    return "\n".join([*lines, note])


def slopes_table(slopes: Any) -> str:
    """Slopes of the sweep with their intervals."""
    lines = ["slope of log SNR against log K, importance-weighted bound, and its 95 % interval"]
    for row in slopes.to_dict("records"):
        lines.append(
            f"  {row['estimator']:34s} {row['block']:6s} {row['slope']:6.2f}  [{row['low']:.2f}, "
            f"{row['high']:.2f}]"
        )
    return "\n".join(lines)


def _interval(row: Mapping[str, Any], name: str) -> str:
    return f"[{row[f'{name}_low']:8.3g},{row[f'{name}_high']:8.3g}]"


def _variances(folder: Path, board: Any) -> Path:
    """Variance by estimator, best at the top, 95 % intervals, ranks in the margin; biased ones are
    hollow.
    """
    rows = board.sort_values(["rank", "variance"], ascending=False)
    figure, axes = figures.new(6.4, 1.2 + 0.26 * len(rows))
    place = np.arange(len(rows))
    _points(axes, rows.variance.to_numpy(), place, rows, horizontal=True)
    axes.set_yticks(
        place,
        [f"{name}  ({rank})" for name, rank in zip(rows.estimator, rows["rank"], strict=True)],
    )
    axes.set(xscale="log", xlabel="variance of phi's gradient  (rank; hollow: biased)")
    return figures.save(figure, folder, "variance")


def _front(folder: Path, board: Any) -> Path:
    """Variance against time per gradient, and the front of those that nothing beats in both."""
    figure, axes = figures.new(6.4, 4.4)
    time, variance = board.microseconds.to_numpy(), board.variance.to_numpy()
    unbiased = (~(board.p_value < BIASED)).to_numpy()
    best = [
        i
        for i in np.flatnonzero(unbiased)
        if not np.any(unbiased & (time < time[i]) & (variance < variance[i]))
    ]
    best.sort(key=lambda i: time[i])
    axes.plot(time[best], variance[best], color="0.6", zorder=1, label="best for their cost")
    _points(axes, variance, time, board, horizontal=False)
    drawn: list[tuple[float, float]] = []
    for name, x, y in sorted(
        zip(board.estimator, np.log10(time), np.log10(np.maximum(variance, 1e-30)), strict=True)
    ):
        # Names of neighbours go below each other
        near = sum(abs(x - a) < 0.5 and abs(y - b) < 0.12 for a, b in drawn)
        axes.annotate(
            name, (10**x, 10**y), xytext=(6, 3 - 9 * near), textcoords="offset points", fontsize=7
        )
        drawn.append((x, y))
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="microseconds per gradient",
        ylabel="variance of phi's gradient",
    )
    axes.margins(x=0.25)
    axes.legend(loc="best", frameon=False)
    return figures.save(figure, folder, "cost")


def _curves(folder: Path, along: Any) -> Path:
    """Variance along the training path."""
    figure, axes = figures.new(7.2, 4.0)
    _lines(axes, along, "variance")
    axes.set(yscale="log", xlabel="step of the training path", ylabel="variance of phi's gradient")
    return figures.save(figure, folder, "along_training")


def _scaling(folder: Path, sweep: Any) -> Path:
    """Signal-to-noise ratio against K."""
    figure, axes = figures.new(6.4, 3.8)
    _lines(axes, sweep[sweep.snr > 0], "snr")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="K, samples of the importance-weighted bound",
        ylabel="SNR of phi's gradient",
    )
    ticks = np.unique(sweep["at"])
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    return figures.save(figure, folder, "snr_against_k")


def _points(
    axes: Axes, variance: np.ndarray, other: np.ndarray, rows: Any, *, horizontal: bool
) -> None:
    low, high = _bounds(variance, rows.variance_error.to_numpy())
    for i, biased in enumerate(rows.p_value < BIASED):
        x, y = (variance[i], other[i]) if horizontal else (other[i], variance[i])
        face = "white" if biased else figures.TRAIN
        error = np.array([[variance[i] - low[i]], [high[i] - variance[i]]])
        across, along = (error, None) if horizontal else (None, error)
        axes.errorbar(
            x,
            y,
            xerr=across,
            yerr=along,
            fmt="o",
            markersize=5,
            color=figures.TRAIN,
            markerfacecolor=face,
        )


def _lines(axes: Axes, table: Any, column: str) -> None:
    """One line per estimator with its 95 % band."""
    colours = matplotlib.colormaps["tab10"]
    for i, (name, rows) in enumerate(table.groupby("estimator", sort=False)):
        value = rows[column].to_numpy()
        style = "-" if i < 10 else "--"
        axes.plot(
            rows["at"],
            value,
            color=colours(i % 10),
            linestyle=style,
            marker="o",
            markersize=3.5,
            label=name,
        )
        axes.fill_between(
            rows["at"],
            *_bounds(value, rows[f"{column}_error"].to_numpy()),
            color=colours(i % 10),
            alpha=0.15,
            linewidth=0,
        )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _bounds(value: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a positive figure, on the scale of its logarithm."""
    factor = np.exp(HALF_WIDTH * error / np.maximum(value, 1e-300))
    return value / factor, value * factor


def _of_phi(table: Any) -> Any:
    return table[table.block == "phi"]
