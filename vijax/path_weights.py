"""Weights for path derivatives: how much of each sample's path counts. One idea, several named
estimators as settings.

With R_k = dR/dlog_w_k and R_kk the Hessian's diagonal (IWAE: v_k and v_k - v_k^2, v the normalised
weights), the rule `doubly_reparameterized` adds up c_k (dlog_w_k/dz_k) (dz_k/dlam); the settings
differ in c_k alone.

An integrand f(z) + s log q(z) of slope s, -1 for a bound, has its direct dependence on lam in
E[sum_k s R_k dlog q(z_k)/dlam]. Given the other samples that is s E_q[g score] with g = R_k, a
function of z_k; E_q[g score] = dE_q[g]/dlam, g held fixed, = E[(dg/dz_k) (dz_k/dlam)], and
dR_k/dz_k = R_kk dlog_w_k/dz_k. So it adds s R_kk to R_k: c_k = R_k + s R_kk. That takes an R_k
without jumps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.types import Array, Objective


class PathWeights(NamedTuple):
    """Which c_k a path-derivative rule uses.

    Attributes:
      factor: (objective, log_w [K], slope s [K]) -> [K] the ratios c_k / R_k
      smooth: does it look at R_kk, so that R_k must not jump?
      unbiased: for the gradient of E[objective] in q's parameters
      linear: for linear objectives alone (True), for others alone (False), or for any (None)
    """

    name: str
    factor: Callable[[Objective, Array, Array], Array]
    smooth: bool = True
    unbiased: bool = True
    linear: bool | None = None
    min_samples: int = 1
    paper: str = ""
    advice: str = ""


def exact() -> PathWeights:
    """c_k = R_k + s R_kk, unbiased for any objective: sticking-the-landing for the ELBO, DReG for
    IWAE (c_k = v_k^2 at s = -1).
    """
    return PathWeights(
        "exact",
        lambda objective, log_w, slope: 1.0 + slope * curvature(objective, log_w),
        paper="Roeder et al. 2017; Tucker et al. 2019",
    )


def sticking() -> PathWeights:
    """Biased, but for the ELBO: c_k = R_k, sticking-the-landing carried over to any objective.
    Roeder et al. 2017, sec. 5.

    Mean: grad E[R] + E[sum_k R_k dlog q(z_k)/dlam]; for IWAE the gradient of L_K plus that of
    reweighted wake-sleep's phi.
    """
    return PathWeights(
        "sticking",
        lambda objective, log_w, slope: jnp.ones_like(log_w),
        smooth=False,
        unbiased=False,
        paper="Roeder et al. 2017",
    )


def wake() -> PathWeights:
    """Biased: c_k = R_kk, the path form of reweighted wake-sleep's phi (RWS-DReG). Tucker et al.
    2019, eq. 11.

    Mean: E[sum_k R_k dlog q(z_k)/dlam], that of `rules.wake`, by which phi ascends -KL(posterior ||
    q) up to a bias of order 1/K. Zero, hence refused, for the ELBO and K = 1.
    """
    return PathWeights(
        "wake",
        lambda objective, log_w, slope: curvature(objective, log_w),
        unbiased=False,
        linear=False,
        min_samples=2,
        paper="Tucker et al. 2019",
        advice=(
            "For the ELBO these weights vanish: write objective=objectives.iwae and "
            "num_samples >= 2."
        ),
    )


def interpolated(alpha: float) -> PathWeights:
    """Biased unless alpha = 0: c_k = (1 - alpha) (R_k + s R_kk) + alpha R_kk, DReG(alpha). Tucker
    et al. 2019, section 6, s = -1.

    Mean: (1 - alpha) times that of `exact` plus alpha times that of `wake`.

    Args:
      alpha: in [0, 1].

    Raises:
      ValueError: if alpha is outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(
            f"path_weights.interpolated(alpha={alpha}): alpha must lie between 0 (exact) and 1 "
            f"(wake)."
        )

    def factor(objective: Objective, log_w: Array, slope: Array) -> Array:
        curved = curvature(objective, log_w)
        return (1.0 - alpha) * (1.0 + slope * curved) + alpha * curved

    return PathWeights(
        f"interpolated({alpha:g})",
        factor,
        unbiased=alpha == 0.0,
        linear=False,
        min_samples=2,
        paper="Tucker et al. 2019",
        advice="For the ELBO write doubly_reparameterized() without weights.",
    )


def tail_adaptive(beta: float = -1.0) -> PathWeights:
    """Biased: c_k is in proportion to rank_k^beta, sum 1. The largest weight has rank 1, so beta <
    0 favours it.

    Wang et al. 2018, eq. 10-11 and algorithm 1: an f-divergence chosen afresh for every batch of
    weights, whose tail fits theirs, so its moments exist; no fixed objective has this gradient.
    rank_k = #{j: w_j >= w_k}, equal for ties. phi alone follows it: theta and the value are the
    ELBO's. beta = 0 is the ELBO's sticking-the-landing.

    Args:
      beta: at most 0; -1 in the paper, -0.5 for less weight on the tail.

    Raises:
      ValueError: if beta is positive.
    """
    if not beta <= 0.0:
        raise ValueError(
            f"path_weights.tail_adaptive(beta={beta}): beta must not be positive, or it favours "
            f"small weights."
        )

    def factor(objective: Objective, log_w: Array, slope: Array) -> Array:
        # A compiler may round the two sides differently: a weight's own place is not left to that
        own = jnp.eye(log_w.shape[0], dtype=bool)
        rank = jnp.sum((log_w[None, :] >= log_w[:, None]) | own, axis=1).astype(log_w.dtype)
        power = rank**beta
        return power / jnp.mean(power)

    return PathWeights(
        f"tail_adaptive({beta:g})",
        factor,
        smooth=False,
        unbiased=False,
        linear=True,
        min_samples=2,
        paper="Wang et al. 2018",
        advice=(
            "Write objective=objectives.elbo for phi and, for another bound in theta, "
            "vijax.split(theta=..., phi=...)."
        ),
    )


def curvature(objective: Objective, log_w: Array) -> Array:
    """[K] ratios R_kk / R_k; 1 where R_k = 0, as for a weight that underflows in IWAE (1 - v_k)."""
    first, second = derivatives(objective, log_w)
    return jnp.where(first == 0.0, 1.0, second / jnp.where(first == 0.0, 1.0, first))


def derivatives(objective: Objective, log_w: Array) -> tuple[Array, Array]:
    """(R_k [K], R_kk [K]): the gradient of the objective and the diagonal of its Hessian. K^2
    scalars.
    """
    gradient = jax.grad(objective.value)
    basis = jnp.eye(log_w.shape[0], dtype=log_w.dtype)
    second = jax.vmap(lambda e: jnp.vdot(e, jax.jvp(gradient, (log_w,), (e,))[1]))(basis)
    return gradient(log_w), second
