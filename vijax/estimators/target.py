"""The log-joint of a global latent and a batch, scaled to the whole data set."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vijax import rows
from vijax.inference import Model
from vijax.shapes import add_terms, total_and_terms
from vijax.types import Array, Batch, PyTree, Sample, Scalar

Schedule = Callable[[Array | None], float | Scalar]
"""The number of estimates made so far (None: not counted) -> a weight."""

EVALUATION = "log_joint"
"""The name that marks an evaluation of the log-joint in a traced program: `lab.evaluations` counts
it.
"""


def log_local(
    model: Model, theta: PyTree, w: PyTree, z: PyTree, x: PyTree
) -> tuple[Scalar, dict[str, Scalar]]:
    """(log p(z, x | w, theta), its terms) of one datum, counted as one evaluation."""
    value, terms = total_and_terms(model.log_local(theta, w, z, x), "log_local")
    return checkpoint_name(value, EVALUATION), terms


def log_weight(
    model: Model,
    theta: PyTree,
    w: PyTree,
    sample: Sample,
    x: PyTree,
    prior: PyTree,
    kl_weight: float | Scalar,
) -> tuple[Scalar, dict[str, Scalar]]:
    """(log p(x | z, w) + kl_weight (log p(z | w) - log q(z)), the terms of the log-joint).

    Args:
      prior: lam of p(z | w), if it is stated.
    """
    value, terms = log_local(model, theta, w, sample.z, x)
    if isinstance(kl_weight, float) and kl_weight == 1.0:
        return value - sample.log_q, terms
    log_p = model.priors["z"].family.log_prob(prior, sample.z)
    return value - (1.0 - kl_weight) * log_p - kl_weight * sample.log_q, terms


def log_prior(model: Model, theta: PyTree, w: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
    """(log p(w | theta), its terms)."""
    return total_and_terms(model.log_prior(theta, w), "log_prior")


def log_joint(
    model: Model,
    theta: PyTree,
    w: PyTree,
    batch: Batch,
    num_data: int,
    kl_weight: float | Scalar = 1.0,
) -> tuple[Scalar, dict[str, Scalar]]:
    """(kl_weight log p(w) + N / B sum_i log p(x_i | w), the terms of the two), for models without
    local latents.
    """
    terms, aux = jax.vmap(lambda x: log_local(model, theta, w, None, x))(batch.x)
    prior, prior_terms = log_prior(model, theta, w)
    scale = rows.weight(num_data, batch)
    summed = {name: scale * jnp.sum(term) for name, term in aux.items()}
    return kl_weight * prior + scale * jnp.sum(terms), add_terms(prior_terms, summed)


def as_schedule(weight: float | Schedule) -> Schedule:
    """A constant one from a number, which must be finite and not negative."""
    if callable(weight):
        return weight
    if not (math.isfinite(weight) and weight >= 0.0):
        raise ValueError(
            f"kl_weight={weight!r}: give a number of at least 0 (1 is the bound itself), or a "
            "function of the step such as optax.linear_schedule(0.0, 1.0, 1000)."
        )
    return lambda step: float(weight)
