"""What the result of a traced program depends on, and how: read off its operations, none of which
is run.

A rule's derivation assumes something of the function that it is given: that it is affine in log q,
that it has no step in z. What the program shows is found here, before a wrong gradient is taken.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from vijax.types import PyTree

PATH, STEP = "path", "step"
_STEPS = ("floor", "ceil", "round", "sign", "nextafter")
_CHOICES = ("select_n", "cond")  # the first operand chooses among the others
_LOOK_UPS = ("gather", "dynamic_slice")  # the others choose from the first


class Program(NamedTuple):
    """A function's operations at arguments of certain shapes.

    Attributes:
      args: the arguments, or their shapes.
    """

    jaxpr: Jaxpr
    args: tuple


def trace(fun: Callable[..., PyTree], *args: PyTree) -> Program:
    """The program of `fun(*args)`; arguments may be `jax.ShapeDtypeStruct`s."""
    return Program(jax.make_jaxpr(fun)(*args).jaxpr, args)


def depends(program: Program, on: tuple) -> list[bool]:
    """Does each leaf of the result depend on the arguments that `on` says, directly or by any
    detour? `on` is a tree of bools, a prefix of the arguments.
    """
    return [bool(found) for found in _ways(program, on, stop=False)]


def ways(program: Program, on: tuple) -> set[str]:
    """How the result depends on the arguments that `on` says: "path", where a small change makes a
    small change that the derivative sees; "step", where it makes none or a jump, which no
    derivative sees: rounding, an index, a comparison that chooses between constants.

    What passes through `stop_gradient` is not counted. A step between two differentiable branches
    is not seen: continuous functions are written so too.
    """
    return set().union(*_ways(program, on, stop=True))


def responds(fun: Callable[..., PyTree], one: PyTree, other: PyTree) -> list[bool]:
    """Does each leaf of `fun(one)` differ from that of `fun(other)`? Both are evaluated, numbers
    that the function closes over and that are being traced taken at random: a dependence that the
    operations allow may still be none, as of an entry of a vector on the others.
    """
    closed = jax.make_jaxpr(fun)(one)
    random = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        consts = [_known(c, random) for c in closed.consts]
        program = jax.jit(jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts)))
        pairs = zip(program(*jax.tree.leaves(one)), program(*jax.tree.leaves(other)), strict=True)
        return [not np.array_equal(a, b, equal_nan=True) for a, b in pairs]


def _known(constant: Any, random: np.random.Generator) -> Any:
    if not isinstance(constant, Tracer):
        return constant
    if jnp.issubdtype(constant.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), constant.shape)
    return jnp.asarray(random.uniform(0.5, 1.5, constant.shape), constant.dtype)


def has_constant_slope(fun: Callable[..., PyTree], number: Any, *rest: PyTree) -> bool:
    """Is the derivative of `fun(number, *rest)` in the number the same at all values of all of
    them?
    """

    def slope(number: Any, *rest: PyTree) -> PyTree:
        return jax.jvp(lambda at: fun(at, *rest), (number,), (jnp.ones_like(number),))[1]

    return not any(depends(trace(slope, number, *rest), (True,) * (1 + len(rest))))


def _ways(program: Program, on: tuple, *, stop: bool) -> list[set[str]]:
    chosen = jax.tree.map(
        lambda here, part: jax.tree.map(lambda leaf: here, part), on, program.args
    )
    marks = [{PATH} if here else set() for here in jax.tree.leaves(chosen)]
    return _propagate(program.jaxpr, marks, stop=stop)


def _propagate(jaxpr: Any, marks: Sequence[set[str]], *, stop: bool) -> list[set[str]]:
    """The marks of a program's results, from those of its inputs."""
    known: dict[Any, set[str]] = dict(zip(jaxpr.invars, marks, strict=True))

    def mark(atom: Any) -> set[str]:
        return set() if isinstance(atom, Literal) else known.get(atom, set())

    for equation in jaxpr.eqns:
        inputs = [mark(atom) for atom in equation.invars]
        if not any(inputs):
            continue
        body = _body(equation)
        outputs = (
            [_passed(equation, inputs, out.aval.dtype, stop=stop) for out in equation.outvars]
            if body is None
            else _propagate(body, inputs, stop=stop)
        )
        known.update(zip(equation.outvars, outputs, strict=True))
    return [mark(atom) for atom in jaxpr.outvars]


def _passed(equation: Any, inputs: Sequence[set[str]], dtype: Any, *, stop: bool) -> set[str]:
    """What one operation makes of the marks of its operands."""
    name, every = equation.primitive.name, set().union(*inputs)
    if not stop:
        return every
    if name == "stop_gradient":
        return set()
    if name in _CHOICES + _LOOK_UPS:  # a choice is a step if what it chooses from is fixed
        first, rest = inputs[0], set().union(*inputs[1:])
        choice, chosen = (first, rest) if name in _CHOICES else (rest, first)
        return chosen if PATH in chosen or not choice else chosen | {STEP}
    if name == "while" and PATH in every:  # how often it turns is a choice, too
        return {PATH}
    if not jnp.issubdtype(dtype, jnp.inexact):
        # An order or a pivot that comes beside the numbers it belongs to moves them continuously.
        return {STEP} if len(equation.outvars) == 1 else set()
    return {STEP} if name in _STEPS else every


def _body(equation: Any) -> Jaxpr | None:
    """The program that an operation stands for, if its operands are that program's."""
    for body in _programs(equation):
        if len(body.invars) == len(equation.invars) and len(body.outvars) == len(equation.outvars):
            return body if equation.primitive.name not in ("scan", "while", "cond") else None
    return None


def _programs(equation: Any) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
