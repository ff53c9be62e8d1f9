"""Which differences are more than noise: ratios of variances with errors from paired draws, ranks,
relative times. Numpy only; nothing here draws or times.
"""

import numpy as np
from scipy import special

from vijax.lab.blocks import LEVEL
from vijax.lab.cost import Timing, between_rounds

HALF_WIDTH = float(special.ndtri(1.0 - LEVEL / 2.0))  # of a 95 % interval in standard errors
# Relative difference of variances that rounding can make, however well common noise cancels
ALIKE = 1e-4


def log_ratios(variance: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[E, E] log of variance i over variance j, and its standard error from paired draws.

    A variance of exactly 0 is infinitely smaller than any other and equal to another 0, without
    error; one that is not finite is infinitely larger.

    Args:
      variance: [E].
      squares: [E, S] |g - mean|^2 of the same draws of all.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(variance)
        log_ratio = log[:, None] - log[None, :]
        influence = squares / variance[:, None]
    same = variance[:, None] == variance[None, :]
    influence = np.where(np.isfinite(influence), influence, 1.0)
    covariance = np.atleast_2d(np.cov(influence))
    spread = np.diag(covariance)
    of_difference = spread[:, None] + spread[None, :] - 2.0 * covariance
    error = np.sqrt(np.maximum(of_difference, 0.0) / squares.shape[1])
    return np.where(same, 0.0, log_ratio), np.where(np.isfinite(log_ratio), error, 0.0)


def ranks(log_ratio: np.ndarray, error: np.ndarray) -> np.ndarray:
    """1 + the number of estimators whose variance is significantly smaller, all pairs tested
    jointly.
    """
    num_pairs = max(1, len(log_ratio) * (len(log_ratio) - 1) // 2)
    per_pair = -np.expm1(np.log1p(-LEVEL) / num_pairs)
    smaller = log_ratio > special.ndtri(1.0 - per_pair / 2.0) * error  # [i, j]: j is below i
    return 1 + np.sum(smaller & (log_ratio > ALIKE), axis=1)


def relative_times(times: Timing | None, num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[E] log time over the first's and its 95 % interval: ratios within rounds; nan for `num`
    estimators without times.
    """
    if times is None:
        return np.full(num, np.nan), np.full(num, np.nan), np.full(num, np.nan)
    return between_rounds(np.log(times.rounds / times.rounds[:, :1]))
