"""Estimates of many data, averaged, with both kinds of error."""

from typing import NamedTuple

import numpy as np

from vijax.diagnostics.evidence import Estimated


class Averaged(NamedTuple):
    """A mean over data.

    Attributes:
      value: [] nats per datum.
      standard_error: over data, for another sample of as many; NaN of one.
      sampling_error: for these data, of the samples.
    """

    value: float
    standard_error: float
    sampling_error: float


def averaged(numbers: Estimated) -> Averaged:
    """Over data, [B] -> []."""
    values, errors = (np.asarray(leaf, np.float64) for leaf in numbers)
    over = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    sampling = np.sqrt(np.sum(errors**2)) / len(values)
    return Averaged(float(np.mean(values)), float(over), float(sampling))
