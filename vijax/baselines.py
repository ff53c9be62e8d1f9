"""Baselines for score-function rules. One idea: a sample's signal is R(log_w) minus R with that sample's own entry
replaced by something that does not depend on it; leave-one-out, running mean and network differ in what they put there.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.networks import as_network
from vijax.objectives import is_linear
from vijax.types import Array, Key, Objective, PyTree, Scalar


class Baseline(NamedTuple):
    """How the signal of a score rule is formed, and what it learns or remembers."""

    name: str
    signal: Callable[..., Array]  # (objective, log_w [K], control, state, x) -> [K] multipliers of dlog q_k
    min_samples: int = 1
    advice: str = ""
    init: Callable[[Key], PyTree] = lambda key: ()  # -> control
    loss: Callable[..., Scalar] = lambda control, value, x: jnp.zeros(())  # goes down, in control
    init_state: Callable[[], PyTree] = lambda: ()
    update: Callable[[PyTree, PyTree], PyTree] = lambda state, value: state  # after use; value is R(log_w), averaged


def none() -> Baseline:
    """No baseline. ELBO: sample k is multiplied by log_w_k / K (Williams 1992); other objectives: by R(log_w)."""

    def signal(objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree) -> Array:
        if is_linear(objective):
            return log_w / log_w.shape[0]
        return jnp.broadcast_to(objective(log_w), log_w.shape)

    return Baseline("none()", signal)


def leave_one_out() -> Baseline:
    """The mean log-weight of the other K - 1 samples stands in for a sample's own.

    RLOO for the ELBO (Kool et al. 2019; equals VarGrad, Richter et al. 2020), VIMCO with the geometric mean for IWAE (Mnih
    and Rezende 2016, eq. 9). Needs K >= 2.
    """

    def signal(objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree) -> Array:
        others = (jnp.sum(log_w) - log_w) / (log_w.shape[0] - 1)
        return replace_one(objective, log_w, others)

    advice = "Its baseline is the mean of the other samples. Raise num_samples, or write score(baselines.moving_average())."
    return Baseline("leave_one_out()", signal, min_samples=2, advice=advice)


def moving_average(decay: float = 0.99) -> Baseline:
    """An exponential running mean of the objective stands in. Used, then updated: the other order scales the gradient.

    Args:
      decay: in (0, 1); weight of the past. Bias-corrected, so the first steps are not drawn to 0.
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"moving_average(decay={decay}): decay must lie strictly between 0 and 1.")

    def signal(objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree) -> Array:
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
    """A network of the datum stands in, fitted to the objective by least squares. NVIL, Mnih and Gregor 2014, eq. 8.

    Args:
      network: datum -> one number; a flax module or an (init, apply) pair, see `networks.as_network`. The paper's division
        by a running standard deviation is left out: it biases the gradient, and Adam undoes it anyway.
      x: one datum (or its `jax.ShapeDtypeStruct`), for modules that are initialised by a call.
    """
    net = as_network(network, x)

    def predict(control: PyTree, x: PyTree) -> Scalar:
        return jnp.reshape(net.apply(control, x), ())

    def signal(objective: Objective, log_w: Array, control: PyTree, state: PyTree, x: PyTree) -> Array:
        return replace_one(objective, log_w, jnp.broadcast_to(predict(control, x), log_w.shape))

    def loss(control: PyTree, value: Scalar, x: PyTree) -> Scalar:
        return jnp.square(predict(control, jax.lax.stop_gradient(x)) - value)

    return Baseline("learned()", signal, init=net.init, loss=loss)


def replace_one(objective: Objective, log_w: Array, stand_in: Array) -> Array:
    """[K] signals R(log_w) - R(log_w with entry k replaced by stand_in_k)."""
    num_samples = log_w.shape[0]
    if is_linear(objective):
        return (log_w - stand_in) / num_samples
    swapped = jnp.where(jnp.eye(num_samples, dtype=bool), stand_in[:, None], log_w[None, :])
    return objective(log_w) - jax.vmap(objective)(swapped)
