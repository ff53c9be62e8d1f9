"""Can a mean of importance weights be trusted? Pareto k-hat and smoothed weights, by ArviZ's fit of
the largest of them. Host code, in numpy's float64.
"""

import math
from typing import NamedTuple

import numpy as np
from arviz_stats.base.array import array_stats

LEAST_SAMPLES = 25  # fewer leave no five weights in the tail, a fifth of them


class Smoothed(NamedTuple):
    """What the tail of a set of importance weights says.

    Attributes:
      k_hat: [...] shape of the generalized Pareto distribution fitted to the largest weights: they
        have 1/k moments. -inf where they do not differ, inf where hardly any is positive, NaN where
        nobody knows: below 25 of them, or where one is no number.
      log_mean: [...] log of the mean of the smoothed weights, nats; of the weights themselves where
        there is no fit.
    """

    k_hat: np.ndarray
    log_mean: np.ndarray


def pareto_smoothed(log_w: np.ndarray) -> Smoothed:
    """Of every set of log-weights, [..., K]. Vehtari, Simpson, Gelman, Yao and Gabry 2024."""
    sets = log_w.reshape(-1, log_w.shape[-1])
    k_hat, log_mean = np.full(len(sets), np.nan), log_mean_exp(sets)
    if log_w.shape[-1] >= LEAST_SAMPLES:
        for row, one in enumerate(sets):
            k_hat[row], log_mean[row] = _fit(one, log_mean[row])
    return Smoothed(k_hat.reshape(log_w.shape[:-1]), log_mean.reshape(log_w.shape[:-1]))


def most_k_hat(num_samples: int) -> float:
    """min(1 - 1 / log10 K, 0.7): above it, K weights are too few for their mean to be trusted, nor
    its standard error. Vehtari et al. 2024, section 3.2.4. From K = 2,155 on it is 0.7.
    """
    return min(1.0 - 1.0 / math.log10(num_samples), 0.7)


def log_mean_exp(log_w: np.ndarray) -> np.ndarray:
    """[..., K] -> [...], in float64; -inf if all are, NaN if one is or is +inf."""
    log_w = np.asarray(log_w, np.float64)
    most = np.max(log_w, axis=-1, keepdims=True)
    shift = np.where(np.isneginf(most), 0.0, most)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.mean(np.exp(log_w - shift), axis=-1)) + shift[..., 0]


def _fit(log_w: np.ndarray, log_mean: float) -> tuple[float, float]:
    """(k-hat, log mean of the smoothed weights) of [K]."""
    if not np.isfinite(log_mean):
        return math.nan, log_mean
    size = len(log_w)
    tail = int(3.0 * size**0.5) if size > 225 else size // 5
    ordered = np.sort(log_w.astype(np.float64))
    cutoff, quartile, most = (
        ordered[-tail - 1],
        ordered[-tail + int(tail / 4 + 0.5) - 1],
        ordered[-1],
    )
    # A q that is the posterior leaves rounding errors alone
    if most - cutoff <= 100.0 * np.finfo(log_w.dtype).eps * max(1.0, abs(most)):
        return -math.inf, log_mean
    if not np.exp(quartile - most) > np.exp(cutoff - most):
        return math.inf, log_mean
    with np.errstate(all="ignore"):
        # Its argument is minus the log-weights; what it returns sums to one
        smooth, k_hat = array_stats.psislw(-log_w.astype(np.float64))
    if not np.isfinite(k_hat):
        return math.inf, log_mean
    kept = np.argsort(log_w)[-tail - 2]  # not of the tail: left as it is
    if not np.isfinite(smooth[kept]):
        return float(k_hat), log_mean
    return float(k_hat), float(log_w[kept] - smooth[kept] - math.log(size))
