"""The rules on three bits with one logit: measured, and their mean and variance beside it where
their noise can be summed over.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import vijax as vj
from experiments.gradient_variance.reproductions import bernoulli_noise as noise
from experiments.gradient_variance.reproductions.expectation import Expectation, estimator, measured
from vijax import lab
from vijax.catalogue import CATALOGUE
from vijax.types import Array, Key, PyTree

T = np.asarray([0.6, 0.51, 0.48])
ETA = np.asarray([-4.0, -2.0, 0.0, 2.0])
COUPLED = ("arm()", "disarm()", "arms(4)")  # one group of draws is one sample
BY_STATES = (  # rules with no noise but the draws
    "score()",
    "score(none())",
    "score(leave_one_out(iwae))",
    "score(moving_average())",
    "score(learned(network))",
    "score(ovis(0))",
    "score(ovis(1))",
    "measure_valued()",
    "enumerated()",
    "local_expectation()",
    "muprop()",
    "double_control_variates()",
    "rodeo()",
)
# One is the other's conditional expectation
SAME_MEAN = {"gumbel_rao(0.5)": "straight_through_gumbel(0.5)"}
NEEDS_LOG_Q = "closed_form_"


class Seen(NamedTuple):
    """One rule at every eta.

    Attributes:
      exact_mean: nan where it is not enumerated.
    """

    bias: np.ndarray
    bias_error: np.ndarray
    variance: np.ndarray
    variance_error: np.ndarray
    exact_mean: np.ndarray
    exact_variance: np.ndarray


def one_logit(dim: int) -> Expectation:
    """E[sum_i (b_i - t_i)^2 - shift], one logit for all bits."""

    def squares(z: Array, x: PyTree) -> Array:
        return jnp.sum(jnp.square(z - x["t"])) - x["shift"]

    family = vj.families.bernoulli(dim)
    return Expectation(family, squares, lambda phi: {"logits": jnp.full(dim, phi["eta"])})


def exact_gradient() -> np.ndarray:
    """[B] at every eta."""
    return np.asarray([noise.gradient(e, T) for e in ETA])


def all_rules(
    key: Key, num_draws: int, names: Iterable[str]
) -> tuple[dict[str, Seen], dict[str, str]]:
    """Every legal rule at every eta; why the others are not."""
    family = vj.families.bernoulli(len(T))
    legal: dict[str, tuple[vj.Rule, int]] = {}
    refused: dict[str, str] = {}
    for name in names:
        if name.startswith(NEEDS_LOG_Q):
            refused[name] = "it takes log q out of the integrand, which has none here."
            continue
        rule, num_samples = CATALOGUE[name](family), 1 if name in COUPLED else 2
        try:
            estimator(one_logit(len(T)), rule, num_samples, len(ETA))
        except ValueError as reason:
            refused[name] = str(reason)
        else:
            legal[name] = (rule, num_samples)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # compiling is most of the work
        found = pool.map(lambda name: _measure(key, name, *legal[name], num_draws), legal)
    return dict(zip(legal, found, strict=True)), refused


def _measure(key: Key, name: str, rule: vj.Rule, num_samples: int, num_draws: int) -> Seen:
    problem, phi = one_logit(len(T)), {"eta": jnp.asarray(ETA, jnp.float32)}
    made = estimator(problem, rule, num_samples, len(ETA))
    t = jnp.broadcast_to(jnp.asarray(T, jnp.float32), (len(ETA), len(T)))
    x = {"t": t, "shift": jnp.zeros(len(ETA))}
    place, batch = vj.Params((), phi, ()), vj.Batch(x, jnp.arange(len(ETA)))
    learned = lab.learn(key, made, place, batch, num_steps=300)
    exact = {"eta": jnp.asarray(exact_gradient(), jnp.float32)}
    report = measured(key, made, phi, x, num_draws=num_draws, exact=exact, learned=learned)
    assert report.bias is not None and report.bias_error is not None
    trees = (report.bias, report.bias_error, report.variance, report.variance_error)
    bias, bias_error, variance, variance_error = (
        np.asarray(tree.phi["eta"], float) for tree in trees
    )
    if name in BY_STATES:
        exact_mean, exact_variance = noise.by_states(
            rule, problem, phi, x, learned.control, learned.state, num_samples
        )
    else:
        exact_mean, exact_variance = _enumerated(name, num_samples)
    # Minus: estimators follow the loss
    return Seen(-bias, bias_error, variance, variance_error, exact_mean, exact_variance)


def _enumerated(name: str, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """[B] exact mean and variance, nan where they are not known."""
    like = SAME_MEAN.get(name, name)
    if name == "arms(4)":
        known = [noise.arms(e, T, 4) for e in ETA]
    elif name in COUPLED:
        known = [noise.arm(e, T, integrated=name == "disarm()") for e in ETA]
    elif name == "local_expectation(num_sites=1)":
        known = [noise.bit_flip(e, T, num_samples) for e in ETA]
    elif like in noise.SLOPES:
        known = [noise.relaxed(noise.SLOPES[like], e, T, num_samples) for e in ETA]
    else:
        known = [(np.nan, np.nan)] * len(ETA)
    mean, variance = np.asarray(known, float).T
    return mean, np.full(len(ETA), np.nan) if name in SAME_MEAN else variance
