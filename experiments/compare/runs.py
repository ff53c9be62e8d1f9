"""What results folders hold, and how two of them differ in standard errors."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.common import harness

ERRORS = ("_se", "_images_se", "_error")  # of NAME, the first that is there counts
SEEDS = "_seeds_se"  # the same of the mean over seeds


class Run(NamedTuple):
    """What a results folder holds.

    Attributes:
      metrics: path of a number, such as rules/rloo/test_bound -> number.
      history: history.csv, or None.
    """

    folder: Path
    config: dict[str, Any]
    status: str
    scored_images: str | None
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray]
    history: pd.DataFrame | None


class Difference(NamedTuple):
    """A metric of two runs; a row of differences.csv.

    Attributes:
      value: of the other run; its error beside it, nan if there is none.
      difference: other minus first.
      error: standard error of the difference.
      z: their ratio.
      basis: what the error is made of: "seeds", "image by image", "errors of both", "".
    """

    run: str
    metric: str
    first: float
    first_error: float
    value: float
    value_error: float
    difference: float
    error: float
    z: float
    basis: str


def load(folder: Path) -> Run:
    """A results folder; refuses what is none."""
    config, metrics, arrays = harness.read(folder)
    history = folder / "history.csv"
    return Run(
        folder=folder,
        config=config,
        status=metrics.get("status", "of an earlier version"),
        scored_images=metrics.get("scored_images"),
        metrics=dict(numbers(metrics)),
        arrays=arrays,
        history=pd.read_csv(history) if history.is_file() else None,
    )


def label(runs: Sequence[Run]) -> list[str]:
    """A short name for each run: A, B, ..."""
    return [chr(ord("A") + i) if i < 26 else f"run {i + 1}" for i in range(len(runs))]


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """(path, number) of all numbers in a nest of dicts and of lists of records; a record is called
    by its words, as leaderboard/pathwise()/phi. Lists of anything else are left out.
    """
    found = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found += numbers(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            for record in value:
                if isinstance(record, Mapping):
                    words = [word for word in record.values() if isinstance(word, str)]
                    found += numbers(record, f"{prefix}{'/'.join([name, *words])}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found


def settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Setting -> its value in every run, None where it has none; places on the disk left out."""
    names = dict.fromkeys(name for one in runs for name in one.config)
    return {
        name: [one.config.get(name) for one in runs]
        for name in names
        if name not in ("results_dir", "data_dir", "replot")
    }


def differences(name: str, first: Run, other: Run) -> list[Difference]:
    """All metrics that both have, those with an error first."""
    rows = []
    for metric, a in first.metrics.items():
        ends = [end for end in (*ERRORS, SEEDS) if metric.endswith(end)]
        if metric not in other.metrics or any(
            metric.removesuffix(e) in first.metrics for e in ends
        ):
            continue
        if math.isnan(a) and math.isnan(other.metrics[metric]):
            continue
        b, errors, error, basis = other.metrics[metric], *errors_of(metric, first, other)
        z = (b - a) / error if error > 0.0 else math.nan
        rows.append(Difference(name, metric, a, errors[0], b, errors[1], b - a, error, z, basis))
    return sorted(rows, key=lambda row: math.isnan(row.error))


def errors_of(metric: str, first: Run, other: Run) -> tuple[list[float], float, str]:
    """Standard errors of a metric in both runs, that of its difference, and what it is made of; nan
    for what is not known.
    """
    of_seeds = all(metric + SEEDS in one.metrics for one in (first, other))
    ends = (SEEDS,) if of_seeds else ERRORS
    both = [
        next((one.metrics[metric + end] for end in ends if metric + end in one.metrics), math.nan)
        for one in (first, other)
    ]
    a, b = first.arrays.get(metric), other.arrays.get(metric)
    same = first.scored_images is not None and first.scored_images == other.scored_images
    if not of_seeds and same and a is not None and b is not None:
        return both, float(np.std(b - a, ddof=1) / len(a) ** 0.5), "image by image"
    basis = "" if any(map(math.isnan, both)) else "seeds" if of_seeds else "errors of both"
    return both, math.hypot(*both), basis
