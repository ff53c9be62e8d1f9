"""Bounds on the log-evidence from both sides, of one set of log-weights."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vijax.diagnostics.evidence import Estimated, log_mean, over_log_weights
from vijax.diagnostics.smoothing import log_mean_exp, pareto_smoothed
from vijax.inference import Guide, Model
from vijax.types import Array, Batch, Key, Params


class Brackets(NamedTuple):
    """ELBO <= IWAE_K <= log p(x) <= CUBO_n, as far as samples know; leaves [B] or [].

    Attributes:
      elbo: mean log-weight.
      iwae: mean over blocks of K log-weights of log mean w.
      log_evidence: log mean w of all.
      cubo: log mean w^n / n.
      k_hat: Pareto shape of the weights. CUBO_n itself is infinite from 1/n on, and the standard
        error of its estimate means nothing from 1/(2n) on.
    """

    elbo: Estimated
    iwae: Estimated
    log_evidence: Estimated
    cubo: Estimated
    k_hat: Array


def brackets(
    key: Key,
    model: Model,
    guide: Guide,
    params: Params,
    batch: Batch,
    *,
    num_samples: int = 1000,
    block: int = 10,
    order: float = 2.0,
    chunk_size: int = 64,
) -> Brackets:
    """ELBO, IWAE_K, log p(x) and CUBO_n of one set of S log-weights, each with a standard error.
    Burda et al. 2016; Dieng et al. 2017.

    The four numbers are in this order whatever the weights. The expectations of the first three are
    bounds from below for every S. That of the last is NO bound from above: a logarithm of a mean is
    biased downwards, by about Var(w^n) / (2 n S E[w^n]^2), so what is seen lies below CUBO_n, and
    for few samples below log p(x). On simulated data `sandwich` has a bound that holds in
    expectation.

    Args:
      num_samples: S.
      block: K, a divisor of S.
      order: n > 1.
      chunk_size: data, respectively draws of w, handled at once.

    Raises:
      ValueError: if S is no multiple of K with at least 2 blocks, or n is not above 1.
    """
    if block < 1 or num_samples % block or num_samples < 2 * block:
        raise ValueError(
            f"brackets(num_samples={num_samples}, block={block}): num_samples must be a multiple "
            "of block, and at least twice it: the standard error is that of a mean over blocks."
        )
    if not 1.0 < order < float("inf"):
        raise ValueError(
            f"brackets(order={order}): CUBO needs a finite order above 1; at 1 it is log p(x)."
        )
    return over_log_weights(
        functools.partial(brackets_of, block=block, order=order),
        key,
        model,
        guide,
        params,
        batch,
        num_samples=num_samples,
        chunk_size=chunk_size,
    )


def brackets_of(log_w: np.ndarray, *, block: int, order: float) -> Brackets:
    """The figures that log-weights [..., S] make."""
    blocks = log_mean_exp(log_w.reshape(*log_w.shape[:-1], -1, block))
    above = log_mean(order * log_w.astype(np.float64))

    def of(pair: Estimated) -> Estimated:
        return Estimated(*(jnp.asarray(np.asarray(part, log_w.dtype)) for part in pair))

    return Brackets(
        elbo=of(mean(log_w)),
        iwae=of(mean(blocks)),
        log_evidence=of(log_mean(log_w)),
        cubo=of(Estimated(above.value / order, above.standard_error / order)),
        k_hat=jnp.asarray(pareto_smoothed(log_w).k_hat.astype(log_w.dtype)),
    )


def mean(values: np.ndarray) -> Estimated:
    """Over the last axis, in float64."""
    values = np.asarray(values, np.float64)
    error = np.std(values, axis=-1, ddof=1) / values.shape[-1] ** 0.5
    return Estimated(np.mean(values, axis=-1), error)
