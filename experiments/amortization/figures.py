"""The figures of `experiments.amortization`, from its results folder alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.amortization.problem import GUIDES, NAMES
from experiments.common.figures import COLOURS, STYLE, new, plt, save

LOOK: Mapping[str, tuple[str, str]] = dict(
    zip(GUIDES, zip(COLOURS, "osD", strict=False), strict=True)
)


def draw(
    folder: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    history: Any,
) -> list[Path]:
    """Whatever the run has come to; bars are standard errors over images."""
    title = f"VAE on {config['data']}, N = {metrics['num_train']}, D = {config['latent_dim']}"
    judged = list(metrics["guides"])
    written = [_against_time(folder, title, history)]
    if judged:
        written.append(_scatter(folder, title, arrays, judged))
    if "refinement_steps" in arrays:
        written.append(_refinement(folder, title, config, arrays))
    if "widths" in arrays:
        written.append(_widths(folder, title, config, arrays))
    return written


def _against_time(folder: Path, title: str, history: Any) -> Path:
    """Both splits' ELBO against seconds of training."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(9.0, 3.9), sharey=True)
    for axes, split in zip(panels, ("train", "test"), strict=True):
        for guide, rows in history.groupby("guide", sort=False):
            colour, marker = LOOK[str(guide)]
            look: Any = {"color": colour, "marker": marker, "markersize": 3}
            axes.plot(rows.seconds, rows[f"{split}_elbo"], label=NAMES[str(guide)], **look)
            error = rows[f"{split}_elbo_images_se"]
            mean = rows[f"{split}_elbo"]
            axes.fill_between(
                rows.seconds, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0
            )
        axes.set(xscale="log", xlabel="seconds of training, without compiling and evaluating")
        axes.set_title(f"{split} images")
    values = history[["train_elbo", "test_elbo"]].to_numpy()
    low, high = np.quantile(values, 0.2), np.max(values)
    panels[0].set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    panels[0].set_ylabel("ELBO, nats per image")
    panels[1].legend(loc="upper left", frameon=False)
    figure.suptitle(f"{title}; bands: standard errors over images", fontsize=9)
    return save(figure, folder, "elbo_against_time")


def _scatter(folder: Path, title: str, arrays: Mapping[str, np.ndarray], judged: list[str]) -> Path:
    """Both gaps of every test image; lines are of one sum, log p(x) - ELBO."""
    figure, axes = new(6.0, 4.8)
    most = 0.0
    for guide in judged:
        colour, marker = LOOK[guide]
        x, y = (arrays[f"{guide}/test_{name}"] for name in ("approximation", "amortization"))
        axes.scatter(x, y, s=12, color=colour, marker=marker, alpha=0.35, linewidths=0)
        centre = (float(np.mean(x)), float(np.mean(y)))
        label = f"{NAMES[guide]}: {centre[0]:.2f} + {centre[1]:.2f} nats"
        axes.plot(
            *centre, marker=marker, color=colour, markersize=9, mec="black", ls="", label=label
        )
        most = max(most, float(np.max(x)), float(np.quantile(y, 0.98)))
    limits = axes.get_xlim(), axes.get_ylim()
    for level in np.linspace(0.0, 2.0 * most, 9)[1:]:
        axes.plot([0.0, level], [level, 0.0], color="0.75", linewidth=0.7, zorder=0)
    axes.set(
        xlim=limits[0],
        ylim=limits[1],
        xlabel="approximation gap, nats: log p(x) - best ELBO in the family",
        ylabel="amortization gap, nats: best - the guide's ELBO",
    )
    num = len(arrays[f"{judged[0]}/test_best"])
    axes.set_title(
        f"{title}\n{num} test images; large: means; lines: equal log p(x) - ELBO", size=9
    )
    axes.legend(loc="upper right", frameon=True, fontsize=8)
    return save(figure, folder, "gap_scatter")


def _refinement(
    folder: Path, title: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Path:
    """Test ELBO after so many steps from the encoder's answer, and the best that there is."""
    figure, axes = new(6.4, 4.2)
    steps = arrays["refinement_steps"]
    place = np.arange(len(steps))
    for guide in ("amortized", "semi_amortized"):
        if f"{guide}/refinement" not in arrays:
            continue
        values, (colour, marker) = arrays[f"{guide}/refinement"], LOOK[guide]
        trained = 0 if guide == "amortized" else config["refinements"]
        gain, mean = values - values[:1], values.mean(axis=1)
        error = gain.std(axis=1, ddof=1) / values.shape[1] ** 0.5
        axes.errorbar(
            place,
            mean,
            error,
            color=colour,
            marker=marker,
            capsize=3,
            label=f"trained with {trained} steps",
        )
        best = float(np.mean(arrays[f"{guide}/test_best"]))
        label = f"best in the family, trained with {trained}"
        axes.axhline(best, color=colour, linestyle="--", linewidth=1.1, label=label)
    axes.set_xticks(place, [str(step) for step in steps])
    axes.set(xlabel="steps of refinement when tested", ylabel="test ELBO, nats per image")
    num = arrays["amortized/refinement"].shape[1]
    rate = config["refinement_rate"]
    axes.set_title(
        f"{title}, rate {rate:g} / pixels\n{num} test images; bars: standard errors of the gain",
        size=9,
    )
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    return save(figure, folder, "test_elbo_against_refinement")


def _widths(
    folder: Path, title: str, config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> Path:
    """Amortization gap of encoders of one hidden layer, the decoder as it is."""
    figure, axes = new(6.0, 4.0)
    for split, colour, marker in (("train", COLOURS[0], "o"), ("test", COLOURS[1], "s")):
        values = arrays[f"widths/{split}"]
        error = values.std(axis=1, ddof=1) / values.shape[1] ** 0.5
        axes.errorbar(
            arrays["widths"],
            values.mean(axis=1),
            error,
            color=colour,
            marker=marker,
            capsize=3,
            label=f"{split} images",
        )
    axes.axhline(0.0, color="0.5", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(arrays["widths"], [str(width) for width in arrays["widths"]])
    axes.minorticks_off()
    axes.set(
        xlabel="width of the encoder's hidden layer", ylabel="amortization gap, nats per image"
    )
    num = arrays["widths/test"].shape[1]
    epochs = config["width_epochs"]
    axes.set_title(
        f"{title}\n{epochs} epochs, decoder fixed; bars: standard errors over {num} images", size=9
    )
    axes.legend(frameon=False)
    return save(figure, folder, "gap_against_width")
