"""Many estimators on the same data and parameters: variance, cost, and which differences are more
than noise.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from vijax.inference import Estimator
from vijax.lab.blocks import Blocks
from vijax.lab.cost import Timing, evaluations, timing
from vijax.lab.learned import Learned, Place, places
from vijax.lab.moments import groups, measure
from vijax.lab.ranking import HALF_WIDTH, log_ratios, ranks, relative_times
from vijax.lab.reference import Reference
from vijax.lab.report import report
from vijax.types import Batch, Key, Params


class Comparison(NamedTuple):
    """Columns, one row per point, estimator and block (theta, phi). Intervals: 95 %; ratios: to the
    first estimator.

    Attributes:
      at: the step of `along`, the value of `sweep`; 0 for a single point.
      estimator: by name.
      block: theta or phi.
      rank: 1 + how many have a significantly smaller variance: equal ranks are ties.
      variance: of one gradient, summed over the block's elements.
      variance_error: standard error.
      ratio: of variances.
      ratio_low: of its interval.
      ratio_high: of its interval.
      snr: norm of the reference, or without one of the mean, over the root of the variance.
      snr_error: standard error.
      worst_z: of the bias against the reference, nan without one.
      p_value: of that: small means biased.
      evaluations: of the log-joint, per gradient.
      microseconds: per gradient, nan if not measured.
      efficiency: 1 / (variance x time), over the first's.
      efficiency_low: of its interval.
      efficiency_high: of its interval.
      efficiency_by_count: 1 / (variance x evaluations), over the first's.
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
      estimators: by name; the first is what ratios refer to.
      params: theta and phi for all; for gradients in q's own parameters those of
        `vijax.in_lam(estimator, params, batch)` for any one of them. Control variates and running
        means come from `learned`, else from initialisation.
      num_draws: S per estimator; the numbers kept per draw are one per block, not a gradient.
      learned: what of it there is, from `learn`.
      reference: as in `gradient_report`.
      rounds: of interleaved timing, at least 2; 0: none.
      times: taken before, in place of new ones.
      chunk_size: as in `gradient_report`.
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
    own = places(key, estimators, params, learned or {})

    def look(name: str) -> _Seen:
        return _look(key, estimators[name], own[name], batch, reference, num_draws, chunk_size)

    # Compiling is most of the work, and can be shared out
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        seen = dict(zip(estimators, pool.map(look, estimators), strict=True))
    if times is None and rounds:
        times = timed(key, estimators, own, batch, rounds)
    known = next(iter(seen.values())).blocks.block
    compared = [block for block in ("theta", "phi") if block in known]
    return concatenate([_of_block(block, seen, times, at) for block in compared])


def concatenate(parts: Sequence[Comparison]) -> Comparison:
    """One comparison with the rows of all."""
    if not parts:
        raise ValueError(
            "there is nothing to compare: no values, no steps, or neither theta nor phi has "
            "parameters."
        )
    return Comparison(*[np.concatenate(columns) for columns in zip(*parts, strict=True)])


def timed(
    key: Key,
    estimators: Mapping[str, Estimator],
    own: Mapping[str, Place],
    batch: Batch,
    rounds: int,
) -> Timing:
    """The times of all, each at its own place."""
    params = {name: place.params for name, place in own.items()}
    states = {name: place.state for name, place in own.items()}
    return timing(key, estimators, params, states, batch, rounds=rounds)


class _Seen(NamedTuple):
    """Of one estimator.

    Attributes:
      blocks: its figures.
      squares: block -> [S] |g - mean|^2 of every draw.
      evaluations: of the log-joint, per gradient.
    """

    blocks: Blocks
    squares: Mapping[str, np.ndarray]
    evaluations: int


def _look(
    key: Key,
    estimator: Estimator,
    own: Place,
    batch: Batch,
    reference: Reference | None,
    num_draws: int,
    chunk_size: int | None,
) -> _Seen:
    moments = measure(
        key,
        estimator,
        own.params,
        own.state,
        batch,
        num_draws=num_draws,
        chunk_size=chunk_size,
        keep_squares=True,
        quick_compile=True,
    )
    squares = np.asarray(moments.squares, np.float64)
    return _Seen(
        blocks=report(moments, own.params, reference).blocks,
        squares={block: squares[:, i] for i, block in enumerate(groups(own.params)[0])},
        evaluations=evaluations(estimator, own.params, own.state, batch),
    )


def _of_block(block: str, seen: Mapping[str, _Seen], times: Timing | None, at: float) -> Comparison:
    """The rows of one block."""
    names, each = list(seen), list(seen.values())

    def column(field: str) -> np.ndarray:
        row = each[0].blocks.block.index(block)
        return np.asarray([getattr(one.blocks, field)[row] for one in each])

    variance = np.nan_to_num(column("variance"), nan=np.inf, posinf=np.inf)
    log_ratio, error = log_ratios(variance, np.stack([one.squares[block] for one in each]))
    count = np.asarray([one.evaluations for one in each], float)
    time, time_error = relative_times(times, len(names))
    log_first, error_first = log_ratio[:, 0], error[:, 0]  # over the first estimator's
    half, wide = HALF_WIDTH * error_first, HALF_WIDTH * np.hypot(error_first, time_error)
    efficiency = -log_first - time
    known = np.where(count > 0.0, count, np.nan)
    return Comparison(
        at=np.full(len(names), at),
        estimator=np.asarray(names),
        block=np.full(len(names), block),
        rank=ranks(log_ratio, error),
        variance=variance,
        variance_error=column("variance_error"),
        ratio=np.exp(log_first),
        ratio_low=np.exp(log_first - half),
        ratio_high=np.exp(log_first + half),
        snr=column("snr"),
        snr_error=column("snr_error"),
        worst_z=column("worst_z"),
        p_value=column("p_value"),
        evaluations=count.astype(int),
        microseconds=np.full(len(names), np.nan) if times is None else times.microseconds,
        efficiency=np.exp(efficiency),
        efficiency_low=np.exp(efficiency - wide),
        efficiency_high=np.exp(efficiency + wide),
        efficiency_by_count=np.exp(-log_first) * (known[0] / known),
    )
