"""Objectives: symmetric functions of the log-weights, `log_w [K] -> []`, in nats. They go up.

`objectives.iwae.value(log_w)` evaluates one. Wherever an objective is asked for, a bare function
will do as well: `as_objective` finds out what a caller must know about it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vijax.types import Array, Objective, Scalar

elbo = Objective("elbo", jnp.mean, linear=True, smooth=True)
"""Evidence lower bound, the mean of log_w. Jordan et al. 1999; the only linear objective."""


def _log_mean_exp(log_w: Array) -> Scalar:
    return jax.nn.logsumexp(log_w) - math.log(log_w.shape[0])


iwae = Objective("iwae", _log_mean_exp, smooth=True)
"""Importance-weighted bound, log mean exp(log_w), K samples inside. Burda et al. 2016, eq. 8."""


def as_objective(given: Any, num_samples: Any = None) -> Objective:
    """An `Objective`, from one or from a bare function log_w [K] -> [].

    A function is linear if the program that JAX traces of it is, operation by operation, and gives
    every log-weight the weight 1/K: so a mean of one's own is no less the ELBO than `elbo`. What
    only happens to look linear at some points is not taken for it.

    Args:
      num_samples: the K that it is meant for, if it is known.

    Raises:
      ValueError: if it is neither.
    """
    if isinstance(given, Objective):
        return given
    if not callable(given):
        raise ValueError(f"objective={given!r}: give a function log_w [K] -> [], or an Objective.")
    value: Any = given
    _check_value(value, num_samples)
    sizes = {3, 4} | ({num_samples} if isinstance(num_samples, int) and num_samples > 0 else set())
    linear = all(_is_mean(value, size) for size in sizes)
    return Objective(getattr(value, "__name__", "objective"), value, linear=linear)


def _check_value(value: Callable[[Array], Any], num_samples: Any) -> None:
    """Refuse what is no function of log-weights, such as a maker of objectives left uncalled."""
    size = num_samples if isinstance(num_samples, int) and num_samples > 0 else 3
    name = getattr(value, "__name__", repr(value))
    try:
        found = jax.eval_shape(value, jax.ShapeDtypeStruct((size,), jnp.result_type(float)))
    except Exception as error:
        raise ValueError(
            f"objective={name} fails on log_w [{size}] with {type(error).__name__}: it must be a "
            "function log_w [K] -> []. One that takes settings is called first, as in "
            "objectives.renyi(0.5)."
        ) from error
    if not hasattr(found, "shape"):
        raise ValueError(f"objective={name} returns a {type(found).__name__} for log_w [{size}].")


def _is_mean(value: Callable[[Array], Scalar], num_samples: int) -> bool:
    zeros = np.zeros(num_samples, jnp.result_type(float))
    try:
        with jax.ensure_compile_time_eval():  # concrete, inside another function's trace too
            at_zero = value(jnp.asarray(zeros))
            (weights,) = jax.linear_transpose(value, zeros)(jnp.ones_like(at_zero))
            even = np.allclose(weights, 1.0 / num_samples, rtol=1e-5)
            smooth = _is_smooth(jax.make_jaxpr(value)(zeros).jaxpr)
            return bool(even and smooth and at_zero.shape == () and at_zero == 0.0)
    except Exception:  # noqa: BLE001  not linear, or not defined for that many samples
        return False


def _is_smooth(jaxpr: Any) -> bool:
    """Does it compare nothing? What passes through a bool, a transpose does not see."""
    inside = [
        getattr(value, "jaxpr", value)
        for equation in jaxpr.eqns
        for value in equation.params.values()
        if hasattr(getattr(value, "jaxpr", value), "eqns")
    ]
    made = [out.aval.dtype for equation in jaxpr.eqns for out in equation.outvars]
    return all(jnp.issubdtype(kind, jnp.inexact) for kind in made) and all(map(_is_smooth, inside))


def renyi(alpha: float) -> Objective:
    """Variational Renyi bound, log mean exp((1 - alpha) log_w) / (1 - alpha). Li and Turner 2016,
    eq. 6.

    Args:
      alpha: order, a finite real. 0 is `iwae`; 1 is the limit `elbo`, which is returned itself.

    Raises:
      ValueError: if alpha is not finite.
    """
    if not math.isfinite(alpha):
        raise ValueError(
            f"renyi(alpha={alpha}): the order must be finite. For the limit -inf use log_w.max() "
            f"yourself."
        )
    if alpha == 1.0:
        return elbo
    return Objective(
        f"renyi({alpha:g})",
        lambda log_w: iwae.value((1.0 - alpha) * log_w) / (1.0 - alpha),
        smooth=True,
    )


def jackknife(bound: Objective = iwae) -> Objective:
    """First-order jackknife, K R_K - (K - 1) mean_k R(the others): takes off the bias of order 1/K.
    Nowozin 2018, eq. 9.

    With `iwae` its bias as an estimate of log p(x) is of order 1/K^2; no longer a lower bound.
    Needs K >= 2.
    """
    inner = as_objective(bound)
    if inner.linear:
        return elbo  # nothing to take off: the jackknife of a mean is the mean

    def value(log_w: Array) -> Scalar:
        num_samples = log_w.shape[0]
        left_out = jnp.mean(jax.vmap(inner.value)(others(log_w)))
        return num_samples * inner.value(log_w) - (num_samples - 1) * left_out

    return inner._replace(
        name=f"jackknife({inner.name})", value=value, min_samples=inner.min_samples + 1
    )


def cubo(order: float = 2.0) -> Objective:
    """Minus the chi upper bound, -log mean exp(order log_w) / order: it goes up as the bound comes
    down. Dieng et al. 2017.

    Its gradient is in self-normalised weights: shifting every log_w changes nothing in it. Minus
    its expectation is below CUBO = log E[w^order] / order, far below for few samples, and no upper
    bound then (K = 1 would be the ELBO; refused): use hundreds, or `exp_cubo`. For phi only: theta
    would be moved to lower the evidence; see `vijax.split`.

    Args:
      order: n > 1, 2 for the chi-square divergence. The Renyi bound of order 1 - n, turned round. K
        >= 2.
    """
    _check_order("cubo", order)
    bound = renyi(1.0 - order)
    return Objective(
        f"cubo({order:g})",
        lambda log_w: -bound.value(log_w),
        min_samples=2,
        moves_theta=False,
        smooth=True,
    )


def exp_cubo(order: float = 2.0, *, reference: float | Scalar) -> Objective:
    """Minus mean exp(order (log_w - reference)) / order, whose expectation is -exp(order (CUBO -
    reference)) / order.

    CHIVI, Dieng et al. 2017, eq. 8. The logarithm left out, any K estimates the true bound without
    bias, and the optimum in phi is CUBO's. Shifting the log-joint and `reference` together changes
    nothing. For phi only, as `cubo`.

    Args:
      order: n > 1.
      reference: a fixed number near log p(x), nats, for the exponent's range. It must not depend on
        the samples: their maximum there would bias the gradient. Where it lies so far above the
        log-weights that all of them underflow, the gradient would be zero; the value is NaN then.
    """
    _check_order("exp_cubo", order)

    def value(log_w: Array) -> Scalar:
        weights = jnp.exp(order * (log_w - reference))
        lost = jnp.all((weights == 0.0) & (log_w > -jnp.inf))
        return jnp.where(lost, jnp.nan, -jnp.mean(weights) / order)

    return Objective(f"exp_cubo({order:g})", value, moves_theta=False, smooth=True)


def thermodynamic(betas: Sequence[float]) -> Objective:
    """Thermodynamic variational objective, sum_i (b_{i+1} - b_i) E_{b_i}[log_w]. Masrani et al.
    2019, eq. 8.

    E_b is over q^(1-b) p^b, by self-normalised weights softmax(b log_w): consistent, with a bias of
    order 1/K. The left Riemann sum of log p(x) = int_0^1 E_b[log_w] db, a lower bound as K grows;
    (0, 1) is the ELBO, which is returned itself.

    Args:
      betas: increasing, from 0 to 1. Equal betas give an equal objective, which is how
        `rules.covariance` knows them.
    """
    return _thermodynamic(tuple(float(beta) for beta in betas))


@functools.cache
def _thermodynamic(betas: tuple[float, ...]) -> Objective:
    if (
        len(betas) < 2
        or betas[0] != 0.0
        or betas[-1] != 1.0
        or any(b >= c for b, c in itertools.pairwise(betas))
    ):
        raise ValueError(
            f"thermodynamic(betas={betas}): give increasing numbers from 0 to 1, such as (0, "
            f"0.03, 0.2, 1)."
        )
    if betas == (0.0, 1.0):
        return elbo
    left, widths = np.array(betas[:-1]), np.diff(betas)

    def value(log_w: Array) -> Scalar:
        tempered = jax.vmap(lambda beta: jnp.vdot(jax.nn.softmax(beta * log_w), log_w))(
            jnp.asarray(left, log_w.dtype)
        )
        return jnp.vdot(jnp.asarray(widths, log_w.dtype), tempered)

    return Objective(
        f"thermodynamic({', '.join(f'{beta:g}' for beta in betas)})", value, smooth=True
    )


def others(log_w: Array) -> Array:
    """[K, K - 1]: in row k, everyone but k."""
    num_samples = log_w.shape[0]
    keep = ~np.eye(num_samples, dtype=bool)
    return log_w[np.nonzero(keep)[1].reshape(num_samples, num_samples - 1)]


def _check_order(name: str, order: float) -> None:
    if not (math.isfinite(order) and order > 1.0):
        raise ValueError(
            f"{name}(order={order}): the order must be finite and above 1; at 1 the bound is log "
            f"p(x) itself."
        )
