"""Baselines for score-function rules. One idea: a sample's signal is R(log_w) minus R with that
sample's own entry replaced by something that does not depend on it; leave-one-out, running mean and
network differ in what they put there. Where that is not finite, as after other samples of density
zero, nothing is subtracted: no baseline makes a signal infinite that was finite.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.networks import as_network
from vijax.objectives import as_objective, elbo, others
from vijax.types import Array, Key, Objective, PyTree, Scalar


class Baseline(NamedTuple):
    """How the signal of a score rule is formed, and what it learns or remembers.

    Attributes:
      signal: (objective, log_w [K], control, state, x) -> [K] multipliers of dlog q_k
      unbiased: does the signal keep the expected gradient that of the objective?
      num_auxiliary: S further draws from q; their log-weights follow the K samples' own: log_w [K +
        S] -> [K]
      init: -> control
      loss: goes down, in control
      update: after use; value is R(log_w), averaged
    """

    name: str
    signal: Callable[..., Array]
    min_samples: int = 1
    unbiased: bool = True
    num_auxiliary: int = 0
    advice: str = ""
    init: Callable[[Key], PyTree] = lambda key: ()
    loss: Callable[..., Scalar] = lambda control, value, x: jnp.zeros(())
    init_state: Callable[[], PyTree] = lambda: ()
    update: Callable[[PyTree, PyTree], PyTree] = lambda state, value: state


def none() -> Baseline:
    """No baseline. ELBO: sample k is multiplied by log_w_k / K (Williams 1992); other objectives:
    by R(log_w).
    """

    def signal(
        objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree
    ) -> Array:
        if objective.linear:
            return log_w / log_w.shape[0]
        return jnp.broadcast_to(objective.value(log_w), log_w.shape)

    return Baseline("none()", signal)


def leave_one_out(average: Objective = elbo) -> Baseline:
    """An average of the other K - 1 samples' log-weights stands in for a sample's own. Needs K >=
    2.

    RLOO for the ELBO (Kool et al. 2019; equals VarGrad, Richter et al. 2020). For IWAE it is VIMCO
    (Mnih and Rezende 2016): the default is its geometric mean of the weights (eq. 9),
    `leave_one_out(objectives.iwae)` the arithmetic one (eq. 8).

    Args:
      average: an objective, or a function [K - 1] -> []. The objective itself makes the signal
        R - R(the others).
    """
    chosen = as_objective(average)

    def signal(
        objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree
    ) -> Array:
        if chosen.linear:
            known = finite_or_zero(log_w)
            finite = jnp.isfinite(log_w).astype(log_w.dtype)
            count = jnp.sum(finite) - finite
            stand_in = (jnp.sum(known) - known) / jnp.maximum(count, 1.0)
        else:
            stand_in = jax.vmap(chosen.value)(others(log_w))
        return replace_one(objective, log_w, stand_in)

    advice = (
        "Its baseline is the mean of the other samples. Raise num_samples, or write "
        "score(baselines.moving_average())."
    )
    name = "leave_one_out()" if chosen.linear else f"leave_one_out({chosen.name})"
    return Baseline(name, signal, min_samples=2, advice=advice)


def ovis(gamma: float = 0.0) -> Baseline:
    """OVIS, the variance-optimal control variate for K -> infinity. Lievin et al. 2020, eq. 13;
    needs K >= 2.

    Sample k's total multiplier is R - R_k - c_k, c_k = R(the others) - gamma R_k + (1 - gamma)
    log(1 - 1/K), with R_k = dR/dlog_w_k (for IWAE the weight v_k).

    Biased unless gamma = 0 (the paper's choice for small effective sample size; there
    `leave_one_out(objectives.iwae)` up to a constant of mean zero). With gamma = 1 (its choice for
    large K) the mean is grad E[R] + E[sum_k R_k dlog q_k]: for IWAE the gradient of L_K plus that
    of reweighted wake-sleep's phi, the mean of the path derivative with all of R_k.

    Args:
      gamma: in [0, 1].

    Raises:
      ValueError: if gamma is outside [0, 1].
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"ovis(gamma={gamma}): gamma must lie between 0 (unbiased) and 1.")

    def signal(
        objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree
    ) -> Array:
        num_samples = log_w.shape[0]
        # The rule adds 1/K: taken off here
        constant = (1.0 - gamma) * math.log1p(-1.0 / num_samples) + 1.0 / num_samples
        return (
            objective.value(log_w)
            - finite_or_zero(jax.vmap(objective.value)(others(log_w)))
            + gamma * jax.grad(objective.value)(log_w)
            - constant
        )

    advice = "It compares with the objective of the other samples: raise num_samples."
    return Baseline(f"ovis({gamma:g})", signal, min_samples=2, unbiased=gamma == 0.0, advice=advice)


def ovis_monte_carlo(num_auxiliary: int) -> Baseline:
    """OVIS-MC: sample k's control variate is its multiplier's average over S other values of z_k.
    Lievin et al. 2020, eq. 11.

    Sample k's total multiplier is d_k - mean_s d_k(z_k := z^s), d_k = R - R_k: unbiased, for any
    objective.

    Args:
      num_auxiliary: S further draws from q, shared by all k, at S evaluations of the integrand and
        S K^2 scalars.

    Raises:
      ValueError: if num_auxiliary is below 1.
    """
    if num_auxiliary < 1:
        raise ValueError(
            f"ovis_monte_carlo(num_auxiliary={num_auxiliary}): at least 1 draw is needed; or "
            f"write ovis()."
        )

    def signal(
        objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree
    ) -> Array:
        num_samples = log_w.shape[0] - num_auxiliary
        own, extra = log_w[:num_samples], log_w[num_samples:]

        def multiplier(k: Array, value: Array) -> Scalar:  # d_k with sample k's log-weight replaced
            swapped = own.at[k].set(value)
            bound, slope = jax.value_and_grad(objective.value)(swapped)
            return bound - slope[k]

        each = jax.vmap(jax.vmap(multiplier, in_axes=(None, 0)), in_axes=(0, None))
        return (
            objective.value(own)
            - jnp.mean(finite_or_zero(each(jnp.arange(num_samples), extra)), axis=1)
            - 1.0 / num_samples
        )

    return Baseline(f"ovis_monte_carlo({num_auxiliary})", signal, num_auxiliary=num_auxiliary)


def moving_average(decay: float = 0.99) -> Baseline:
    """An exponential running mean of the objective stands in. Used, then updated: the other order
    scales the gradient.

    Args:
      decay: in (0, 1); weight of the past. Bias-corrected, so the first steps are not drawn to 0.

    Raises:
      ValueError: if decay is not strictly between 0 and 1.
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"moving_average(decay={decay}): decay must lie strictly between 0 and 1.")

    def signal(
        objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree
    ) -> Array:
        mean = state["sum"] / jnp.maximum(state["weight"], 1e-12)
        return replace_one(objective, log_w, jnp.broadcast_to(mean, log_w.shape))

    def update(state: PyTree, value: Scalar) -> PyTree:
        finite = jnp.isfinite(value)  # one bad batch must not poison every later signal

        def blend(old, new):
            return jnp.where(finite, decay * old + (1.0 - decay) * new, old)

        return {"sum": blend(state["sum"], value), "weight": blend(state["weight"], 1.0)}

    return Baseline(
        f"moving_average({decay})",
        signal,
        init_state=lambda: {"sum": jnp.zeros(()), "weight": jnp.zeros(())},
        update=update,
    )


def learned(network: object, *, x: PyTree = None) -> Baseline:
    """A network of the datum stands in, fitted to the objective by least squares. NVIL, Mnih and
    Gregor 2014, eq. 8.

    Args:
      network: datum -> one number; a flax module or an (init, apply) pair, see
        `networks.as_network`. The paper's division by a running standard deviation is left out: it
        biases the gradient, and Adam undoes it anyway.
      x: one datum (or its `jax.ShapeDtypeStruct`), for modules that are initialised by a call.
    """
    net = as_network(network, x)

    def predict(control: PyTree, x: PyTree) -> Scalar:
        return jnp.reshape(net.apply(control, x), ())

    def signal(
        objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree
    ) -> Array:
        return replace_one(objective, log_w, jnp.broadcast_to(predict(control, x), log_w.shape))

    def loss(control: PyTree, value: Scalar, x: PyTree) -> Scalar:
        return jnp.square(predict(control, jax.lax.stop_gradient(x)) - value)

    return Baseline("learned()", signal, init=net.init, loss=loss)


def replace_one(objective: Objective, log_w: Array, stand_in: Array) -> Array:
    """[K] signals R(log_w) - R(log_w with entry k replaced by stand_in_k), the latter 0 where it is
    not finite.
    """
    num_samples = log_w.shape[0]
    if objective.linear:
        return (log_w - finite_or_zero(stand_in)) / num_samples
    swapped = jnp.where(jnp.eye(num_samples, dtype=bool), stand_in[:, None], log_w[None, :])
    return objective.value(log_w) - finite_or_zero(jax.vmap(objective.value)(swapped))


def finite_or_zero(values: Array) -> Array:
    """The values, 0 in the place of those that are not finite."""
    return jnp.where(jnp.isfinite(values), values, 0.0)
