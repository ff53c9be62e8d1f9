"""Averages of the iterates of any algorithm, kept beside its state."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vijax.inference import Algorithm, Info
from vijax.types import Array, Batch, Key, Params, PyTree


class Averaging(NamedTuple):
    """How much each new iterate counts.

    Attributes:
      weight: number of the iterate [] int, from 1 -> w in [0, 1]; average += w (iterate - average).
    """

    name: str
    weight: Callable[[Array], Array]


@functools.cache
def exponential(decay: float = 0.99) -> Averaging:
    """The last 1 / (1 - decay) iterates, roughly; at first the mean of all.

    Raises:
      ValueError: if decay is not strictly between 0 and 1.
    """
    if not 0.0 < decay < 1.0:
        raise ValueError(f"exponential(decay={decay}): decay must lie strictly between 0 and 1.")
    return Averaging(
        f"exponential({decay:g})", lambda number: jnp.maximum(1.0 - decay, 1.0 / number)
    )


@functools.cache
def since(step: int) -> Averaging:
    """The mean of all iterates after the first `step`; the last one until then. Polyak and Juditsky
    1992; with half of the steps, the mean of the last half.

    Raises:
      ValueError: if step is negative or no int.
    """
    if not isinstance(step, int) or step < 0:
        raise ValueError(f"since(step={step!r}): give an int of at least 0.")
    return Averaging(
        f"since({step})", lambda number: 1.0 / jnp.maximum(number - step, 1).astype(float)
    )


class AveragedState(NamedTuple):
    """The algorithm's own state, the average of its parameters, and how many it is of."""

    inner: Any
    average: Params
    number: Array


@functools.lru_cache(maxsize=64)  # equal arguments: the same object, by which programs are found
def averaged(algorithm: Algorithm, averaging: Averaging) -> Algorithm:
    """The algorithm, its `params` an average of its iterates.

    The average is of everything in `params`, tables too: a step then costs O(N).
    """

    def init(key: Key, params: Params) -> AveragedState:
        inner = algorithm.init(key, params)
        return AveragedState(inner, algorithm.params(inner), jnp.zeros((), jnp.int32))

    def step(
        key: Key, state: AveragedState, batch: Batch, *, recorded: bool = True
    ) -> tuple[AveragedState, Info]:
        inner, info = algorithm.step(key, state.inner, batch, recorded=recorded)
        number = state.number + jnp.where(info.finite, 1, 0)
        weight = jnp.where(info.finite, averaging.weight(number), 0.0)

        def blend(old: Array, new: Array) -> Array:
            if not jnp.issubdtype(old.dtype, jnp.inexact):
                return new
            return old + jnp.asarray(weight, old.dtype) * (new - old)

        average = jax.tree.map(blend, state.average, algorithm.params(inner))
        return AveragedState(inner, average, number), info

    def inspect(key: Key, state: AveragedState, batch: Batch) -> PyTree:
        assert algorithm.inspect is not None
        return algorithm.inspect(key, state.inner, batch)

    return algorithm._replace(
        name=f"averaged({algorithm.name}, {averaging.name})",
        init=init,
        step=step,
        params=lambda state: state.average,
        inspect=None if algorithm.inspect is None else inspect,
    )
