"""The figures of `experiments.gradient_variance`, from its result tables alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from experiments.common import figures
from experiments.common.figures import COLOURS
from experiments.gradient_variance.tables import data_of, setting
from vijax.lab.bias import FINE

HALF_WIDTH = 1.96  # of a 95 % interval, in standard errors
VARIANCE = "variance of phi's gradient,\nsummed over elements (nats$^2$)"
"""The quantity and unit of `lab.gradient_report`, as axes name it."""
# Okabe and Ito, without the yellow, which paper swallows
MARKERS = "osD^vPX"


def draw(
    folder: Path, tables: Mapping[str, pd.DataFrame], metrics: Mapping[str, Any]
) -> list[Path]:
    """Every figure that the tables of a folder allow."""
    board, title = _of_phi(tables["leaderboard"]), setting(metrics)
    written = [_variances(folder, board, title)]
    if board.microseconds.notna().all():
        written.append(_front(folder, board, title))
    along = _of_phi(tables["along"])
    if along["at"].nunique() > 1:
        written.append(_curves(folder, along, title))
    if "sweep" in tables:
        place = f"{data_of(metrics)}, importance-weighted bound, {metrics['num_draws']} draws"
        written.append(_scaling(folder, _of_phi(tables["sweep"]), place))
    return written


def _variances(folder: Path, board: Any, title: str) -> Path:
    """Variance by estimator, best at the top, 95 % intervals, ranks in the margin; those apart are
    hollow, at the bottom.
    """
    rows = board.sort_values(["rank", "variance"], ascending=False)
    figure, axes = figures.new(7.0, 1.6 + 0.26 * len(rows))
    for place, row in enumerate(rows.to_dict("records")):
        style = look(names_of(board).index(row["estimator"]))
        _point(axes, row["variance"], place, row, style, across=_error(row, "variance"))
    names = [
        f"{row['estimator']}  ({row['rank'] if row['status'] in FINE else row['status']})"
        for row in rows.to_dict("records")
    ]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xscale="log", xlabel=VARIANCE)
    words = "bars: 95 % intervals; in brackets: rank, equal for ties; hollow: apart"
    figure.suptitle(f"{title}\n{words}", fontsize=9)
    return figures.save(figure, folder, "variance")


def _front(folder: Path, board: Any, title: str) -> Path:
    """Variance against time per gradient with the intervals of both, and the front of those that
    nothing beats in both.
    """
    figure, axes = figures.new(7.4, 4.2)
    rows = board.sort_values(["rank", "variance"]).to_dict("records")
    fine = [row for row in rows if row["status"] in FINE]
    best = [
        row
        for row in fine
        if not any(
            one["microseconds"] < row["microseconds"] and one["variance"] < row["variance"]
            for one in fine
        )
    ]
    best.sort(key=lambda row: row["microseconds"])
    time, variance = ([row[name] for row in best] for name in ("microseconds", "variance"))
    axes.plot(time, variance, color="0.6", zorder=1, label="best for their cost")
    for row in rows:
        low, high = row["microseconds_low"], row["microseconds_high"]
        across = (row["microseconds"] - low, high - row["microseconds"])
        place = (row["microseconds"], row["variance"])
        style = look(names_of(board).index(row["estimator"]))
        along, label = _error(row, "variance"), row["estimator"]
        _point(axes, *place, row, style, across=across, along=along, label=label)
    axes.set(xscale="log", yscale="log", xlabel="microseconds per gradient", ylabel=VARIANCE)
    axes.set_title(f"{title}\nbars: 95 % intervals; hollow: ranked apart", fontsize=9)
    _legend(axes)
    return figures.save(figure, folder, "cost")


def _curves(folder: Path, along: Any, title: str) -> Path:
    """Variance along the training path."""
    figure, axes = figures.new(7.6, 4.2)
    _lines(axes, along, "variance")
    axes.set(yscale="log", xlabel="step of the training path", ylabel=VARIANCE)
    axes.set_title(f"{title}\nbands: 95 % intervals; hollow: ranked apart", fontsize=9)
    return figures.save(figure, folder, "along_training")


def _scaling(folder: Path, sweep: Any, title: str) -> Path:
    """Signal-to-noise ratio against K."""
    figure, axes = figures.new(7.2, 4.0)
    _lines(axes, sweep[sweep.snr > 0], "snr")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="K, samples of the importance-weighted bound",
        ylabel="SNR of phi's gradient (no unit)",
    )
    ticks = np.unique(sweep["at"])
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.minorticks_off()
    axes.set_title(f"{title}\nbands: 95 % intervals; hollow: ranked apart", fontsize=9)
    return figures.save(figure, folder, "snr_against_k")


def _point(
    axes: Axes,
    x: float,
    y: float,
    row: Mapping[str, Any],
    style: Mapping[str, Any],
    *,
    across: tuple[float, float] | None = None,
    along: tuple[float, float] | None = None,
    label: str = "",
) -> None:
    """One estimator with its intervals, as (below, above)."""
    bars = (None if bar is None else np.reshape(bar, (2, 1)) for bar in (across, along))
    xerr, yerr = bars
    axes.errorbar(
        x,
        y,
        xerr=xerr,
        yerr=yerr,
        **style,
        linestyle="",
        capsize=2,
        markerfacecolor=style["color"] if row["status"] in FINE else "white",
        label=label or None,
    )


def names_of(table: Any) -> list[str]:
    """The estimators, in the order in which they are compared: every figure gives each one look."""
    return list(dict.fromkeys(table.estimator))


def look(number: int) -> dict[str, Any]:
    """Colour and marker of an estimator; 49 have different ones."""
    size = len(COLOURS)
    marker = MARKERS[(number + number // size) % size]
    return {"color": COLOURS[number % size], "marker": marker, "markersize": 5}


def _lines(axes: Axes, table: Any, column: str) -> None:
    """One line per estimator with its 95 % band; every line has a colour and a marker."""
    for i, (name, rows) in enumerate(table.groupby("estimator", sort=False)):
        rows, style = rows.sort_values("at"), look(i)
        value = rows[column].to_numpy()
        axes.plot(rows["at"], value, label=name, **style)
        apart = ~rows.status.isin(FINE)
        hollow = {"linestyle": "", "markerfacecolor": "white", "zorder": 3}
        axes.plot(rows["at"][apart], value[apart], **(style | hollow))
        low, high = _bounds(value, rows[f"{column}_error"].to_numpy())
        axes.fill_between(rows["at"], low, high, color=style["color"], alpha=0.15, linewidth=0)
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _error(row: Mapping[str, Any], name: str) -> tuple[float, float]:
    """The half-widths of a 95 % interval, below and above."""
    low, high = _bounds(np.asarray(row[name]), np.asarray(row[f"{name}_error"]))
    return float(row[name] - low), float(high - row[name])


def _bounds(value: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a positive figure, on the scale of its logarithm."""
    factor = np.exp(HALF_WIDTH * error / np.maximum(value, 1e-300))
    return value / factor, value * factor


def _of_phi(table: Any) -> Any:
    return table[table.block == "phi"]
