"""The log-joint of a global latent and a batch, scaled to the whole data set."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from vijax import rows
from vijax.inference import Model
from vijax.shapes import add_terms, total_and_terms
from vijax.types import Batch, PyTree, Scalar

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


def log_prior(model: Model, theta: PyTree, w: PyTree) -> tuple[Scalar, dict[str, Scalar]]:
    """(log p(w | theta), its terms)."""
    return total_and_terms(model.log_prior(theta, w), "log_prior")


def log_joint(
    model: Model, theta: PyTree, w: PyTree, batch: Batch, num_data: int
) -> tuple[Scalar, dict[str, Scalar]]:
    """(log p(w) + N / B sum_i log p(x_i | w), its terms), for models without local latents."""
    terms, aux = jax.vmap(lambda x: log_local(model, theta, w, None, x))(batch.x)
    prior, prior_terms = log_prior(model, theta, w)
    scale = rows.scale(num_data, batch)
    summed = {name: scale * jnp.sum(term) for name, term in aux.items()}
    return prior + scale * jnp.sum(terms), add_terms(prior_terms, summed)
