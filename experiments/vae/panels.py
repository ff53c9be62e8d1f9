"""Panels of images and of points, drawn on axes that they are given."""

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from experiments.common.figures import TEST, TRAIN

# Okabe and Ito, and two greys; markers tell apart what colours may not
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#A08900",
    "#999999",
    "#7F3C00",
)
MARKERS = "osD^vPX*<>"


def image_grid(axes: Axes, images: np.ndarray, columns: int, *, gap: int = 1) -> None:
    """Images [M, rows, cols] in [0, 1], ink is dark, row by row with `columns` to a row; cells are
    framed by grey lines.
    """
    rows = -(-len(images) // columns)
    height, width = images.shape[1:]
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap), np.nan)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    colours = matplotlib.colormaps["gray_r"].with_extremes(bad="#C8D3DC")
    axes.imshow(sheet, cmap=colours, vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def row_labels(axes: Axes, labels: list[str], cell: int, *, gap: int = 1) -> None:
    """Names the rows of an `image_grid` whose images are `cell` pixels high."""
    axes.set_yticks([gap + i * (cell + gap) + cell / 2 - 0.5 for i in range(len(labels))], labels)
    axes.tick_params(axis="y", length=0)


def latent_map(
    axes: Axes,
    points: np.ndarray,
    label: np.ndarray,
    names: list[str],
    *,
    axis_names: tuple[str, str],
) -> None:
    """Points [M, 2] coloured by class [M]; up to ten classes get a legend and their name at the
    median.
    """
    few = len(names) <= 10
    halo = [patheffects.withStroke(linewidth=3, foreground="white")]
    for c, name in enumerate(names):
        mine = points[label == c]
        colour = COLOURS[c] if few else matplotlib.colormaps["viridis"](c / (len(names) - 1))
        axes.scatter(
            mine[:, 0],
            mine[:, 1],
            s=18,
            color=colour,
            marker=MARKERS[c] if few else "o",
            alpha=0.8,
            linewidths=0,
            label=name if few else None,
        )
        if few:
            middle = tuple(np.median(mine, axis=0).tolist())
            axes.annotate(name, middle, fontsize=11, weight="bold", path_effects=halo)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.set_aspect("equal", adjustable="datalim")
    if few:
        axes.legend(
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            frameon=False,
            markerscale=1.6,
            handletextpad=0.1,
        )


def histogram(axes: Axes, train: np.ndarray, test: np.ndarray, *, unit: str) -> None:
    """Two distributions on one set of bins, as densities, with their means."""
    both = np.concatenate([train, test])
    bins = np.linspace(np.quantile(both, 0.002), np.max(both), 36)
    for values, colour, name in ((train, TRAIN, "train"), (test, TEST, "test")):
        label = f"{name}: mean {values.mean():.2f}, sd {values.std():.2f}"
        inside = np.clip(values, bins[0], bins[-1])  # the few below the first bin are counted in it
        axes.hist(inside, bins=bins, density=True, color=colour, alpha=0.35, label=label)
        axes.hist(inside, bins=bins, density=True, color=colour, histtype="step", linewidth=1.3)
        axes.axvline(values.mean(), ymax=0.76, color=colour, linestyle="--", linewidth=1.2)
    axes.set(xlabel=unit, ylabel="density of images")
    axes.set_ylim(0.0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper left", frameon=False)


def plane(means: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """[M, D] -> [M, 2] and names of the axes: as they are for D = 2, with zeros for D = 1, else two
    principal components.
    """
    if means.shape[1] <= 2:
        return np.pad(means, ((0, 0), (0, 2 - means.shape[1]))), (
            "$z_1$",
            "$z_2$" if means.shape[1] == 2 else "",
        )
    left, singular, _ = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    share = singular**2 / np.sum(singular**2)
    names = (f"principal component 1 ({share[0]:.0%})", f"principal component 2 ({share[1]:.0%})")
    return left[:, :2] * singular[:2], names
