"""Batch and match: a full-covariance normal fitted to the scores of the target at its own draws."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.algorithms.global_latent import check_lam, global_family, unconstrained
from vijax.estimators import log_joint
from vijax.families import NormalMoments, cholesky, from_cholesky, full_normal, transports
from vijax.finite import all_finite
from vijax.inference import Algorithm, Guide, Info, Model
from vijax.types import Array, Batch, Key, Params, PyTree


class MatchState(NamedTuple):
    """Everything that moves. theta does not.

    Attributes:
      clock: [] int32, steps taken.
    """

    params: Params
    clock: Array


@functools.lru_cache(maxsize=64)  # equal arguments: the same object, by which programs are found
def batch_and_match(
    model: Model,
    guide: Guide,
    *,
    num_samples: int,
    num_data: int,
    rate: float | Callable[[Array], Array] | None = None,
) -> Algorithm:
    """Each step minimises a score-based divergence from q to the posterior over K draws, plus 2 /
    rate times KL(q_t || q): in closed form. Cai et al. 2024 (BaM), algorithm 1.

    No gradient in q's parameters, no learning rate to tune: affine invariant. For a normal
    posterior it converges exponentially fast, for K above the dimension in a few steps.

    Args:
      model: with a global latent alone, theta fixed.
      guide: `guides.shared(families.full_normal(D))`, or of `families.over(space, full_normal)`, in
        whose unconstrained space it then works; `fit` starts at
        `vijax.Params(theta, guide.init(key), ())`, which should be near the mode.
      num_samples: K, at least 2.
      num_data: N.
      rate: lambda_t of the paper, or a schedule of the step's number; default K D / (step + 1),
        the paper's for posteriors that are not normal.

    Raises:
      ValueError: for local latents, or a family that is no `full_normal`.
    """
    base, forward, log_det = unconstrained(global_family("batch_and_match", model, guide))
    dim = base.support.shape[0] if base.traits.get(NormalMoments) else 0
    if dim < 1 or base.name != full_normal(dim).name:
        raise ValueError(
            f"batch_and_match fits a full-covariance normal, but the guide has {base.name}. "
            "Write guides.shared(families.full_normal(D)), families.over(space, "
            "families.full_normal) for constrained latents, or vijax.descent for this family."
        )
    if not isinstance(num_samples, int) or num_samples < 2:
        raise ValueError(f"batch_and_match(num_samples={num_samples!r}): give at least 2.")

    def init(key: Key, params: Params) -> MatchState:
        check_lam("batch_and_match", params, base)
        return MatchState(params, jnp.zeros((), jnp.int32))

    def step(
        key: Key, state: MatchState, batch: Batch, *, recorded: bool = True
    ) -> tuple[MatchState, Info]:
        params, lam = state.params, state.params.phi["w"]

        def target(u: Array) -> Array:
            log_p, _ = log_joint(model, params.theta, forward(u), batch, num_data)
            return log_p + log_det(u)

        w, log_q = transports(base, lam, base.noise(key, num_samples))
        log_p, scores = jax.vmap(jax.value_and_grad(target))(w)
        size = num_samples * dim / (state.clock + 1.0) if rate is None else rate
        weight = jnp.asarray(size(state.clock) if callable(size) else size, w.dtype)
        lam = match(lam, w, scores, weight)
        new = MatchState(params._replace(phi={"w": lam}), state.clock + 1)
        return new, Info(loss=-jnp.mean(log_p - log_q), finite=all_finite(lam))

    return Algorithm(
        name=f"batch_and_match({base.name})",
        init=init,
        step=step,
        params=lambda state: state.params,
        num_data=num_data,
        check=model.check,
    )


def match(lam: PyTree, w: Array, scores: Array, weight: Array) -> PyTree:
    """Lam of the normal that BaM's proximal step ends at. Cai et al. 2024, eq. 9-14.

    The new covariance S solves S U S + S = V. With V = L L' and M = L' U L = Q diag(m) Q' it is
    L Q diag(2 / (1 + sqrt(1 + 4 m))) Q' L': symmetric and positive whatever the scores.

    Args:
      lam: of the `full_normal` that the draws are from.
      w: [K, D] draws.
      scores: [K, D], derivatives of the log-joint there.
      weight: [] lambda, how much this batch counts.
    """
    factor, loc = cholesky(lam), lam["loc"]
    num_samples, share = w.shape[0], weight / (1.0 + weight)
    middle, pull = jnp.mean(w, axis=0), jnp.mean(scores, axis=0)
    away, turn = w - middle[None, :], scores - pull[None, :]
    shift = loc - middle
    inner = weight / num_samples * turn.T @ turn + share * jnp.outer(pull, pull)  # U
    spread = weight / num_samples * away.T @ away + share * jnp.outer(shift, shift)
    root = jnp.linalg.cholesky(factor @ factor.T + spread)  # of V
    values, vectors = jnp.linalg.eigh(root.T @ inner @ root)
    shrink = 2.0 / (1.0 + jnp.sqrt(1.0 + 4.0 * jnp.maximum(values, 0.0)))
    half = root @ (vectors * jnp.sqrt(shrink)[None, :])  # half half' is the new covariance
    triangle = jnp.linalg.qr(half.T, mode="r").T
    signs = jnp.where(jnp.diagonal(triangle) < 0.0, -1.0, 1.0)
    new_loc = (1.0 - share) * loc + share * (half @ (half.T @ pull) + middle)
    return from_cholesky(new_loc, triangle * signs[None, :])
