"""What one gradient costs: evaluations of the log-joint, counted in the traced program, and
measured time.
"""

import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from vijax.estimators import EVALUATION
from vijax.inference import Estimator
from vijax.types import Batch, Key, Params, PyTree

INLINE = (
    "pjit",
    "jit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat",
    "checkpoint",
)
TINY = 1e-30  # a step so small that the parameters stay what they are
MOST = 2**24  # gradients in a loop: where doubling stops, should the clock stand still


class Timing(NamedTuple):
    """Interleaved timings of several estimators.

    Attributes:
      names: of the estimators.
      microseconds: [E] per gradient, median over rounds.
      rounds: [R, E] microseconds; round r of all of them is measured within one stretch of time.
    """

    names: tuple[str, ...]
    microseconds: np.ndarray
    rounds: np.ndarray


def evaluations(estimator: Estimator, params: Params, state: PyTree, batch: Batch) -> int:
    """How often one gradient evaluates log p(z, x | w) of one sample and one datum (log p(x | w)
    with a global latent alone).

    Counted in the traced program, whatever the rule: forward evaluations, without the passes that
    differentiate them, which the time shows. 0 for estimators that `vijax.estimator` did not build;
    `jax.ad_checkpoint.checkpoint_name(value, "log_joint")` marks an evaluation of your own.
    """

    def gradient(key: Key, params: Params, state: PyTree, batch: Batch) -> Params:
        return estimator.estimate(key, params, state, batch)[0].grads

    return _count(jax.make_jaxpr(gradient)(jax.random.key(0), params, state, batch).jaxpr)


class _Numbering:
    """Numbers values so that equal computations get equal numbers, and counts marked values once
    each.
    """

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}
        self.total = 0

    def number(self, what: Any) -> int:
        return self.known.setdefault(what, len(self.known))

    def run(self, jaxpr: Any, given: list[int]) -> list[int]:
        """Numbers of the outputs of a jaxpr whose inputs have the numbers `given`."""
        env = dict(zip(jaxpr.invars, given, strict=True))

        def read(atom: Any) -> int:
            return (
                self.number(("literal", str(atom.val), str(atom.aval)))
                if hasattr(atom, "val")
                else env[atom]
            )

        for var in jaxpr.constvars:
            env[var] = self.number(("constant", id(var)))
        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            env.update(zip(equation.outvars, self.equation(equation, inputs), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, inputs: list[int]) -> list[int]:
        name, params = equation.primitive.name, equation.params
        inside = [part for value in params.values() for part in _jaxprs(value)]
        if name in INLINE and len(inside) == 1:
            return self.run(inside[0], inputs)
        key = (
            name,
            *inputs,
            *(f"{k}={id(v) if _jaxprs(v) else v}" for k, v in sorted(params.items())),
        )
        if key not in self.known:
            if name == "name" and params["name"] == EVALUATION:
                self.total += math.prod(equation.outvars[0].aval.shape)
            counts = [_count(part) for part in inside]
            self.total += (
                max(counts, default=0) if name == "cond" else params.get("length", 1) * sum(counts)
            )
        first = self.number(key)
        return [self.number((first, i)) for i in range(len(equation.outvars))]


def _count(jaxpr: Any) -> int:
    numbering = _Numbering()
    numbering.run(jaxpr, [numbering.number(("input", i)) for i in range(len(jaxpr.invars))])
    return numbering.total


def _jaxprs(value: Any) -> list[Any]:
    parts = value if isinstance(value, tuple | list) else [value]
    return [
        getattr(part, "jaxpr", part)
        for part in parts
        if hasattr(getattr(part, "jaxpr", part), "eqns")
    ]


def timing(
    key: Key,
    estimators: Mapping[str, Estimator],
    params: Mapping[str, Params],
    states: Mapping[str, PyTree],
    batch: Batch,
    *,
    rounds: int = 11,
    seconds: float = 0.02,
) -> Timing:
    """Wall time of one gradient in a compiled loop, steady state: A B C A B C ..., and the median
    of the rounds.

    Args:
      params: of every estimator.
      states: of every estimator.
      rounds: of all estimators.
      seconds: how long a loop of one round should take, at least one gradient.
    """
    names = tuple(estimators)

    def run(name: str, count: int) -> float:
        began = time.perf_counter()
        jax.block_until_ready(
            _loop(key, params[name], states[name], batch, count, estimator=estimators[name])
        )
        return time.perf_counter() - began

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(lambda name: run(name, 1), names))  # compiles
    return interleaved(names, run, rounds=rounds, seconds=seconds)


def interleaved(
    names: Sequence[str], run: Callable[[str, int], float], *, rounds: int, seconds: float
) -> Timing:
    """`timing` of anything that takes time.

    Args:
      run: (name, count) -> seconds that so many gradients took.
    """
    counts = {name: calibrate(functools.partial(run, name), seconds) for name in names}
    table = [
        [1e6 * run(name, counts[name]) / counts[name] for name in names] for _ in range(rounds)
    ]
    return Timing(tuple(names), np.median(table, axis=0), np.asarray(table))


def calibrate(run: Callable[[int], float], seconds: float, *, calls: int = 5) -> int:
    """How many gradients make a loop of so many seconds, or of half of it: long beside what
    starting it costs. At least 1.

    Doubles the number while any call is shorter: another process can make a call slower, never
    faster, so a slow one alone is not believed.

    Args:
      run: count -> seconds that so many gradients took.
      calls: that must all be long.
    """
    count = 1
    while count < MOST and any(run(count) < 0.5 * seconds for _ in range(calls)):
        count *= 2
    return count


@functools.partial(jax.jit, static_argnames="estimator")
def _loop(
    key: Key, params: Params, state: PyTree, batch: Batch, count: int, *, estimator: Estimator
) -> Params:
    def step(number: Any, params: Params) -> Params:
        estimate, _ = estimator.estimate(jax.random.fold_in(key, number), params, state, batch)
        # The parameters must change in form, or the compiler would take out of the loop whatever
        # does not see the key.
        return jax.tree.map(lambda leaf, g: leaf - TINY * g, params, estimate.grads)

    return jax.lax.fori_loop(0, count, step, params)
