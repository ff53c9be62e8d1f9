"""How figures of a comparison scale: sweeps over K, minibatch size or dimension, and log-log slopes
with intervals.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import jax
import numpy as np
from scipy import special

from vijax.lab.comparison import HALF_WIDTH, Comparison, Learned, compare, concatenate
from vijax.lab.report import LEVEL, Reference
from vijax.types import Batch, Estimator, Key, Params


class Point(NamedTuple):
    """Everything that a sweep changes from value to value."""

    estimators: Mapping[str, Estimator]
    params: Params
    batch: Batch
    reference: Reference | None = None
    learned: Mapping[str, Learned] | None = None


class Slopes(NamedTuple):
    """Columns, one row per estimator and block: d log figure / d log value.

    Attributes:
      low: of a 95 % interval
      misfit: chi-square per degree of freedom: far above 1, the points do not lie on a line; nan
        for two points
      points: used: those whose figure is positive and finite. A lost signal has none, which favours
        lucky points
    """

    estimator: np.ndarray
    block: np.ndarray
    slope: np.ndarray
    low: np.ndarray
    high: np.ndarray
    misfit: np.ndarray
    points: np.ndarray


def sweep(
    key: Key,
    values: Iterable[float],
    setting: Callable[[float], Point],
    *,
    num_draws: int,
    rounds: int = 0,
) -> Comparison:
    """`compare` at every value of K, batch size, dimension or anything else. Column `at` is the
    value.

    Args:
      setting: value -> estimators (the same names everywhere), params, batch.
      num_draws, rounds: as in `compare`.
    """
    rows = []
    for number, value in enumerate(values):
        point = setting(value)
        rows.append(
            compare(
                jax.random.fold_in(key, number),
                point.estimators,
                point.params,
                point.batch,
                num_draws=num_draws,
                reference=point.reference,
                learned=point.learned,
                rounds=rounds,
                at=float(value),
            )
        )
    return concatenate(rows)


def slopes(comparison: Comparison, figure: Literal["variance", "snr"] = "snr") -> Slopes:
    """Least squares of log figure on log `at`, weighted by the figure's own errors.

    Where the points scatter more than their errors allow, the interval is that of Student's t with
    the scatter itself as error. A row is nan if fewer than two of its points have a positive
    figure.
    """
    value, error = getattr(comparison, figure), getattr(comparison, f"{figure}_error")
    rows = []
    for estimator, block in dict.fromkeys(zip(comparison.estimator, comparison.block, strict=True)):
        here = (
            (comparison.estimator == estimator)
            & (comparison.block == block)
            & (value > 0.0)
            & (comparison.at > 0.0)
        )
        here &= np.isfinite(value)
        line = (np.nan,) * 4
        if np.sum(here) >= 2:
            line = _line(
                np.log(comparison.at[here]), np.log(value[here]), error[here] / value[here]
            )
        rows.append((estimator, block, *line, int(np.sum(here))))
    return Slopes(*(np.asarray(column) for column in zip(*rows, strict=True)))


def _line(x: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[float, float, float, float]:
    """Slope, its 95 % interval, and chi-square per degree of freedom."""
    weight = 1.0 / np.maximum(error, 1e-12) ** 2
    away = x - np.average(x, weights=weight)
    precision = np.sum(weight * away**2)
    slope = np.sum(weight * away * y) / precision
    left = y - np.average(y, weights=weight) - slope * away
    misfit = np.sum(weight * left**2) / (len(x) - 2) if len(x) > 2 else np.nan
    half = HALF_WIDTH / np.sqrt(precision)
    if misfit > 1.0:
        half = max(
            half,
            float(special.stdtrit(len(x) - 2, 0.5 + 0.5 * (1.0 - LEVEL)))
            * np.sqrt(misfit / precision),
        )
    return float(slope), float(slope - half), float(slope + half), float(misfit)
