"""Chains that are moved from one density to another by Hamiltonian steps, with their weights."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.types import Array, Key, Scalar

TARGET = 0.8  # acceptance; the best is 0.65 in many dimensions, higher in few. Neal 2011, 4.4
JITTER = 0.3  # share by which a move's step size varies: else paths may be whole periods. Ibid. 3.2
GAIN = 1.0  # of the pilot's step size, in its logarithm, per move

Ends = Callable[[Array], tuple[Scalar, Scalar]]
"""u [D] -> (log f_0(u), log f_1(u)), the path's two ends on R^D, normalised or not."""


class Move(NamedTuple):
    """What a Markov kernel did.

    Attributes:
      u: [D] where the chain is now.
      acceptance: [] probability with which the proposal was accepted.
    """

    u: Array
    acceptance: Scalar


class Chains(NamedTuple):
    """What C chains brought back.

    Attributes:
      log_w: [C] log-weights.
      acceptance: [T] mean over chains, by temperature.
      sizes: [T] of the steps.
    """

    log_w: Array
    acceptance: Array
    sizes: Array


def temperatures(num: int) -> np.ndarray:
    """[T + 1] from 0 to 1 along a sigmoid, densest at the ends. Grosse et al. 2015, section 6.1."""
    rising = 1.0 / (1.0 + np.exp(-np.linspace(-4.0, 4.0, num + 1)))
    return (rising - rising[0]) / (rising[-1] - rising[0])


def hamiltonian(
    key: Key, u: Array, log_density: Callable[[Array], Scalar], size: Scalar, num_steps: int
) -> Move:
    """One move that leaves a density on R^D as it is: leapfrog steps of a random size from a fresh
    momentum, accepted by Metropolis' rule. Neal 2011, section 3.

    What is not finite at its end is rejected.
    """
    momentum_key, accept_key, size_key = jax.random.split(key, 3)
    size = size * jax.random.uniform(size_key, (), u.dtype, 1.0 - JITTER, 1.0 + JITTER)
    slope = jax.value_and_grad(log_density)
    momentum = jax.random.normal(momentum_key, u.shape, u.dtype)

    def leap(state: tuple, _: None) -> tuple[tuple, None]:
        u, momentum, (_, force) = state
        momentum = momentum + 0.5 * size * force
        u = u + size * momentum
        value, force = slope(u)
        return (u, momentum + 0.5 * size * force, (value, force)), None

    start = slope(u)
    (new, final, end), _ = jax.lax.scan(leap, (u, momentum, start), None, length=num_steps)
    gain = end[0] - start[0] + 0.5 * (momentum @ momentum - final @ final)
    gain = jnp.where(jnp.isnan(gain), -jnp.inf, jnp.minimum(gain, 0.0))
    accepted = jnp.log(jax.random.uniform(accept_key, (), u.dtype)) < gain
    return Move(jnp.where(accepted, new, u), jnp.exp(gain))


def anneal(
    key: Key,
    u: Array,
    ends: Ends,
    betas: np.ndarray | Array,
    sizes: Array,
    *,
    num_leapfrog: int,
    gain: float = 0.0,
    move: Callable[..., Move] = hamiltonian,
) -> Chains:
    """Log-weights of chains from u [C, D] along f_0^(1 - b) f_1^b. Neal 2001.

    From draws of f_0 with betas from 0 to 1 the mean weight is Z_1 / Z_0 in expectation; from exact
    draws of f_1 with betas from 1 to 0 it is Z_0 / Z_1. That needs moves that do not look at the
    chains: `gain` is for pilot runs, whose weights nobody uses.

    Args:
      betas: [T + 1].
      sizes: [T] of the leapfrog steps of the move at betas[1:].
      gain: by how much the acceptance at one temperature moves the log step size of those that
        follow; 0: the sizes are those given.
      move: (key, u, log density, size, num_leapfrog) -> `Move` that leaves the density as it is.
    """

    def one(key: Key, u: Array, before: Array, beta: Array, size: Array) -> tuple[Array, Move]:
        start, end = ends(u)

        def log_density(u: Array) -> Scalar:
            start, end = ends(u)
            return (1.0 - beta) * start + beta * end

        return (beta - before) * (end - start), move(key, u, log_density, size, num_leapfrog)

    def step(carry: tuple, given: tuple) -> tuple[tuple, tuple]:
        u, log_w, factor = carry
        key, before, beta, size = given
        keys, used = jax.random.split(key, u.shape[0]), size * jnp.exp(factor)
        more, moved = jax.vmap(lambda k, u: one(k, u, before, beta, used))(keys, u)
        acceptance = jnp.mean(moved.acceptance)
        factor = factor + gain * (acceptance - TARGET)
        return (moved.u, log_w + more, factor), (acceptance, size * jnp.exp(factor))

    ladder = jnp.asarray(betas, u.dtype)
    keys = jax.random.split(key, ladder.shape[0] - 1)
    nothing = jnp.zeros(u.shape[0], u.dtype), jnp.zeros((), u.dtype)
    (_, log_w, _), (acceptance, after) = jax.lax.scan(
        step, (u, *nothing), (keys, ladder[:-1], ladder[1:], sizes)
    )
    return Chains(log_w, acceptance, after)
