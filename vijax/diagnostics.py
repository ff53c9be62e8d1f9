"""How good is a fitted guide: log-evidence with error bars, beside the ELBO of the same samples."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vijax.objectives import elbo, iwae
from vijax.shapes import is_batch, with_terms
from vijax.types import Array, Batch, Guide, Key, Model, Params, PyTree


class Evidence(NamedTuple):
    """Per datum, in nats.

    Attributes:
      elbo: [B] mean log-weight
      log_evidence: [B] log mean weight: a lower bound in expectation, tight as K grows
      standard_error: [B] of log_evidence, delta method
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
    """Log p(x_i) by K importance samples from q, for models with local latents only.

    The standard error of log mean w is sd(w) / (sqrt(K) mean(w)); where it is above about half a
    nat the estimate rests on a few samples and is probably too low.

    Args:
      batch: the data to score, B of them (a whole test set).
      num_samples: K.
      chunk_size: data handled at once; memory is chunk_size x K latents and likelihoods.

    Raises:
      ValueError: if there is a global latent, or K < 2.
    """
    if guide.family_z is None or guide.family_w is not None:
        raise ValueError(
            "log_evidence scores data one by one: it needs a guide with local latents z only."
        )
    rows = guide.num_data
    if (
        rows is not None
        and not isinstance(is_batch(batch).index, Tracer)
        and max(np.asarray(batch.index)) >= rows
    ):
        raise ValueError(
            f"log_evidence: the guide's table has {rows} rows, but the batch's index goes beyond. "
            f"A datum without a row of its "
            "own has no q: fit one with theta frozen, or use guides.amortized."
        )
    if num_samples < 2:
        raise ValueError(
            f"log_evidence(num_samples={num_samples}): a standard error needs at least 2 samples."
        )
    return _log_evidence(
        key,
        params,
        is_batch(batch),
        model=model,
        guide=guide,
        num_samples=num_samples,
        chunk_size=chunk_size,
    )


@functools.partial(jax.jit, static_argnames=("model", "guide", "num_samples", "chunk_size"))
def _log_evidence(
    key: Key,
    params: Params,
    batch: Batch,
    *,
    model: Model,
    guide: Guide,
    num_samples: int,
    chunk_size: int,
) -> Evidence:
    family, is_table = guide.family_z, guide.tables(params.phi)
    assert family is not None

    def one(datum: tuple[Array, PyTree]) -> Evidence:
        index, x = datum
        phi = jax.tree.map(lambda table, leaf: leaf[index] if table else leaf, is_table, params.phi)
        noise = family.noise(jax.random.fold_in(key, index), num_samples)
        z, log_q = jax.vmap(family.transport, in_axes=(None, 0))(guide.locate_z(phi, x), noise)
        log_w = (
            jax.vmap(
                lambda z: with_terms(model.log_local(params.theta, None, z, x), "log_local")[0]
            )(z)
            - log_q
        )
        relative = jnp.exp(log_w - iwae(log_w))  # weights over their mean
        return Evidence(elbo(log_w), iwae(log_w), jnp.std(relative, ddof=1) / num_samples**0.5)

    return jax.lax.map(one, (batch.index, batch.x), batch_size=chunk_size)
