"""What scripts about images share: an estimator that binarizes afresh at every visit, and scores of
a whole split.
"""

import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np

import vijax as vj
from experiments.common import harness
from vijax.diagnostics import Evidence
from vijax.types import Array, Key, PyTree

BLOCK = 128  # images scored by one call
CHUNK = 16  # images whose samples are in memory at once


def binarized(estimator: vj.Estimator) -> vj.Estimator:
    """The estimator on a new Bernoulli draw of every image at every visit: dynamic binarization,
    Burda et al. 2016.
    """

    def draw(key: Key, grey: Array) -> Array:
        return jax.random.bernoulli(key, grey).astype(grey.dtype)

    def estimate(
        key: Key, params: vj.Params, state: PyTree, batch: vj.Batch
    ) -> tuple[vj.Estimate, PyTree]:
        key_x, key_z = jax.random.split(key)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_x, batch.index)
        seen = batch._replace(x=jax.vmap(draw)(keys, batch.x))
        return estimator.estimate(key_z, params, state, seen)

    return estimator._replace(estimate=estimate)


def score(
    key: Key,
    model: vj.Model,
    guide: vj.Guide,
    params: vj.Params,
    x: Array,
    num_samples: int,
    what: str | None = None,
) -> Evidence:
    """`diagnostics.log_evidence` of the images x [M, P], the first M rows, in blocks of one size.

    Args:
      what: title of a progress bar; None for none.
    """
    block, parts = min(BLOCK, len(x)), []
    with harness.progress_bar(len(x), what, "image") as bar:
        for first in range(0, len(x), block):
            # The last block reaches back, so that no other size is compiled
            begin = min(first, len(x) - block)
            batch = vj.Batch(x[begin : begin + block], jnp.arange(begin, begin + block))
            scores = vj.diagnostics.log_evidence(
                key,
                model,
                guide,
                params,
                batch,
                num_samples=num_samples,
                chunk_size=math.gcd(block, CHUNK),
            )
            own = slice(first - begin, None)
            parts.append(jax.tree.map(lambda leaf, own=own: np.asarray(leaf)[own], scores))
            bar.update(len(parts[-1].elbo))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def fingerprint(*images: Array) -> str:
    """Eight hexadecimal digits of sets of images [M, P]: runs that were scored on the same images
    have the same.
    """
    digest = hashlib.sha256()
    for x in images:
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:8]
