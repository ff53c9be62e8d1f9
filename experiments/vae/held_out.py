"""Latents of test images: an encoder answers at once; rows phi_i are fitted with theta frozen."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax

import vijax as vj
from experiments.vae.problem import Job, make_estimator, make_guide
from vijax.families import Kl, need
from vijax.types import Array, Key, PyTree

if TYPE_CHECKING:
    from experiments.vae.__main__ import Config


class HeldOut(NamedTuple):
    """Rows phi_i for test images; one compilation serves the learning curve and the final fit.

    Attributes:
      fit: (key, params, phi or None for new rows, steps) -> params with phi fitted, theta as it
        was.
    """

    guide: vj.Guide
    fit: Callable[[Key, vj.Params, PyTree, int], vj.Params]


def held_out_fitter(config: "Config", job: Job) -> HeldOut | None:
    """Inference for the test images with theta frozen; None for an encoder, which needs none."""
    if config.guide == "amortized":
        return None
    guide = make_guide(config, job.scored_test)
    falling = optax.cosine_decay_schedule(config.row_learning_rate, config.test_steps)
    frozen = vj.descent(
        make_estimator(job, guide, len(job.scored_test)),
        optax.set_to_zero(),
        rows=vj.rowwise.adam(falling),
    )

    def fit(key: Key, params: vj.Params, phi: PyTree, steps: int) -> vj.Params:
        start = params._replace(phi=jax.jit(guide.init)(key) if phi is None else phi)
        return vj.fit(
            key, frozen, start, job.scored_test, num_steps=steps, record_every=50, chunk_size=50
        ).params

    return HeldOut(guide, fit)


class Posteriors(NamedTuple):
    """q(z_i) of the images of a split, and how far it is from the prior.

    Attributes:
      mean: [M, D].
      kl: [M, D] KL(q(z_id) || p(z_id)) of every unit, nats; their sum is that of the image.
    """

    mean: Array
    kl: Array


def posteriors(guide: vj.Guide, params: vj.Params, x: Array) -> Posteriors:
    """Of the images x [M, P], the first M rows."""
    batch = vj.Batch(x, jnp.arange(len(x)))
    unit = need(vj.families.diag_normal(1), Kl).value

    @jax.jit
    def run(phi: PyTree) -> Posteriors:
        lam = vj.guides.locate(guide, phi, batch).lam["z"]

        def of_unit(lam: PyTree) -> Array:
            one = jax.tree.map(lambda leaf: leaf[None], lam)
            return unit(one, jax.tree.map(jnp.zeros_like, one))

        return Posteriors(lam["loc"], jax.vmap(jax.vmap(of_unit))(lam))

    return run(params.phi)
