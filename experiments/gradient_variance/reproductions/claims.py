"""What the reproductions share: claims with their verdict, and columns for the arrays."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from vijax import lab

MANY = 5.0  # standard errors at which a number disagrees
HALF_WIDTH = float(special.ndtri(0.975))  # of a 95 % interval, in standard errors
WIDE = float(special.ndtri(0.9995))  # of a 99.9 % interval


def claim(
    what: str,
    published: str | float,
    ours: Any,
    error: Any,
    source: str,
    *,
    agrees: bool | None = None,
) -> dict:
    """One row of the table. A number agrees if it is less than 5 standard errors away; words need a
    verdict of their own.
    """
    if agrees is None:
        if isinstance(published, str):
            raise ValueError(
                f"claim {what!r}: published={published!r} is no number, so say agrees=... yourself."
            )
        agrees = abs(ours - published) < MANY * error
    return {
        "what": what,
        "published": published,
        "ours": float(ours),
        "error": float(error),
        "agrees": bool(agrees),
        "source": source,
    }


def below(
    what: str, published: str, log_ratio: float, error: float, source: str, *, than: float = 0.0
) -> dict:
    """An ordering: the whole 95 % interval of a log10 ratio of variances lies below `than`."""
    return claim(
        what, published, log_ratio, error, source, agrees=log_ratio + HALF_WIDTH * error < than
    )


def not_above(what: str, published: str, log_ratio: float, error: float, source: str) -> dict:
    """A weak ordering: some of the 95 % interval of a log10 ratio of variances lies below 0."""
    return claim(
        what, published, log_ratio, error, source, agrees=log_ratio - HALF_WIDTH * error < 0.0
    )


def worst(
    what: str, published: np.ndarray, ours: np.ndarray, error: np.ndarray, source: str
) -> dict:
    """One claim for several points: the one that is most standard errors away speaks for all."""
    columns = [
        np.ravel(np.broadcast_to(column, np.shape(ours))) for column in (published, ours, error)
    ]
    i = int(np.argmax(np.abs(columns[1] - columns[0]) / np.maximum(columns[2], 1e-300)))
    return claim(what, float(columns[0][i]), columns[1][i], columns[2][i], source)


def log_ratios(
    comparison: lab.Comparison, one: str, other: str, block: str = "phi"
) -> tuple[np.ndarray, np.ndarray]:
    """log10 of the variance of `one` over that of `other` at every point, and its standard error,
    pairing left out.
    """
    rows = [(comparison.estimator == name) & (comparison.block == block) for name in (one, other)]
    variance, error = (
        np.stack([column[row] for row in rows])
        for column in (comparison.variance, comparison.variance_error)
    )
    return np.log10(variance[0] / variance[1]), np.hypot(*(error / variance)) / math.log(10.0)


def columns(prefix: str, table: NamedTuple) -> dict[str, np.ndarray]:
    """A lab result as arrays "prefix/column"; parts that are tables themselves, or None, are left
    out.
    """
    parts = {
        name: column
        for name, column in table._asdict().items()
        if column is not None and not hasattr(column, "_fields")
    }
    return {f"{prefix}/{name}": np.asarray(column) for name, column in parts.items()}
