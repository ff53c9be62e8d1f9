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
from scipy import stats

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
FEWEST = 6  # rounds that a 95 % interval of a median needs


class Timing(NamedTuple):
    """Interleaved timings of several estimators.

    Attributes:
      names: of the estimators.
      microseconds: [E] per gradient, median over rounds.
      low: [E] of its 95 % interval, by what differs between rounds.
      high: [E] of the interval.
      rounds: [R, E] microseconds; round r of all of them is measured within one stretch of time.
    """

    names: tuple[str, ...]
    microseconds: np.ndarray
    low: np.ndarray
    high: np.ndarray
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
    """Wall time of one gradient in a compiled loop, steady state, without what starting the loop
    costs: the median of rounds.

    Every round has all estimators in a new order, so that a machine that becomes slower favours
    none; ratios are to be taken within rounds.

    Args:
      params: of every estimator.
      states: of every estimator.
      rounds: of all estimators, at least 6.
      seconds: how long a loop of one round should take, at least one gradient.

    Raises:
      ValueError: if there are too few rounds for an interval.
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
    check_rounds(rounds)
    calls, random = [functools.partial(run, name) for name in names], np.random.default_rng(0)
    # A call of none: others can make it slower, never faster
    starts = [min(call(0) for _ in range(5)) for call in calls]
    counts = [
        calibrate(lambda count, call=call, start=start: call(count) - start, seconds)
        for call, start in zip(calls, starts, strict=True)
    ]
    table = np.empty((rounds, len(calls)))
    for row in table:
        for i in random.permutation(len(calls)):
            row[i] = 1e6 * (calls[i](counts[i]) - starts[i]) / counts[i]
    return Timing(tuple(names), *between_rounds(table), table)


def check_rounds(rounds: int) -> None:
    """Raises ValueError for too few."""
    if rounds < FEWEST:
        raise ValueError(
            f"rounds={rounds}: the 95 % interval of a median needs at least {FEWEST} rounds of "
            f"timing."
        )


def between_rounds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Median of rounds [R, ...], and its 95 % interval: two of the rounds' own values, whatever
    their distribution (Conover 1999, section 3.2).
    """
    ordered, outside = np.sort(values, axis=0), int(stats.binom.ppf(0.025, len(values), 0.5))
    return np.median(values, axis=0), ordered[outside - 1], ordered[-outside]


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
