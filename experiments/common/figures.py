"""Figures that more than one script draws, in one style. Each function draws on axes it is given;
`save` writes the file.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, nor looked for

import numpy as np  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# Okabe and Ito: told apart by colour-blind readers
TRAIN, TEST, THIRD = "#0072B2", "#D55E00", "#009E73"
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
    axes: Axes, series: dict[str, tuple[np.ndarray, np.ndarray]], *, marker: str | None = None
) -> None:
    """One named line per entry (x [T], y [T]); colours repeat after ten, then dashed."""
    colours = matplotlib.colormaps["tab10"]
    for i, (name, (x, y)) in enumerate(series.items()):
        axes.plot(
            x,
            y,
            color=colours(i % 10),
            linestyle="-" if i < 10 else "--",
            marker=marker,
            markersize=4,
            label=name,
        )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
