"""Exact means and variances on the toys E[sum_i (b_i - t_i)^2] with one logit for all bits, by
summing over a rule's noise.

Written out from the papers' formulas, apart from `by_states`, which runs the rule itself on every
draw.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, logit

import vijax as vj
from experiments.gradient_variance.reproductions.expectation import Expectation, estimator
from vijax.families import BernoulliSites, need
from vijax.types import Array, PyTree

Moments = tuple[float, float]  # mean and variance of dE[f]/deta's estimate


def gradient(eta: float, t: np.ndarray) -> float:
    """dE[f]/deta by summing over all states of the bits."""
    bits = _states(2, len(t))
    chance = np.prod(np.where(bits == 1, expit(eta), expit(-eta)), axis=1)
    value = np.sum((bits - t) ** 2, axis=1)
    return float(np.sum(chance * value * np.sum(bits - expit(eta), axis=1)))


def one_bit(p: float, a: float) -> dict[str, float]:
    """Name -> variance for one bit with P(b = 1) = p and f(1) - f(0) = a."""
    more, less = max(p, 1.0 - p), min(p, 1.0 - p)
    return {
        "leave-one-out, 2 samples": a**2 * p * (1.0 - p) * (0.5 - p * (1.0 - p)),
        "DisARM": a**2 * more**2 * less * (0.5 - less),
        "ARM": a**2 * (2.0 / 3.0 * (0.125 - (0.5 - less) ** 3) - p**2 * (1.0 - p) ** 2),
        "REINFORCE, exact mean as baseline": a**2 * p * (1.0 - p) * (1.0 - 4.0 * p * (1.0 - p)),
    }


def arm(eta: float, t: np.ndarray, *, integrated: bool) -> Moments:
    """ARM (f(b) - f(b')) sum_i (u_i - 1/2), b = 1[u > 1 - p], b' = 1[u < p]; `integrated`: DisARM,
    its mean given the pair.
    """
    p = expit(eta)
    less = min(p, 1.0 - p)
    edges = np.array([0.0, less, 1.0 - less, 1.0])
    chance, middle = np.diff(edges), 0.5 * (edges[1:] + edges[:-1])
    pair = np.stack([middle > 1.0 - p, middle < p], axis=-1).astype(float)  # [cell, draw]
    cells = _states(3, len(t))
    value = np.sum((pair[cells] - t[:, None]) ** 2, axis=1)
    change, weight = value[:, 0] - value[:, 1], np.prod(chance[cells], axis=1)
    mean = change * np.sum(middle[cells] - 0.5, axis=1)
    within = 0.0 if integrated else change**2 * np.sum(chance[cells] ** 2 / 12.0, axis=1)
    return _moments(mean, weight, within)


def arms(eta: float, t: np.ndarray, size: int) -> Moments:
    """n/(n-1) mean_k (f_k - mean f) sum_i (b_ki - p) p (1 - p) / (p - P(b_j = b_k = 1)), Dimitriev
    and Zhou 2021.

    The rarer value of a bit is taken by j given draws of the group with probability max(j
    r^(1/(n-1)) - (j - 1), 0)^(n-1).
    """
    p, rare_one = expit(eta), eta <= 0.0
    rare = min(p, 1.0 - p)
    root = rare ** (1.0 / (size - 1))
    joint = [max(j * root - (j - 1), 0.0) ** (size - 1) for j in range(size + 1)]
    joint[0] = 1.0
    patterns = _states(2, size)  # 1 where a draw has the rarer value
    counts = patterns.sum(axis=1)
    chance = np.array(
        [
            sum(
                (-1) ** extra * math.comb(size - k, extra) * joint[k + extra]
                for extra in range(size - k + 1)
            )
            for k in counts
        ]
    )
    bits = patterns if rare_one else 1 - patterns
    groups = _states(len(patterns), len(t))
    draws = bits[groups].astype(float)  # [all, bit, draw]
    value = np.sum((draws - t[:, None]) ** 2, axis=1)
    signal = value - value.mean(axis=1, keepdims=True)
    credit = np.sum(draws - p, axis=1) * rare * (1.0 - rare) / (rare - joint[2])
    return _moments(np.sum(signal * credit, axis=1) / (size - 1), np.prod(chance[groups], axis=1))


def bit_flip(eta: float, t: np.ndarray, num_samples: int) -> Moments:
    """D p (1 - p) (1 - 2 t_i) for a site i drawn at random."""
    each = len(t) * expit(eta) * expit(-eta) * (1.0 - 2.0 * t)
    return float(each.mean()), float(each.var()) / num_samples


Slope = Callable[[float, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(eta, u, hard draw b) -> (z, dz/deta) of a relaxation; the draw is b = 1[eta + logit u > 0]."""


def relaxed(slope: Slope, eta: float, t: np.ndarray, num_samples: int) -> Moments:
    """Of sum_i 2 (z_i - t_i) dz_i/deta: the bits are independent, each an integral over its own
    uniform.
    """
    points, weights = np.polynomial.legendre.leggauss(400)
    edge = expit(-eta)
    u = np.concatenate([edge * (points + 1.0) / 2.0, edge + (1.0 - edge) * (points + 1.0) / 2.0])
    weight = np.concatenate([edge * weights / 2.0, (1.0 - edge) * weights / 2.0])
    z, change = slope(eta, u, (u > edge).astype(float))
    each = [_moments(2.0 * (z - one) * change, weight) for one in t]
    return sum(mean for mean, _ in each), sum(variance for _, variance in each) / num_samples


def _concrete(temperature: float, *, hard: bool) -> Slope:
    def slope(eta: float, u: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = expit((eta + logit(u)) / temperature)
        return (b if hard else y), y * (1.0 - y) / temperature

    return slope


def _straight_through(eta: float, u: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return b, expit(eta) * expit(-eta) + 0.0 * u


def _gapped(eta: float, u: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logit of the drawn value is raised to the larger of (0, eta), the other lowered to at
    least 1 below it.
    """
    # How far the drawn value is below the other before
    apart = np.maximum(np.where(b == 1.0, -eta, eta), 0.0)
    distance = np.maximum(np.abs(eta) * (apart == 0.0), 1.0)
    return b, expit(distance) * expit(-distance)


def _reinmax(eta: float, u: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, middle = expit(eta), 0.5 * (expit(eta) + b)
    return b, 2.0 * middle * (1.0 - middle) - 0.5 * p * (1.0 - p)


SLOPES: Mapping[str, Slope] = {  # by name in the catalogue
    "gumbel_softmax(0.5)": _concrete(0.5, hard=False),
    "straight_through()": _straight_through,
    "straight_through_gumbel(0.5)": _concrete(0.5, hard=True),
    "gapped_straight_through(1.0)": _gapped,
    "reinmax()": _reinmax,
}


def by_states(
    rule: vj.Rule,
    problem: Expectation,
    phi: PyTree,
    x: PyTree,
    control: PyTree,
    state: PyTree,
    num_samples: int,
) -> tuple[np.ndarray, np.ndarray]:
    """[B] mean and variance of a rule that has no other noise than its K draws of q: over all
    K-tuples of states.
    """
    num_points = len(jax.tree.leaves(phi)[0])
    logits = jax.vmap(lambda one: need(problem.family, BernoulliSites).logits(problem.locate(one)))
    eta = np.asarray(logits(phi), float)[:, None, None, :]  # [B, tuples, K, D]
    dim = eta.shape[-1]
    bits = _states(2, dim)[_states(2**dim, num_samples)]  # [tuples, K, D]
    log_p = bits * -np.logaddexp(0.0, -eta) - (1 - bits) * np.logaddexp(0.0, eta)
    weight = np.exp(np.sum(log_p, axis=(2, 3)))  # [B, tuples]
    key, batch = jax.random.key(0), vj.Batch(x, jnp.arange(num_points))

    def at(uniforms: Array) -> Array:
        fixed = problem._replace(family=problem.family._replace(noise=lambda key, count: uniforms))
        made = estimator(fixed, rule, num_samples, num_points)
        return -made.estimate(key, vj.Params((), phi, control), state, batch)[0].grads.phi["eta"]

    uniforms = jnp.asarray(1.0 - bits, jnp.float32)  # below p: 1
    quickly: Any = {"xla_backend_optimization_level": 0}  # the program runs once
    once = jax.jit(jax.vmap(at)).lower(uniforms).compile(quickly)
    draws = np.asarray(once(uniforms), float).T
    each = [_moments(draw, w) for draw, w in zip(draws, weight, strict=True)]
    return np.asarray([mean for mean, _ in each]), np.asarray([variance for _, variance in each])


def _moments(value: np.ndarray, weight: np.ndarray, within: np.ndarray | float = 0.0) -> Moments:
    mean = float(np.sum(weight * value))
    return mean, float(np.sum(weight * ((value - mean) ** 2 + within)))


def _states(num_values: int, num_sites: int) -> np.ndarray:
    return np.array(list(itertools.product(range(num_values), repeat=num_sites)))
