"""How good is a fitted guide: log-evidence with error bars, beside the ELBO of the same samples."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.draws import check_rows, draws, local_draws
from vijax.inference import Guide, Model
from vijax.objectives import elbo, iwae
from vijax.types import Array, Batch, Key, Params, PyTree


class Evidence(NamedTuple):
    """Per datum with local latents alone, else of the whole batch; in nats.

    Attributes:
      elbo: [B] or [], mean log-weight.
      log_evidence: log mean weight: a lower bound in expectation, tight as K grows.
      standard_error: of log_evidence, delta method.
    """

    elbo: Array
    log_evidence: Array
    standard_error: Array


def log_evidence(
    key: Key,
    model: Model,
    guide: Guide,
    params: Params,
    batch: Batch,
    *,
    num_samples: int = 1000,
    chunk_size: int = 64,
) -> Evidence:
    """Log p(x_i) by K importance samples from q; with a global latent log p(x_1..x_B) of all data
    together.

    The standard error of log mean w is sd(w) / (sqrt(K) mean(w)); where it is above about half a
    nat the estimate rests on a few samples and is probably too low.

    Args:
      batch: the data to score, B of them (a whole test set; with a global latent the whole data).
      num_samples: K.
      chunk_size: data, respectively draws of w, handled at once; memory is chunk_size x K latents
        and likelihoods, respectively chunk_size x B.

    Raises:
      ValueError: if K < 2, or the batch has rows that the guide's table has not.
    """
    check_rows(guide, batch)
    if num_samples < 2:
        raise ValueError(
            f"log_evidence(num_samples={num_samples}): a standard error needs at least 2 samples."
        )
    if "w" in guide.families:
        log_w = draws(
            key, model, guide, params, batch, num_samples=num_samples, chunk_size=chunk_size
        ).log_w
        return evidence_of(log_w)
    return _per_datum(
        key, params, batch, model=model, guide=guide, num_samples=num_samples, chunk_size=chunk_size
    )


@jax.jit
def evidence_of(log_w: Array) -> Evidence:
    """The figures that log-weights [K] make."""
    relative = jnp.exp(log_w - iwae.value(log_w))  # weights over their mean
    error = jnp.std(relative, ddof=1) / log_w.shape[0] ** 0.5
    return Evidence(elbo.value(log_w), iwae.value(log_w), error)


@functools.partial(jax.jit, static_argnames=("model", "guide", "num_samples", "chunk_size"))
def _per_datum(
    key: Key,
    params: Params,
    batch: Batch,
    *,
    model: Model,
    guide: Guide,
    num_samples: int,
    chunk_size: int,
) -> Evidence:
    def reduce(z: PyTree, log_w: Array) -> Evidence:
        return evidence_of(log_w)

    return local_draws(
        key, model, guide, params, None, batch, num_samples, reduce, chunk_size=chunk_size
    )
