"""Many estimators on the same data and parameters: variance, cost, and which differences are more
than noise.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from vijax.inference import Estimator
from vijax.lab.bias import FINE
from vijax.lab.cost import Timing, check_rounds, timing
from vijax.lab.learned import Learned, Place, places
from vijax.lab.ranking import HALF_WIDTH, log_ratios, ranks, relative_times
from vijax.lab.reference import Reference
from vijax.lab.seen import Judged, Seen, judge, look, of_block
from vijax.types import Batch, Key, Params


class Comparison(NamedTuple):
    """Columns, one row per point, estimator and block (theta, phi). Intervals: 95 %; ratios: to the
    first estimator.

    Attributes:
      at: the step of `along`, the value of `sweep`; 0 for a single point.
      estimator: by name.
      block: theta or phi.
      status: "no bias seen"; "untested", where there is nothing to test against; or why it is
        ranked apart: "biased" against the reference; without one "disagrees" with others;
        "zero gradient" in every draw; "not finite".
      rank: 1 + how many have a significantly smaller variance: equal ranks are ties. Those apart
        come last, all with one rank.
      variance: of the block's gradient as `lab.gradient_report` defines it, nats^2.
      variance_error: standard error.
      ratio: of variances.
      ratio_low: of its interval.
      ratio_high: of its interval.
      snr: norm of the reference, or without one of the mean, over the root of the variance.
      snr_error: standard error.
      worst_z: of an element's bias against the reference; without one of its largest difference
        from another that claims to be unbiased.
      p_value: of that, for as many elements as there are.
      evaluations: of the log-joint, per gradient.
      microseconds: per gradient, nan if not measured.
      microseconds_low: of its interval.
      microseconds_high: of its interval.
      efficiency: 1 / (variance x time), over the first's; beyond all bounds where the gradient is
        exact, nan where it is zero.
      efficiency_low: of its interval.
      efficiency_high: of its interval.
      efficiency_by_count: 1 / (variance x evaluations), over the first's.
    """

    at: np.ndarray
    estimator: np.ndarray
    block: np.ndarray
    status: np.ndarray
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
    microseconds_low: np.ndarray
    microseconds_high: np.ndarray
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
    unbiased: Collection[str] | None = None,
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
    Ranks test every pair at a joint level of 5 % (Sidak), and bias at one of 0.1 %: against the
    reference, or without one every pair of estimators that claim to be unbiased, of which those
    that disagree with most others are ranked apart.

    Args:
      estimators: by name; the first is what ratios refer to.
      params: theta and phi for all; for gradients in q's own parameters those of
        `vijax.in_lam(estimator, params, batch)` for any one of them. Control variates and running
        means come from `learned`, else from initialisation.
      num_draws: S per estimator; the numbers kept per draw are one per block, not a gradient.
      learned: what of it there is, from `learn`.
      reference: as in `gradient_report`.
      unbiased: names of those that claim to be; None: all. Not looked at with a reference.
      rounds: of interleaved timing, at least 6; 0: none.
      times: taken before, in place of new ones.
      chunk_size: as in `gradient_report`.
      at: the number for the column of that name.

    Raises:
      ValueError: if there is no estimator, too few rounds, or a name that no estimator has.
    """
    if not estimators:
        raise ValueError("compare: there are no estimators; give at least one.")
    if rounds:
        check_rounds(rounds)
    for what, names in (("learned", learned or {}), ("unbiased", unbiased or ())):
        strangers = set(names) - set(estimators)
        if strangers:
            raise ValueError(
                f"compare: {what} has {sorted(strangers)}, but the estimators are "
                f"{sorted(estimators)}."
            )
    own = places(key, estimators, params, learned or {})

    def of(name: str) -> Seen:
        return look(key, estimators[name], own[name], batch, reference, num_draws, chunk_size)

    # Compiling is most of the work, and can be shared out
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        seen = dict(zip(estimators, pool.map(of, estimators), strict=True))
    if times is None and rounds:
        times = timed(key, estimators, own, batch, rounds)
    known = next(iter(seen.values())).blocks.block
    compared = [block for block in ("theta", "phi") if block in known]
    found = {block: judge(block, seen, unbiased, num_draws) for block in compared}
    return concatenate([_of_block(block, seen, found[block], times, at) for block in compared])


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


def _of_block(
    block: str, seen: Mapping[str, Seen], found: Judged, times: Timing | None, at: float
) -> Comparison:
    """The rows of one block."""
    names, each = list(seen), list(seen.values())

    def column(field: str) -> np.ndarray:
        return of_block(each, block, field)

    nan = np.full(len(names), np.nan)
    variance = np.nan_to_num(column("variance"), nan=np.inf, posinf=np.inf)
    log_ratio, error = log_ratios(variance, np.stack([one.squares[block] for one in each]))
    count = np.asarray([one.evaluations for one in each], float)
    time, time_low, time_high = relative_times(times, len(names))
    log_first, half = log_ratio[:, 0], HALF_WIDTH * error[:, 0]  # over the first estimator's
    gain = np.where(found.zero | found.zero[0], np.nan, -log_first)
    known = np.where(count > 0.0, count, np.nan)
    return Comparison(
        at=np.full(len(names), at),
        estimator=np.asarray(names),
        block=np.full(len(names), block),
        status=found.status,
        rank=_ranked(log_ratio, error, np.isin(found.status, FINE)),
        variance=variance,
        variance_error=column("variance_error"),
        ratio=np.exp(log_first),
        ratio_low=np.exp(log_first - half),
        ratio_high=np.exp(log_first + half),
        snr=column("snr"),
        snr_error=column("snr_error"),
        worst_z=found.worst_z,
        p_value=found.p_value,
        evaluations=count.astype(int),
        microseconds=nan if times is None else times.microseconds,
        microseconds_low=nan if times is None else times.low,
        microseconds_high=nan if times is None else times.high,
        efficiency=np.exp(gain - time),
        efficiency_low=np.exp(gain - time - np.hypot(half, time_high - time)),
        efficiency_high=np.exp(gain - time + np.hypot(half, time - time_low)),
        efficiency_by_count=np.exp(gain) * (known[0] / known),
    )


def _ranked(log_ratio: np.ndarray, error: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """[E] ranks of those that are fine among themselves; the others behind them all."""
    rank = np.full(len(fine), 1 + np.sum(fine))
    rank[fine] = ranks(log_ratio[np.ix_(fine, fine)], error[np.ix_(fine, fine)])
    return rank
