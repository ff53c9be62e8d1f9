"""Comparisons at many points: along a training run, over K, minibatch size or dimension; and
log-log slopes of what a sweep finds, with intervals.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Literal, NamedTuple

import jax
import numpy as np
from scipy import special

from vijax.inference import Estimator
from vijax.lab.blocks import LEVEL
from vijax.lab.comparison import Comparison, compare, concatenate, timed
from vijax.lab.learned import Learned, places
from vijax.lab.ranking import HALF_WIDTH
from vijax.lab.reference import Reference
from vijax.types import Batch, Key, Params


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
      estimator: by name.
      block: theta or phi.
      slope: of the line.
      low: of a 95 % interval.
      high: of the interval.
      misfit: chi-square per degree of freedom: far above 1, the points do not lie on a line; nan
        for two points.
      points: used: those whose figure is positive and finite. A lost signal has none, which favours
        lucky points.
    """

    estimator: np.ndarray
    block: np.ndarray
    slope: np.ndarray
    low: np.ndarray
    high: np.ndarray
    misfit: np.ndarray
    points: np.ndarray


def along(
    key: Key,
    estimators: Mapping[str, Estimator],
    path: Mapping[int, Params],
    batch: Batch,
    *,
    num_draws: int,
    learned: Mapping[int, Mapping[str, Learned]] | None = None,
    reference: Mapping[int, Reference | None] | None = None,
    unbiased: Collection[str] | None = None,
    rounds: int = 0,
) -> Comparison:
    """`compare` at several points of one training run: rankings change on the way. Column `at` is
    the step.

    Every point has draws of its own, so that errors of averages over the path are those of
    independent figures.

    Args:
      path: step -> params, as stored or in q's own parameters (`vijax.in_lam`).
      num_draws: as in `compare`.
      learned: step -> what `compare` takes.
      reference: step -> what `compare` takes.
      unbiased: as in `compare`.
      rounds: of timing, at the first point alone, whose times stand for all.

    Raises:
      ValueError: if the path is empty, or something is given for a step that is not on it.
    """
    known, right = learned or {}, reference or {}
    strangers = (set(known) | set(right)) - set(path)
    if strangers or not path:
        raise ValueError(
            f"along: the path has steps {sorted(path)}; learned or reference also has "
            f"{sorted(strangers)}."
        )
    times = None
    if rounds:
        first, params = next(iter(path.items()))
        own = places(key, estimators, params, known.get(first, {}))
        times = timed(key, estimators, own, batch, rounds)
    parts = [
        compare(
            jax.random.fold_in(key, number),
            estimators,
            params,
            batch,
            num_draws=num_draws,
            learned=known.get(step),
            reference=right.get(step),
            unbiased=unbiased,
            rounds=0,
            times=times,
            at=float(step),
        )
        for number, (step, params) in enumerate(path.items())
    ]
    return concatenate(parts)


def sweep(
    key: Key,
    values: Iterable[float],
    setting: Callable[[float], Point],
    *,
    num_draws: int,
    unbiased: Collection[str] | None = None,
    rounds: int = 0,
) -> Comparison:
    """`compare` at every value of K, batch size, dimension or anything else. Column `at` is the
    value.

    Args:
      setting: value -> estimators (the same names everywhere), params, batch.
      num_draws: as in `compare`.
      unbiased: as in `compare`.
      rounds: as in `compare`.
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
                unbiased=unbiased,
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
        reach = float(special.stdtrit(len(x) - 2, 1.0 - 0.5 * LEVEL))
        half = max(half, reach * np.sqrt(misfit / precision))
    return float(slope), float(slope - half), float(slope + half), float(misfit)
