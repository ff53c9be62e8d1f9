"""Isotropic normal priors stated as members of a normal family, so that closed-form KL to a guide
of that family exists.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from vijax import densities
from vijax.families import diag_normal, full_normal, lam_like
from vijax.inference import Prior
from vijax.types import Family, PyTree, Scalar, Support


def isotropic_normal_prior(family: Family, *, scale: float = 1.0) -> Prior:
    """Normal(0, scale^2 I) as a member of `family`, a `diag_normal` or `full_normal`, whatever
    theta is.

    Both families hold Normal(0, I) where all their parameters are 0.

    Raises:
      ValueError: for another family, and a scale that is not positive.
    """
    check_positive("isotropic_normal_prior", scale=scale)
    shape = family.support.shape if isinstance(family.support, Support) else ()
    normals = [diag_normal(shape).name, *(full_normal(size).name for size in shape[:1])]
    if family.name not in normals:
        raise ValueError(
            f"isotropic_normal_prior({family.name}): that is no diag_normal or full_normal, so "
            "Normal(0, scale^2 I) is no member of it. State its own member: vijax.Prior(family, "
            "lambda theta: lam)."
        )
    log_scale = math.log(scale)

    def locate(*theta: PyTree) -> PyTree:
        like = lam_like(family)
        lam = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return lam | {"log_scale": lam["log_scale"] + log_scale}

    def log_prob(*given: Any) -> Scalar:  # without full_normal's triangular solve
        return jnp.sum(densities.normal(given[-1], 0.0, log_scale))

    return Prior(family, locate, log_prob)


def check_positive(model: str, **values: float) -> None:
    """Refuse sizes, scales and deviations that are not positive."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{model}({name}={value!r}): {name} must be positive.")
