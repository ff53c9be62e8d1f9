"""Stein variational gradient descent: particles that follow the posterior and repel each other."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from vijax.algorithms.global_latent import check_lam, global_family
from vijax.estimators import log_joint
from vijax.families import transports
from vijax.finite import all_finite
from vijax.guides import global_q
from vijax.inference import Algorithm, Draws, Guide, Info, Model
from vijax.types import Array, Batch, Key, Params, PyTree


class ParticleState(NamedTuple):
    """Everything that moves. theta does not.

    Attributes:
      params: phi is {"w": particles, leaves [S, ...]}.
    """

    params: Params
    opt_state: PyTree


@functools.lru_cache(maxsize=64)  # equal arguments: the same object, by which programs are found
def svgd(
    model: Model,
    guide: Guide,
    optimizer: optax.GradientTransformation,
    *,
    num_particles: int,
    num_data: int,
) -> Algorithm:
    """Particles w_i <- w_i + rate mean_j [k(w_j, w_i) dlog p(w_j)/dw_j + dk(w_j, w_i)/dw_j]. Liu
    and Wang 2016, algorithm 1, with their kernel exp(-|a - b|^2 / h), h = median^2 / log S.

    `particles(result.params)` gives its result as Draws. The loss that it records is minus the mean
    log-joint of the particles, which is no bound.

    Args:
      model: with a global latent alone, theta fixed.
      guide: `guides.shared(family)`: the particles start as draws from it, so that `fit` starts at
        `vijax.Params(theta, guide.init(key), ())`.
      optimizer: of the particles; Adagrad in the paper.
      num_particles: S, at least 2.
      num_data: N.

    Raises:
      ValueError: for local latents, or one particle.
    """
    family = global_family("svgd", model, guide)
    if not isinstance(num_particles, int) or num_particles < 2:
        raise ValueError(f"svgd(num_particles={num_particles!r}): give at least 2.")

    def init(key: Key, params: Params) -> ParticleState:
        check_lam("svgd", params, family)
        q = global_q(guide, params.phi)
        w, _ = transports(q.family, q.lam, q.family.noise(key, num_particles))
        return ParticleState(params._replace(phi={"w": w}), optimizer.init(w))

    def step(
        key: Key, state: ParticleState, batch: Batch, *, recorded: bool = True
    ) -> tuple[ParticleState, Info]:
        params, w = state.params, state.params.phi["w"]

        def target(w: PyTree) -> Array:
            return log_joint(model, params.theta, w, batch, num_data)[0]

        log_p, scores = jax.vmap(jax.value_and_grad(target))(w)
        _, shape = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], w))
        flatten = jax.vmap(lambda tree: ravel_pytree(tree)[0])
        ascent = jax.vmap(shape)(stein_direction(flatten(w), flatten(scores)))
        downhill = jax.tree.map(jnp.negative, ascent)
        updates, opt_state = optimizer.update(downhill, state.opt_state, w)
        moved = optax.apply_updates(w, updates)
        new = ParticleState(params._replace(phi={"w": moved}), opt_state)
        return new, Info(loss=-jnp.mean(log_p), finite=all_finite(moved))

    return Algorithm(
        name=f"svgd({num_particles})",
        init=init,
        step=step,
        params=lambda state: state.params,
        num_data=num_data,
        check=model.check,
    )


def particles(params: Params) -> Draws:
    """The particles as draws of equal weight."""
    w = params.phi["w"]
    return Draws(w=w, z=None, log_w=jnp.zeros(jax.tree.leaves(w)[0].shape[0]))


def stein_direction(w: Array, scores: Array) -> Array:
    """[S, D] the direction of each particle: attraction by the scores, repulsion by the kernel.

    Args:
      w: [S, D] particles.
      scores: [S, D] derivatives of the log-joint there.
    """
    num_particles = w.shape[0]
    apart = w[:, None, :] - w[None, :, :]  # [j, i, D]: w_j - w_i
    squared = jnp.sum(jnp.square(apart), axis=-1)
    pairs = squared[jnp.triu_indices(num_particles, 1)]
    width = jnp.maximum(jnp.median(pairs) / jnp.log(num_particles), jnp.finfo(w.dtype).tiny)
    kernel = jnp.exp(-squared / jax.lax.stop_gradient(width))  # [j, i]
    repulsion = -2.0 / width * jnp.einsum("ji,jid->id", kernel, apart)
    return (kernel.T @ scores + repulsion) / num_particles
