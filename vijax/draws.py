"""The one door to a fitted q: draws with their log-weights. Diagnostics stand on it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vijax.estimators import log_joint, log_local, log_prior
from vijax.families import transports
from vijax.guides import at_hand, global_q, over_data
from vijax.inference import Draws, Guide, Model
from vijax.shapes import check_batch, check_data
from vijax.types import Array, Batch, Integrand, Key, Params, PyTree, Q, Sample


def draws(
    key: Key,
    model: Model,
    guide: Guide,
    params: Params,
    batch: Batch,
    *,
    num_samples: int,
    chunk_size: int | None = None,
) -> Draws:
    """S draws from q with log p - log q, in nats; refined guides are drawn from refined.

    Args:
      batch: the data; with a global latent all of them, because log_w counts those of the batch and
        no others.
      num_samples: S.
      chunk_size: draws of w, or data, handled at once, which bounds the memory; None: all.

    Returns:
      Draws: w leaves [S, ...]; z leaves [S, B, ...]; log_w [S, B] with local latents alone, else
        [S].

    Raises:
      ValueError: if the batch has rows that the guide's table has not, or S is below 1.
    """
    check_rows(guide, batch)
    check_data(model.check, batch.x)
    if not isinstance(num_samples, int) or num_samples < 1:
        raise ValueError(f"draws(num_samples={num_samples!r}): give an int of at least 1.")
    here = at_hand(guide, params, batch)
    return _draws(
        key, here, batch, model=model, guide=guide, num_samples=num_samples, chunk_size=chunk_size
    )


def check_rows(guide: Guide, batch: Batch) -> None:
    """Refuse what is no batch, and rows beyond the guide's table."""
    check_batch(batch)
    size, index = guide.num_data, batch.index
    if size is None or isinstance(index, Tracer):
        return
    if np.min(index) < 0 or np.max(index) >= size:
        raise ValueError(
            f"the guide's table has {size} rows, but the batch's index goes beyond. A datum "
            "without a row of its own has no q: fit one with theta frozen, or use "
            "guides.amortized."
        )


@functools.partial(jax.jit, static_argnames=("model", "guide", "num_samples", "chunk_size"))
def _draws(
    key: Key,
    params: Params,
    batch: Batch,
    *,
    model: Model,
    guide: Guide,
    num_samples: int,
    chunk_size: int | None,
) -> Draws:
    if "w" not in guide.families:
        z, log_w = local_draws(
            key, model, guide, params, None, batch, num_samples, lambda *pair: pair, chunk_size
        )
        first = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), (z, log_w))
        return Draws(w=None, z=first[0], log_w=first[1])
    q, num_data = global_q(guide, params.phi), batch.index.shape[0]
    noise_key, local_key = jax.random.split(key)
    w, log_q = transports(q.family, q.lam, q.family.noise(noise_key, num_samples))

    def one(args: tuple[Key, PyTree, Array]) -> tuple[PyTree, Array]:
        key, w, log_q = args
        if "z" not in guide.families:
            return None, log_joint(model, params.theta, w, batch, num_data)[0] - log_q
        z, log_w = local_draws(key, model, guide, params, w, batch, 1, lambda *pair: pair)
        total = log_prior(model, params.theta, w)[0] + jnp.sum(log_w) - log_q
        return jax.tree.map(lambda leaf: leaf[:, 0], z), total

    each = (jax.random.split(local_key, num_samples), w, log_q)
    size = num_samples if chunk_size is None else chunk_size
    z, log_w = jax.lax.map(one, each, batch_size=size)
    return Draws(w=w, z=z, log_w=log_w)


def local_draws(
    key: Key,
    model: Model,
    guide: Guide,
    params: Params,
    w: PyTree,
    batch: Batch,
    num_samples: int,
    reduce: Callable[[PyTree, Array], PyTree],
    chunk_size: int | None = None,
) -> PyTree:
    """`reduce(z leaves [S, ...], log p(z, x | w) - log q(z) [S])` of every datum, leaves [B, ...]:
    what is not asked for is not kept.
    """

    def integrand(x: PyTree) -> Integrand:
        def at(sample: Sample) -> Array:
            return log_local(model, params.theta, w, sample.z, x)[0] - sample.log_q

        return at

    def body(key: Key, q: Q, f: Integrand, x: PyTree) -> PyTree:
        z, log_q = transports(q.family, q.lam, q.family.noise(key, num_samples))
        keys = jax.random.split(key, num_samples)
        return reduce(z, jax.vmap(f)(Sample(z, log_q, keys)))

    return over_data(guide, params.phi, key, batch, integrand, body, chunk_size=chunk_size)
