"""Figures that more than one script draws, in one style. Each function draws on axes it is given;
`save` writes the file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, nor looked for

import numpy as np  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# Okabe and Ito: told apart by colour-blind readers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TRAIN, TEST, THIRD = COLOURS[:3]
STYLE: Any = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
}


def new(width: float = 5.2, height: float = 3.6) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches."""
    with plt.rc_context(STYLE):
        return plt.subplots(figsize=(width, height))


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Writes folder/figures/name.png and closes the figure."""
    path = Path(folder) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=STYLE["savefig.dpi"])
    plt.close(figure)
    return path


def lines(
    axes: Axes,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    marker: str | None = None,
    errors: Mapping[str, np.ndarray] = {},  # noqa: B006  (never written to)
) -> None:
    """One named line per entry (x [T], y [T]); colours repeat after seven, then dashed.

    Args:
      errors: half-widths [T] by name: error bars where there are markers, otherwise a band.
    """
    for i, (name, (x, y)) in enumerate(series.items()):
        again, which = divmod(i, len(COLOURS))
        look = {"color": COLOURS[which], "linestyle": ("-", "--", ":")[again % 3]}
        style: Any = {**look, "label": name}
        half = errors.get(name)
        if marker is not None:
            axes.errorbar(x, y, half, marker=marker, markersize=4, capsize=2, **style)
        else:
            axes.plot(x, y, **style)
        if marker is None and half is not None:
            axes.fill_between(x, y - half, y + half, color=COLOURS[which], alpha=0.2, linewidth=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
