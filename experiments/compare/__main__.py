"""What differs between runs: settings, results in standard errors, test curves?

Takes results folders of one script; the others are held against the first. A difference of runs
that were scored on the same images is taken image by image, which is much sharper than the errors
of the two suggest; of runs with several seeds each, its error is that of the seeds.

    python -m experiments.compare results/vae/FOLDER results/vae/FOLDER
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import tyro

from experiments.common import figures, harness
from experiments.common.harness import Outcome
from experiments.compare.runs import Difference, differences, label, load, settings


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of the job."""

    # Results folders; the others are compared with the first
    folders: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    results_dir: str = "results"  # where this comparison is written
    # Draw the figures of this earlier results folder again, and nothing else
    replot: str | None = None


def run(config: Config) -> Outcome:
    """Settings that differ, differences of all common metrics, and the test curves of all runs."""
    if len(config.folders) < 2:
        raise ValueError(
            f"{len(config.folders)} folders given: write python -m experiments.compare FOLDER "
            "FOLDER [FOLDER ...]."
        )
    runs = [load(Path(folder)) for folder in config.folders]
    names = label(runs)
    rows = [
        row
        for name, other in zip(names[1:], runs[1:], strict=True)
        for row in differences(name, runs[0], other)
    ]
    if not rows:
        raise ValueError(
            f"{', '.join(map(str, config.folders))} have no metric in common: compare runs of one "
            "script."
        )
    curves = [
        one.history.assign(run=name)
        for name, one in zip(names, runs, strict=True)
        if one.history is not None
    ]
    metrics = {
        "runs": {name: str(one.folder) for name, one in zip(names, runs, strict=True)},
        "unfinished": {
            n: r.status for n, r in zip(names, runs, strict=True) if r.status != "finished"
        },
        "settings": {
            name: values
            for name, values in settings(runs).items()
            if any(value != values[0] for value in values)
        },
        "differences": [row._asdict() for row in rows],
    }
    tables = {"differences": pd.DataFrame(rows)}
    return Outcome(metrics, {}, tables | ({"curves": pd.concat(curves)} if curves else {}))


def report(done: Outcome) -> str:
    """Folders, settings that differ, metrics side by side."""
    metrics = done.metrics
    lines = [f"{name}: {folder}" for name, folder in metrics["runs"].items()]
    lines += [f"  {name} is UNFINISHED: {why}" for name, why in metrics["unfinished"].items()]
    lines += ["settings that differ:"] if metrics["settings"] else ["no setting differs"]
    names = list(metrics["runs"])
    for setting, values in metrics["settings"].items():
        shown = (f"{name} {value}" for name, value in zip(names, values, strict=True))
        lines.append(f"  {setting:20s} {',  '.join(shown)}")
    rows = [Difference(**row) for row in metrics["differences"]]
    width = max(len(row.metric) for row in rows)
    lines.append(
        f"{'':5s}{'metric':{width}s} {names[0]:>22s} {'other':>22s} {'difference':>22s} {'z':>7s}"
    )
    for row in rows:
        if math.isnan(row.error) and row.difference == 0.0:
            continue
        lines.append(
            f"  {row.run:3s}{row.metric:{width}s} {_shown(row.first, row.first_error)} "
            f"{_shown(row.value, row.value_error)} {_shown(row.difference, row.error)} "
            f"{'' if math.isnan(row.z) else f'{row.z:7.1f}':>7s}  {row.basis}"
        )
    lines += [
        "  z: difference in standard errors. Errors over images say nothing of another training:",
        "  for that, compare runs with --seeds.",
    ]
    return "\n".join(lines)


def _shown(value: float, error: float) -> str:
    text = f"{value:.5g}" if math.isnan(error) else f"{value:.5g} +- {error:.2g}"
    return f"{text:>22s}"


def plot(folder: Path) -> list[Path]:
    """The test curves of all runs in one figure, if they have any: means over seeds, with error
    bars where they are stored or there are several seeds.
    """
    tables, metrics = harness.read_tables(folder), harness.read(folder)[1]
    curves: Any = tables.get("curves")
    if curves is None:
        return []
    written = []
    for column in scored_columns(curves):
        figure, axes = figures.new(7.4, 4.2)
        series, errors = {}, {}
        keys = ["run", "rule"] if "rule" in curves else ["run"]
        for key, rows in curves.dropna(subset=[column]).groupby(keys, sort=False, dropna=False):
            grouped, name = rows.groupby("step"), " ".join(map(str, key))
            series[name] = (
                grouped[column].mean().index.to_numpy(),
                grouped[column].mean().to_numpy(),
            )
            if rows.seed.nunique() > 1:
                errors[name] = grouped[column].sem(ddof=1).to_numpy()
            elif f"{column}_images_se" in rows:
                errors[name] = grouped[f"{column}_images_se"].mean().to_numpy()
        figures.lines(axes, series, marker="o", errors=errors)
        every = np.concatenate([y for _, y in series.values()])
        axes.set(xlabel="training step", ylabel=f"{column}, nats per image")
        if len(every) >= 20:  # the first climb would flatten the rest
            low, high = np.quantile(every, 0.1), every.max()
            axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        axes.set_title(
            "\n".join(f"{name}: {path}" for name, path in metrics["runs"].items()), size=7
        )
        written.append(figures.save(figure, folder, column))
    return written


def scored_columns(curves: Any) -> list[str]:
    """Columns of a history that are scores of test images, with a value in them."""
    return [
        name
        for name in curves.columns
        if name.startswith("test_") and not name.endswith("_se") and curves[name].notna().any()
    ]


def main(args: Sequence[str] | None = None) -> Path:
    """Run from the command line (or from `args`); returns the results folder."""
    config = harness.parse(Config, __doc__ or "", args)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    return harness.execute("compare", config, run, report, plot)


if __name__ == "__main__":
    harness.console(main)
