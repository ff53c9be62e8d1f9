"""Log-evidence with an error bar, and whether the bar can be trusted."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vijax.diagnostics.smoothing import log_mean_exp, most_k_hat, pareto_smoothed
from vijax.draws import check_rows, draws, local_draws
from vijax.guides import at_hand
from vijax.inference import Guide, Model
from vijax.shapes import check_data
from vijax.types import Array, Batch, Key, Params, PyTree


class Estimated(NamedTuple):
    """Numbers and how far they may be off.

    Attributes:
      value: nats.
      standard_error: of the samples that it was made of.
    """

    value: Any
    standard_error: Any


class Evidence(NamedTuple):
    """Per datum with local latents alone, else of the whole batch; in nats.

    Attributes:
      elbo: [B] or [], mean log-weight.
      log_evidence: log mean weight: a lower bound in expectation, tight as K grows.
      standard_error: of log_evidence, delta method. It means something where `reliable` alone.
      smoothed: log mean of the Pareto-smoothed weights: less noise for some bias.
      k_hat: Pareto shape of the largest weights, see `smoothing.Smoothed`.
      reliable: is k_hat at most min(1 - 1 / log10 K, 0.7)? False where it is not known, as for K
        below 25.
    """

    elbo: Array
    log_evidence: Array
    standard_error: Array
    smoothed: Array
    k_hat: Array
    reliable: Array


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

    The standard error of log mean w is sd(w) / (sqrt(K) mean(w)), of the weights that were seen.
    Where q misses a part of the posterior none of them tells; where its tails are too thin the
    weights' variance is infinite, their mean is probably too low and its error bar far too short:
    `reliable` is False there, and no error bar should be shown. k-hat is uncertain itself: of
    normals with 0.22 of the posterior's scales 26, 4 and 0 % pass in 1, 3 and 10 dimensions, K =
    1,000. `annealed_evidence` then knows better. Not inside `jit`: the fit of the tail is numpy's.

    Args:
      batch: the data to score, B of them (a whole test set; with a global latent the whole data).
      num_samples: K.
      chunk_size: data, respectively draws of w, handled at once; memory is chunk_size x K latents
        and likelihoods, respectively chunk_size x B.

    Raises:
      ValueError: if K < 2, or the batch has rows that the guide's table has not.
    """
    check_samples("log_evidence", num_samples)
    return over_log_weights(
        evidence_of,
        key,
        model,
        guide,
        params,
        batch,
        num_samples=num_samples,
        chunk_size=chunk_size,
    )


def over_log_weights(
    reduce: Callable[[np.ndarray], PyTree],
    key: Key,
    model: Model,
    guide: Guide,
    params: Params,
    batch: Batch,
    *,
    num_samples: int,
    chunk_size: int,
) -> PyTree:
    """`reduce(log-weights [b, K])`, numpy's, of every chunk of data, leaves [B, ...]; with a global
    latent `reduce([K])`.
    """
    if "w" in guide.families:
        log_w = draws(
            key, model, guide, params, batch, num_samples=num_samples, chunk_size=chunk_size
        ).log_w
        return reduce(np.asarray(log_w))
    check_rows(guide, batch)
    check_data(model.check, batch.x)

    def one(part: Batch) -> PyTree:
        here = at_hand(guide, params, part)
        log_w = _log_weights(key, here, part, model=model, guide=guide, num_samples=num_samples)
        return reduce(np.asarray(log_w))

    return by_chunks(one, batch, chunk_size)


def by_chunks(run: Callable[[Batch], PyTree], batch: Batch, chunk_size: int) -> PyTree:
    """`run` of every chunk of a batch, leaves [b, ...], put together to [B, ...]. The last one
    reaches back, so that no second size is compiled.
    """
    total = batch.index.shape[0]
    size, parts = min(chunk_size, total), []
    for first in range(0, total, size):
        begin = min(first, total - size)
        part = jax.tree.map(lambda leaf, at=begin: leaf[at : at + size], batch)
        parts.append(jax.tree.map(lambda leaf, own=first - begin: leaf[own:], run(part)))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def evidence_of(log_w: np.ndarray) -> Evidence:
    """The figures that log-weights [..., K] make."""
    tail, mean = pareto_smoothed(log_w), log_mean(log_w)

    def given(value: ArrayLike) -> Array:
        return jnp.asarray(np.asarray(value, log_w.dtype))

    return Evidence(
        elbo=given(np.mean(log_w, axis=-1, dtype=np.float64)),
        log_evidence=given(mean.value),
        standard_error=given(mean.standard_error),
        smoothed=given(tail.log_mean),
        k_hat=given(tail.k_hat),
        reliable=jnp.asarray(tail.k_hat <= most_k_hat(log_w.shape[-1])),
    )


def log_mean(log_w: np.ndarray) -> Estimated:
    """Log mean w of [..., K], with the delta method's standard error; float64."""
    mean = log_mean_exp(log_w)
    with np.errstate(invalid="ignore"):  # all of them -inf
        relative = np.exp(log_w - mean[..., None])  # weights over their mean
        error = np.std(relative, axis=-1, ddof=1) / log_w.shape[-1] ** 0.5
    return Estimated(mean, error)


def check_samples(what: str, num_samples: int) -> None:
    """Refuse fewer than two."""
    if num_samples < 2:
        raise ValueError(
            f"{what}(num_samples={num_samples}): a standard error needs at least 2 samples."
        )


@functools.partial(jax.jit, static_argnames=("model", "guide", "num_samples"))
def _log_weights(
    key: Key, params: Params, batch: Batch, *, model: Model, guide: Guide, num_samples: int
) -> Array:
    """[b, K]."""
    return local_draws(key, model, guide, params, None, batch, num_samples, lambda z, log_w: log_w)
