"""What a model can say of concrete data before anything is fitted to them."""

import numpy as np

from vijax.types import Array


def check_unit(x: Array, what: str) -> None:
    """Refuse values outside [0, 1] where bits are meant; grey values between are their means."""
    low, high = np.min(x), np.max(x)
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(
            f"{what} must be 0 or 1, or grey values in between, but they go from {low:.4g} to "
            f"{high:.4g}: log Bernoulli(x) = x logit - softplus(logit) is no density there, and "
            "grows for ever. Divide images by their largest grey value, x / 255."
        )


def check_bits(x: Array, what: str, advice: str) -> None:
    """Refuse anything but zeros and ones."""
    values = np.unique(x)
    if not np.all((values == 0) | (values == 1)):
        shown = np.array2string(values, threshold=6, precision=4)
        raise ValueError(
            f"{what} must be 0 or 1, but they are {shown}: x logit - softplus(logit) is no density "
            f"there, and is maximised by another model. {advice}"
        )
