"""The figures of `experiments.vae`, from its results folder alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy import special

from experiments.common.figures import STYLE, TEST, THIRD, TRAIN, new, plt, save
from experiments.vae.panels import histogram, image_grid, latent_map, plane, row_labels
from experiments.vae.report import ACTIVE, activity

UNIT = "ELBO, nats per image"


def draw(
    folder: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    history: Any,
) -> list[Path]:
    """Every figure of a run; bands and bars are standard errors, over seeds where there are
    several, otherwise over images.
    """
    title = setting(config, metrics)
    figure, axes = new(5.8, 4.0)
    learning_curve(axes, history)
    axes.set_title(f"{title}\n{_bands(history)}", fontsize=9)
    written = [save(figure, folder, "learning_curve"), _progress(folder, history, title)]

    pairs = np.concatenate([arrays["original"], arrays["reconstruction"]])
    figure, axes = new(6.4, 1.9)
    image_grid(axes, pairs, columns=len(arrays["original"]))
    row_labels(axes, ["test image", "mean of p(x | z)"], pairs.shape[1])
    axes.set_title(title, fontsize=9)
    written.append(save(figure, folder, "reconstructions"))

    figure, axes = new(4.6, 4.9)
    image_grid(axes, arrays["prior_means"], columns=10)
    axes.set_title(f"{title}\nmean of p(x | z) at 100 draws z of the prior", fontsize=9)
    written.append(save(figure, folder, "prior_samples"))
    if "manifold" in arrays:
        written.append(_manifold(folder, arrays["manifold"], title))

    points, names = plane(arrays["latent"])
    figure, axes = new(5.8, 4.6)
    classes = np.unique(arrays["label"])
    renumbered = np.searchsorted(classes, arrays["label"])
    latent_map(axes, points, renumbered, [str(c) for c in classes], axis_names=names)
    axes.set_title(f"{title}\nposterior means of {len(points)} test images", fontsize=9)
    written.append(save(figure, folder, "latent_map"))

    figure, axes = new(5.4, 3.9)
    histogram(axes, arrays["train_elbo"], arrays["test_elbo"], unit=UNIT)
    axes.set_title(title, fontsize=9)
    written.append(save(figure, folder, "elbo_histogram"))
    written.append(_split(folder, arrays["test_elbo"], arrays["test_kl"], title))
    written.append(_units(folder, arrays["kl_of_units"], arrays["latent"], title))
    return written


def setting(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Problem, objective, K, rule and data of a run."""
    guide = "encoder" if config["guide"] == "amortized" else "one phi_i per image"
    return (
        f"VAE on {config['data']}, N = {metrics['num_train']}, D = {config['latent_dim']}, {guide}"
        f"\n{config['objective'].upper()}, K = {metrics['num_samples']}, {config['rule']}"
    )


def _bands(history: Any) -> str:
    """What a band is."""
    seeds = history.seed.nunique()
    if seeds > 1:
        return f"band: standard error over {seeds} seeds"
    if "test_elbo_images_se" in history:
        return "band: standard error over images"
    return "one seed"


def _banded(axes: Axes, history: Any, x: str, y: str, colour: str, label: str) -> None:
    """Mean over seeds of a column against another, with its standard error."""
    grouped = history.groupby("step")
    mean, at = grouped[y].mean().to_numpy(), grouped[x].mean().to_numpy()
    error = np.zeros(len(mean))
    if history.seed.nunique() > 1:
        error = grouped[y].sem(ddof=1).to_numpy()
    elif f"{y}_images_se" in history:
        error = grouped[f"{y}_images_se"].mean().to_numpy()
    axes.plot(at, mean, color=colour, label=label)
    axes.fill_between(at, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def _progress(folder: Path, history: Any, title: str) -> Path:
    """Bound against training images seen and against seconds of training. Kingma and Welling 2014,
    figures 2 and 3.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.9), sharey=True)
    for axes, x, label in zip(
        panels,
        ("samples_seen", "seconds"),
        ("training images seen, repetitions included", "seconds of training, without compiling"),
        strict=True,
    ):
        for y, colour, name in (("train_elbo", TRAIN, "train"), ("test_elbo", TEST, "test")):
            _banded(axes, history, x, y, colour, name)
        axes.set(xscale="log", xlabel=label, ylim=_without_the_climb(history))
    panels[0].set_ylabel(UNIT)
    panels[1].legend(loc="lower right", frameon=False)
    figure.suptitle(f"{title}; {_bands(history)}", fontsize=9)
    return save(figure, folder, "bound_against_samples_and_time")


def _without_the_climb(history: Any) -> tuple[float, float]:
    """Limits of an axis that leave out the first points, which would flatten the rest."""
    values = history[["train_elbo", "test_elbo"]].to_numpy()
    low, high = np.quantile(values, 0.1 if len(values) >= 10 else 0.0), np.max(values)
    room = max(high - low, 1e-3)
    return float(low - 0.15 * room), float(high + 0.08 * room)


def quantile_grid(side: int = 20) -> np.ndarray:
    """[side^2, 2] z at quantiles of a 2-dimensional prior, 0.025 to 0.975, as an `image_grid` lays
    them out: z_1 grows to the right, z_2 upwards.
    """
    steps = special.ndtri(np.linspace(0.025, 0.975, side))
    across, up = np.meshgrid(steps, steps[::-1])
    return np.stack([across.ravel(), up.ravel()], axis=1).astype(np.float32)


def _manifold(folder: Path, images: np.ndarray, title: str) -> Path:
    """Means of p(x | z) over the plane of a 2-dimensional z. Kingma and Welling 2014, figure 4."""
    side = round(len(images) ** 0.5)
    figure, axes = new(5.2, 5.6)
    image_grid(axes, images, columns=side)
    axes.set(xlabel="$z_1$, quantiles 0.025 to 0.975", ylabel="$z_2$, quantiles 0.025 to 0.975")
    axes.set_title(f"{title}\nmean of p(x | z) at quantiles of the prior", fontsize=9)
    return save(figure, folder, "manifold")


def _split(folder: Path, elbo: np.ndarray, kl: np.ndarray, title: str) -> Path:
    """Every test image's reconstruction and KL, whose difference is its ELBO; lines are of one
    ELBO.
    """
    reconstruction = elbo + kl
    figure, axes = new(5.6, 4.4)
    axes.scatter(reconstruction, kl, s=9, color=TRAIN, alpha=0.35, linewidths=0)
    centre = [np.mean(values) for values in (reconstruction, kl)]
    errors = [np.std(values, ddof=1) / len(kl) ** 0.5 for values in (reconstruction, kl)]
    label = f"mean: {centre[0]:.2f} - {centre[1]:.2f} = {centre[0] - centre[1]:.2f}"
    across, up = errors
    axes.errorbar(centre[0], centre[1], up, across, fmt="o", color=TEST, capsize=3, label=label)
    limits = axes.get_xlim(), axes.get_ylim()
    for level in np.quantile(elbo, [0.05, 0.5, 0.95]):
        ends = np.array(limits[0])
        axes.plot(ends, ends - level, color="0.6", linewidth=0.8, zorder=0)
        at = np.clip(limits[1][1] + level, *limits[0])
        place = (at, at - level)
        axes.annotate(f" ELBO {level:.0f}", place, fontsize=8, color="0.4", va="top")
    axes.set(
        xlabel="reconstruction E$_q$[log p(x | z)], nats per image",
        ylabel="KL(q(z) || p(z)), nats per image",
        xlim=limits[0],
        ylim=limits[1],
    )
    axes.set_title(f"{title}\n{len(kl)} test images; bars: standard errors", fontsize=9)
    axes.legend(loc="upper left", frameon=False)
    return save(figure, folder, "elbo_split")


def _units(folder: Path, kl: np.ndarray, mean: np.ndarray, title: str) -> Path:
    """KL of every unit of z, the largest first, and the variance of its posterior mean; units that
    are not active are hollow.
    """
    order = np.argsort(-kl.mean(axis=0))
    varies, place = activity(mean)[order], np.arange(1, len(order) + 1)
    used = varies > ACTIVE
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.8))
    height, error = kl.mean(axis=0)[order], kl.std(axis=0, ddof=1)[order] / len(kl) ** 0.5
    left.bar(
        place,
        height,
        yerr=error,
        color=[THIRD if active else "white" for active in used],
        edgecolor=THIRD,
        capsize=2,
    )
    left.set(xlabel="unit of z, by its KL", ylabel="KL of the unit, nats per image")
    right.scatter(place[used], varies[used], color=THIRD, label="active")
    right.scatter(place[~used], varies[~used], color="white", edgecolors=THIRD, label="not active")
    right.axhline(ACTIVE, color="0.4", linestyle="--", linewidth=1.0)
    right.set(
        yscale="log", xlabel="unit of z, by its KL", ylabel="variance over images of E$_q$[z]"
    )
    right.legend(frameon=False)
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    count = f"{np.sum(used)} of {len(used)} units are active (variance > {ACTIVE:g})"
    figure.suptitle(f"{title}\n{count}; bars: standard errors over {len(kl)} images", fontsize=9)
    return save(figure, folder, "active_units")


def learning_curve(axes: Axes, history: Any) -> None:
    """Train and test ELBO by epoch. The axis leaves out the first climb, which would flatten the
    rest.
    """
    by_step = history.groupby("step")
    train, test = (by_step[name].mean().to_numpy() for name in ("train_elbo", "test_elbo"))
    labels = f"train, last {train[-1]:.2f}", f"test, last {test[-1]:.2f}, best {np.max(test):.2f}"
    for y, colour, label in zip(("train_elbo", "test_elbo"), (TRAIN, TEST), labels, strict=True):
        _banded(axes, history, "epoch", y, colour, label)
    axes.set(xlabel="epoch", ylabel=UNIT, ylim=_without_the_climb(history))
    axes.set_xlim(0, history.epoch.max())
    axes.legend(loc="lower right", frameon=False)
