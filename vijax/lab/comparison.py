"""Many estimators on the same data and parameters: variance, cost, and which differences are more
than noise.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from vijax.lab.cost import Timing, evaluations, timing
from vijax.lab.moments import groups, measure
from vijax.lab.report import LEVEL, Blocks, Reference, report
from vijax.types import Batch, Estimator, Key, Params, PyTree

HALF_WIDTH = float(special.ndtri(1.0 - LEVEL / 2.0))  # of a 95 % interval in standard errors
# Relative difference of variances that rounding can make, however well common noise cancels
ALIKE = 1e-4


class Learned(NamedTuple):
    """What an estimator's own training has made of it."""

    control: PyTree
    state: PyTree


class Comparison(NamedTuple):
    """Columns, one row per point, estimator and block (theta, phi). Intervals: 95 %; ratios: to the
    first estimator.

    Attributes:
      at: the step of `along`, the value of `sweep`; 0 for a single point
      rank: 1 + how many have a significantly smaller variance: equal ranks are ties
      variance: of one gradient, summed over the block's elements
      ratio: of variances
      worst_z: of the bias against the reference, nan without one
      evaluations: of the log-joint, per gradient
      microseconds: per gradient, nan if not measured
      efficiency: 1 / (variance x time), over the first's
      efficiency_by_count: 1 / (variance x evaluations), over the first's
    """

    at: np.ndarray
    estimator: np.ndarray
    block: np.ndarray
    rank: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray
    ratio: np.ndarray
    ratio_low: np.ndarray
    ratio_high: np.ndarray
    snr: np.ndarray
    snr_error: np.ndarray
    worst_z: np.ndarray
    p_value: np.ndarray
    evaluations: np.ndarray
    microseconds: np.ndarray
    efficiency: np.ndarray
    efficiency_low: np.ndarray
    efficiency_high: np.ndarray
    efficiency_by_count: np.ndarray


def compare(
    key: Key,
    estimators: Mapping[str, Estimator],
    params: Params,
    batch: Batch,
    *,
    num_draws: int,
    learned: Mapping[str, Learned] | None = None,
    reference: Reference | None = None,
    rounds: int = 11,
    times: Timing | None = None,
    chunk_size: int | None = None,
    at: float = 0.0,
) -> Comparison:
    """Variance, signal-to-noise ratio, bias, cost and efficiency of each estimator at the same
    params and batch.

    All see the same keys, and those that draw the same way the same samples: the intervals of
    ratios and the ranks pair the draws, so that common noise cancels. They rest on the asymptotic
    normality of the logarithm of a variance; for gradients with very heavy tails take more draws.
    Ranks test every pair at a joint level of 5 % (Sidak).

    Args:
      estimators: by name; the first is what ratios refer to. For gradients in q's own parameters,
        `in_lam` of each.
      params: theta and phi for all. Control variates and running means come from `learned`, else
        from initialisation.
      num_draws: S per estimator; the numbers kept per draw are one per block, not a gradient.
      rounds: of interleaved timing, at least 2; 0: none.
      times: taken before, in place of new ones.
      at: the number for the column of that name.

    Raises:
      ValueError: if there is no estimator, one round only, or something learned by an estimator
        that is not there.
    """
    if not estimators or rounds == 1:
        raise ValueError(
            f"compare: {len(estimators)} estimators, rounds={rounds}; give at least one, and 0 or "
            f"2 rounds or more."
        )
    strangers = set(learned or {}) - set(estimators)
    if strangers:
        raise ValueError(
            f"compare: learned has {sorted(strangers)}, but the estimators are "
            f"{sorted(estimators)}."
        )
    own = {
        name: _own(key, name, estimator, params, learned or {})
        for name, estimator in estimators.items()
    }

    def look(name: str) -> _Seen:
        estimator, (place, state) = estimators[name], own[name]
        moments = measure(
            key,
            estimator,
            place,
            state,
            batch,
            num_draws=num_draws,
            chunk_size=chunk_size,
            keep_squares=True,
            quick_compile=True,
        )
        squares = np.asarray(moments.squares, np.float64)
        named = {block: squares[:, i] for i, block in enumerate(groups(place)[0])}
        return _Seen(
            report(moments, place, reference).blocks,
            named,
            evaluations(estimator, place, state, batch),
        )

    # Compiling is most of the work, and can be shared out
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        seen = dict(zip(estimators, pool.map(look, estimators), strict=True))
    if times is None and rounds:
        times = _timed(key, estimators, own, batch, rounds)
    compared = [
        block for block in ("theta", "phi") if block in next(iter(seen.values())).blocks.block
    ]
    return concatenate([_of_block(block, seen, times, at) for block in compared])


def along(
    key: Key,
    estimators: Mapping[str, Estimator],
    path: Mapping[int, Params],
    batch: Batch,
    *,
    num_draws: int,
    learned: Mapping[int, Mapping[str, Learned]] | None = None,
    reference: Mapping[int, Reference | None] | None = None,
    rounds: int = 0,
) -> Comparison:
    """`compare` at several points of one training run: rankings change on the way. Column `at` is
    the step.

    Every point has draws of its own, so that errors of averages over the path are those of
    independent figures.

    Args:
      path: step -> params.
      learned, reference: step -> what `compare` takes.
      rounds: of timing, at the first point alone, whose times stand for all.
    """
    strangers = (set(learned or {}) | set(reference or {})) - set(path)
    if strangers or not path:
        raise ValueError(
            f"along: the path has steps {sorted(path)}; learned or reference also has "
            f"{sorted(strangers)}."
        )
    times = None
    if rounds:
        first = next(iter(path))
        own = {
            name: _own(key, name, one, path[first], (learned or {}).get(first, {}))
            for name, one in estimators.items()
        }
        times = _timed(key, estimators, own, batch, rounds)
    rows = []
    for number, (step, params) in enumerate(path.items()):
        row = compare(
            jax.random.fold_in(key, number),
            estimators,
            params,
            batch,
            num_draws=num_draws,
            learned=(learned or {}).get(step),
            reference=(reference or {}).get(step),
            rounds=0,
            times=times,
            at=float(step),
        )
        rows.append(row)
    return concatenate(rows)


def concatenate(parts: Sequence[Comparison]) -> Comparison:
    """One comparison with the rows of all."""
    if not parts:
        raise ValueError(
            "there is nothing to compare: no values, no steps, or neither theta nor phi has "
            "parameters."
        )
    return Comparison(*[np.concatenate(columns) for columns in zip(*parts, strict=True)])


def in_lam(estimator: Estimator) -> Estimator:
    """The same estimator with q's own parameters in place of phi: gradients [B, ...] per datum, no
    encoder weights.

    Measure it at `estimator.lam_space.locate(params, batch)`.
    """
    if estimator.lam_space is None:
        raise ValueError(
            "in_lam: this estimator does not say where q's parameters are; those that "
            "vijax.estimator builds do."
        )
    estimate = estimator.lam_space.estimate
    return estimator._replace(estimate=estimate, estimate_rows=estimate, lam_space=None)


def _own(
    key: Key, name: str, estimator: Estimator, params: Params, learned: Mapping[str, Learned]
) -> tuple[Params, PyTree]:
    """The common parameters with this estimator's control, and its state."""
    if name in learned:
        control, state = learned[name]
    else:
        control = estimator.init_params(key).control
        state = estimator.init(key, params._replace(control=control))
    # Without weak types, which initial parameters may have and trained ones have not: one program
    # serves both.
    return jax.tree.map(
        lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype),
        (params._replace(control=control), state),
    )


def _timed(
    key: Key,
    estimators: Mapping[str, Estimator],
    own: Mapping[str, tuple[Params, PyTree]],
    batch: Batch,
    rounds: int,
) -> Timing:
    params, states = ({name: pair[i] for name, pair in own.items()} for i in (0, 1))
    return timing(key, estimators, params, states, batch, rounds=rounds)


class _Seen(NamedTuple):
    """Of one estimator.

    Attributes:
      squares: block -> [S] |g - mean|^2 of every draw
    """

    blocks: Blocks
    squares: Mapping[str, np.ndarray]
    evaluations: int


def _of_block(block: str, seen: Mapping[str, _Seen], times: Timing | None, at: float) -> Comparison:
    """The rows of one block."""
    names = list(seen)

    def column(field: str) -> np.ndarray:
        return np.asarray(
            [getattr(one.blocks, field)[one.blocks.block.index(block)] for one in seen.values()]
        )

    variance, draws = (
        np.nan_to_num(column("variance"), nan=np.inf, posinf=np.inf),
        np.stack([one.squares[block] for one in seen.values()]),
    )
    log_ratio, error = _log_ratios(variance, draws)
    count = np.asarray([one.evaluations for one in seen.values()], float)
    time, time_error = _relative_times(times, len(names))
    low, middle, high = (
        np.exp(log_ratio[:, 0] + side * HALF_WIDTH * error[:, 0]) for side in (-1, 0, 1)
    )
    wide = HALF_WIDTH * np.hypot(error[:, 0], time_error)
    efficiency = -log_ratio[:, 0] - time
    known = np.where(count > 0.0, count, np.nan)
    by_count = np.exp(-log_ratio[:, 0]) * (known[0] / known)
    return Comparison(
        at=np.full(len(names), at),
        estimator=np.asarray(names),
        block=np.full(len(names), block),
        rank=_ranks(log_ratio, error),
        variance=variance,
        variance_error=column("variance_error"),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        snr=column("snr"),
        snr_error=column("snr_error"),
        worst_z=column("worst_z"),
        p_value=column("p_value"),
        evaluations=count.astype(int),
        microseconds=np.full(len(names), np.nan) if times is None else times.microseconds,
        efficiency=np.exp(efficiency),
        efficiency_low=np.exp(efficiency - wide),
        efficiency_high=np.exp(efficiency + wide),
        efficiency_by_count=by_count,
    )


def _log_ratios(variance: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[E, E] log of variance i over variance j, and its standard error from paired draws; squares
    [E, S].

    A variance of exactly 0 is infinitely smaller than any other and equal to another 0, without
    error; one that is not finite is infinitely larger.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(variance)
        log_ratio = log[:, None] - log[None, :]
        influence = squares / variance[:, None]
    same = variance[:, None] == variance[None, :]
    influence = np.where(np.isfinite(influence), influence, 1.0)
    covariance = np.atleast_2d(np.cov(influence))
    spread = np.diag(covariance)
    error = np.sqrt(
        np.maximum(spread[:, None] + spread[None, :] - 2.0 * covariance, 0.0) / squares.shape[1]
    )
    return np.where(same, 0.0, log_ratio), np.where(np.isfinite(log_ratio), error, 0.0)


def _ranks(log_ratio: np.ndarray, error: np.ndarray) -> np.ndarray:
    """1 + the number of estimators whose variance is significantly smaller, all pairs tested
    jointly.
    """
    num_pairs = max(1, len(log_ratio) * (len(log_ratio) - 1) // 2)
    per_pair = -np.expm1(np.log1p(-LEVEL) / num_pairs)
    smaller = log_ratio > special.ndtri(1.0 - per_pair / 2.0) * error  # [i, j]: j is below i
    return 1 + np.sum(smaller & (log_ratio > ALIKE), axis=1)


def _relative_times(times: Timing | None, num: int) -> tuple[np.ndarray, np.ndarray]:
    """[E] log time over the first's, and its error: ratios within rounds, median and its
    large-sample standard error.
    """
    if times is None:
        return np.full(num, np.nan), np.full(num, np.nan)
    ratios = np.log(times.rounds / times.rounds[:, :1])
    return np.median(ratios, axis=0), 1.2533 * np.std(ratios, axis=0, ddof=1) / len(ratios) ** 0.5
