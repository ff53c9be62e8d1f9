"""Objectives: symmetric functions of the log-weights, `log_w [K] -> []`, in nats. They go up."""

import math
from typing import cast

import jax
import jax.numpy as jnp

from vijax.types import Array, Objective, Scalar


def elbo(log_w: Array) -> Scalar:
    """Evidence lower bound, the mean of log_w. Jordan et al. 1999; the only linear objective."""
    return jnp.mean(log_w)


def iwae(log_w: Array) -> Scalar:
    """Importance-weighted bound, log mean exp(log_w), K samples inside. Burda et al. 2016, eq. 8."""
    return jax.nn.logsumexp(log_w) - math.log(log_w.shape[0])


def renyi(alpha: float) -> Objective:
    """Variational Renyi bound, log mean exp((1 - alpha) log_w) / (1 - alpha). Li and Turner 2016, eq. 6.

    Args:
      alpha: order, a finite real. 0 is `iwae`; 1 is the limit `elbo`, which is returned itself.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"renyi(alpha={alpha}): the order must be finite. For the limit -inf use log_w.max() yourself.")
    if alpha == 1.0:
        return elbo
    return cast(Objective, lambda log_w: iwae((1.0 - alpha) * log_w) / (1.0 - alpha))


def is_linear(objective: Objective) -> bool:
    """Is the objective the mean of log_w, so that expectations may be moved inside it?"""
    return objective is elbo
