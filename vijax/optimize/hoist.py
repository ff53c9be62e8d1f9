"""Moves a step's random numbers out of the loop: they depend on (key, step) alone, so a block of
steps draws them at once.

The result is the same program with its equations in another order. Nothing here knows of
estimators.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from vijax.types import Array, Key, PyTree

RANDOM = ("random_", "threefry", "rng_")


class Hoisted(NamedTuple):
    """A function `fun(key, step, *rest)` cut in two: `finish(ahead(key, step), key, step, *rest)`
    equals it.

    Attributes:
      num_bytes: of ahead's result, for one step
    """

    ahead: Callable[[Key, Array], list[Array]]
    finish: Callable[..., PyTree]
    num_bytes: int


def as_it_is(fun: Callable[..., PyTree], key: Key, step: Array, *rest: Any) -> Hoisted:
    """Nothing drawn ahead."""
    return Hoisted(lambda key, step: [], lambda drawn, *args: fun(*args), 0)


def hoist(fun: Callable[..., PyTree], key: Key, step: Array, *rest: Any) -> Hoisted:
    """Cut `fun` where random numbers meet `rest` (parameters, data).

    An equation goes ahead if it depends on the step and on randomness, and not on `rest`. What is
    cheap to do again (arithmetic on the step, broadcasting of numbers) stays, as does whatever a
    `jax.jit` inside mixes with `rest`.
    """
    closed, out = jax.make_jaxpr(fun, return_shape=True)(key, step, *rest)
    num_known, inputs = len(jax.tree.leaves((key, step))), closed.jaxpr.invars
    known, varying = set(closed.jaxpr.constvars) | set(inputs[:num_known]), {inputs[num_known - 1]}
    random, drawing, plain = set(), [], []
    for equation in closed.jaxpr.eqns:
        operands = _variables(equation.invars)
        if (
            not operands <= known
            or equation.effects
            or (operands & random and _is_expansion(equation))
        ):
            continue
        known.update(equation.outvars)
        varying.update(equation.outvars if operands & varying else ())
        if operands & random or (operands & varying and _draws(equation)):
            random.update(equation.outvars)
            drawing.append(equation)
        else:
            plain.append(equation)
    ids = {id(equation) for equation in drawing}
    later = [equation for equation in closed.jaxpr.eqns if id(equation) not in ids]
    first = [
        equation for equation in closed.jaxpr.eqns if id(equation) in ids | {id(e) for e in plain}
    ]
    read = [v for equation in later for v in equation.invars] + list(closed.jaxpr.outvars)
    crossing = [
        v for v in dict.fromkeys(v for v in read if not isinstance(v, Literal)) if v in random
    ]

    def part(
        equations: Sequence[Any], invars: Sequence[Any], outvars: Sequence[Any]
    ) -> Callable[..., list[Array]]:
        body = closed.jaxpr.replace(eqns=equations, invars=[*invars], outvars=[*outvars])
        return jaxpr_as_fun(ClosedJaxpr(body, closed.consts))

    def ahead(key: Key, step: Array) -> list[Array]:
        return part(first, inputs[:num_known], crossing)(*jax.tree.leaves((key, step)))

    def finish(drawn: list[Array], key: Key, step: Array, *rest: Any) -> PyTree:
        leaves = part(later, [*crossing, *inputs], closed.jaxpr.outvars)(
            *drawn, *jax.tree.leaves((key, step, *rest))
        )
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return Hoisted(ahead, finish, sum(v.aval.size * v.aval.dtype.itemsize for v in crossing))


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {v for v in atoms if not isinstance(v, Literal)}


def _is_expansion(equation: Any) -> bool:
    """Does it only repeat numbers? (Keys may be repeated ahead: each is then folded with something
    else.)
    """
    out = equation.outvars[0].aval
    return equation.primitive.name == "broadcast_in_dim" and jax.numpy.issubdtype(
        out.dtype, jax.numpy.floating
    )


def _draws(equation: Any) -> bool:
    """Does it, or anything it calls, make random bits?"""
    inner = [
        p
        for value in equation.params.values()
        for p in (value if isinstance(value, tuple | list) else [value])
    ]
    bodies = [
        p.jaxpr if isinstance(p, ClosedJaxpr) else p
        for p in inner
        if isinstance(p, ClosedJaxpr | Jaxpr)
    ]
    return equation.primitive.name.startswith(RANDOM) or any(
        _draws(e) for body in bodies for e in body.eqns
    )
