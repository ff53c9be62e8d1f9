"""Has an objective jumps, or its derivative? Found out by following it, since a second derivative
taken by JAX does not see a kink.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vijax.types import Array, Objective, Scalar

LINES, REACH, HALVINGS = 16, 30.0, 14


def roughness(objective: Objective, num_samples: int) -> str:
    """What jumps: "steps", the objective itself; "kinks", only its derivative; "", neither.

    What an objective says of itself (`smooth`) is believed. Otherwise it is followed along lines on
    which one log-weight runs from -30 to 30 while the others rest: over every interval its change
    must be what its derivative says, and its derivative's what the second derivative says.
    """
    if objective.linear or objective.smooth:
        return ""
    return _roughness(objective.value, num_samples)


@functools.lru_cache(maxsize=128)
def _roughness(value: Callable[[Array], Scalar], num_samples: int) -> str:
    spots = 5.0 * np.random.default_rng(0).standard_normal((LINES, num_samples))
    moving = np.arange(LINES) % num_samples
    dtype = jnp.result_type(float)

    def along(spot: Array, which: Array, t: Array) -> tuple[Array, Array, Array]:
        def at(t: Array) -> Scalar:
            return value(spot.at[which].set(t))

        slope = jax.grad(at)
        return at(t), slope(t), jax.grad(slope)(t)

    with jax.ensure_compile_time_eval():  # concrete, inside another function's trace too
        every = jax.jit(jax.vmap(jax.vmap(along, in_axes=(None, None, 0))))

        def look(points: np.ndarray) -> list[np.ndarray]:
            seen = every(jnp.asarray(spots, dtype), moving, jnp.asarray(points, dtype))
            return [np.asarray(each, float) for each in seen]

        return "steps" if _jumps(look, 0) else "kinks" if _jumps(look, 1) else ""


def _jumps(look: Callable[[np.ndarray], list[np.ndarray]], order: int) -> bool:
    """Does the derivative of this order jump on a line? The interval that departs most from the
    trapezoidal rule is halved until only a jump is left there.

    Args:
      look: points [LINES, M] -> the value and its first two derivatives, each of that shape.
    """
    edges = np.tile(np.linspace(-REACH, REACH, 601), (LINES, 1))
    size = np.nan_to_num(np.abs(look(edges)[order]), posinf=0.0).max()
    for _ in range(HALVINGS):
        seen, gaps = look(edges), np.diff(edges)
        between = 0.5 * (seen[order + 1][:, :-1] + seen[order + 1][:, 1:])
        missed = np.nan_to_num(np.abs(np.diff(seen[order]) - gaps * between), posinf=0.0)
        worst = missed.argmax(axis=1)[:, None] + np.arange(2)
        low, high = np.take_along_axis(edges, worst, axis=1).T
        edges = np.stack([low, 0.5 * (low + high), high], axis=1)
    return bool(missed.max() > 1e-3 * max(size, 1e-30))
