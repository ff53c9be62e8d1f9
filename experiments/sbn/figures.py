"""The figures of `experiments.sbn`, from its results folder alone."""

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
    history: Any,
) -> list[Path]:
    """One line per rule in each. Bars and bands are standard errors: over seeds where there are
    several, otherwise over test images, or of the measured variance.
    """
    rules, seeds = metrics["rules"], history.seed.nunique()
    name_of = {name: f"{name}, K = {rules[name]['num_samples']}" for name in rules}
    layers = ", ".join(map(str, config["layers"]))
    problem = f"sigmoid belief net ({layers}) on {config['data']}, {metrics['num_train']} images"
    over = f"; mean and standard error of {seeds} seeds" if seeds > 1 else ""
    written = []

    curves = {n: smooth(arrays[f"curve_{n}"]) for n in rules}
    figure, axes = figures.new(6.8, 4.2)
    figures.lines(
        axes,
        {name_of[n]: (arrays[f"step_{n}"], curves[n].mean(axis=0)) for n in rules},
        errors={name_of[n]: standard_error(curves[n]) for n in rules} if seeds > 1 else {},
    )
    low = min(float(np.quantile(curve, 0.15)) for curve in curves.values())
    axes.set(xlabel="step", ylabel="ELBO of training minibatches, nats per image", ylim=(low, None))
    axes.set_title(f"{problem}\nobjective ELBO{over}")
    written.append(figures.save(figure, folder, "train_elbo"))

    series, errors = by_rule(history, "test_bound", "test_bound_images_se", name_of)
    if series:
        figure, axes = figures.new(6.8, 4.2)
        figures.lines(axes, series, marker="o", errors=errors)
        k, of = metrics["evidence_samples"], over or f"; standard error over {metrics['num_test']}"
        axes.set(xlabel="training step", ylabel=f"test bound (K = {k}), nats per image")
        # The first point, before any training, would flatten the rest
        reached = history[history.step > 0].test_bound.dropna()
        if len(reached):
            room = 0.1 * (reached.max() - reached.min()) + history.test_bound_images_se.max()
            axes.set_ylim(reached.min() - room, reached.max() + room)
        axes.set_title(f"{problem}\nobjective ELBO{of}{'' if over else ' test images'}")
        written.append(figures.save(figure, folder, "test_bound"))

    series, errors = by_rule(history, "variance", "variance_se", name_of)
    if series:
        figure, axes = figures.new(6.8, 4.2)
        figures.lines(axes, series, marker="o", errors=errors)
        axes.set(
            xlabel=f"step of the {config['rules'][0]} run",
            ylabel="variance of phi's gradient,\nsummed over its elements, nats$^2$",
            yscale="log",
        )
        axes.set_title(
            f"{problem}\nELBO of all images from a batch of {config['batch_size']}{over}"
        )
        written.append(figures.save(figure, folder, "gradient_variance"))
    return written


def by_rule(
    history: Any, value: str, error: str, name_of: Mapping[str, str]
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
    """Name -> (step, mean over seeds) of a column, and name -> its standard error: over seeds where
    there are several, otherwise that of the column `error`. Rules without a value are left out.
    """
    series, errors = {}, {}
    known = history.dropna(subset=[value])
    for rule, rows in known.groupby("rule", sort=False):
        grouped = rows.groupby("step")
        name, mean = name_of[str(rule)], grouped[value].mean()
        series[name] = (mean.index.to_numpy(), mean.to_numpy())
        own = grouped[error].mean()
        spread = grouped[value].sem(ddof=1) if rows.seed.nunique() > 1 else own
        errors[name] = spread.to_numpy()
    return series, errors


def standard_error(curves: np.ndarray) -> np.ndarray:
    """[T] of the mean over the rows of [S, T]."""
    return curves.std(axis=0, ddof=1) / len(curves) ** 0.5


def smooth(curves: np.ndarray, width: int = 9) -> np.ndarray:
    """[S, T] running means over `width` records, shorter at the ends."""
    kernel, size = np.ones(min(width, curves.shape[1])), np.ones(curves.shape[1])
    sums = np.stack([np.convolve(curve, kernel, "same") for curve in curves])
    return sums / np.convolve(size, kernel, "same")
