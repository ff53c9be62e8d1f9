"""Isotropic normal priors stated as members of a normal family, so that closed-form KL to a guide
of that family exists.
"""

import math

import jax
import jax.numpy as jnp

from vijax.families import lam_like
from vijax.inference import Prior
from vijax.types import Family, PyTree


def isotropic_normal_prior(family: Family, *, scale: float = 1.0) -> Prior:
    """Normal(0, scale^2 I) as a member of `family`, a `diag_normal` or `full_normal`, whatever
    theta is.

    Both families hold Normal(0, I) where all their parameters are 0.
    """

    def locate(theta: PyTree) -> PyTree:
        like = lam_like(family)
        lam = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return lam | {"log_scale": lam["log_scale"] + math.log(scale)}

    return Prior(family, locate)


def check_positive(model: str, **values: float) -> None:
    """Refuse sizes, scales and deviations that are not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{model}({name}={value!r}): {name} must be positive.")
