"""Adapts whatever a user calls a network to one pair of pure functions; no architectures live
here.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.errors import InvalidRngError

from vijax.types import Key, PyTree


class Network(NamedTuple):
    """A pure function with parameters, all of which are learned.

    Attributes:
      init: key -> params.
      apply: (params, one datum) -> output.
    """

    init: Callable[[Key], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]


def as_network(module: Any, x: PyTree = None) -> Network:
    """A `Network` from a `flax.linen` module, the constructor of a `flax.nnx` module, or any object
    or pair with `init` and `apply`.

    It is a function of its parameters and one datum: what a module keeps beside them, running
    averages or the state of a random stream, is nowhere carried, and refused where it would change.

    A pair suits any other library. In equinox, with `make = lambda key: eqx.nn.MLP(..., key=key)`:

        params, static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)
        pair = (
            lambda key: eqx.filter(make(key), eqx.is_inexact_array),
            lambda params, x: eqx.combine(params, static)(x),
        )

    What is drawn at every call, as dropout's mask, needs a key of its own: an iterator brings one
    with each datum, x = {"pixels": ..., "key": ...}, leaves of `numpy.random` bits [2] uint32, and
    whoever scores leaves it out. Every evaluation is then of q under one mask, whose bound holds.

        pair = (
            lambda key: encoder.init(key, jnp.zeros(P), train=False),
            lambda params, x: encoder.apply(
                params, x["pixels"], train="key" in x,
                rngs={"dropout": jax.random.wrap_key_data(x["key"])} if "key" in x else None,
            ),
        )

    Args:
      module: linen: initialised by a call on `x`. nnx: a function of `rngs`, as in
        `lambda rngs: Encoder(20, rngs=rngs)`, or a class that takes nothing else. A pair:
        `init(key) -> params`, `apply(params, x)`.
      x: one datum or its `jax.ShapeDtypeStruct`; only linen modules need it.

    Raises:
      ValueError: a linen module without `x`; a module with state; an nnx module that is built
        already, see `pretrained`.
      TypeError: none of the above.
    """
    if isinstance(module, linen.Module):
        return _linen(module, x)
    if isinstance(module, nnx.Module):
        kind = type(module).__name__
        raise ValueError(
            f"this {kind} has drawn its parameters already: every key would start from the same "
            f"ones, and restarts would be alike. Write lambda rngs: {kind}(..., rngs=rngs), or "
            "networks.pretrained(module) to start from its present parameters whatever the key."
        )
    if _takes_rngs(module):
        built = pretrained(module(rngs=nnx.Rngs(0)))
        return Network(lambda key: _parameters(module(rngs=nnx.Rngs(key))), built.apply)
    if isinstance(module, tuple) and len(module) == 2 and all(callable(part) for part in module):
        return Network(*module)
    init, apply = getattr(module, "init", None), getattr(module, "apply", None)
    if callable(init) and callable(apply):
        return Network(init, apply)
    raise TypeError(
        f"{module!r} is not a network: give a flax.linen module, lambda rngs: a flax.nnx module, "
        "or a pair (init, apply) with init(key) -> params and apply(params, x) -> output for one "
        "datum x."
    )


def pretrained(module: nnx.Module) -> Network:
    """A `flax.nnx` module that starts from its present parameters, whatever the key.

    Raises:
      ValueError: when called, if the call changes the module.
    """
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def apply(values: PyTree, x: PyTree) -> PyTree:
        # Copies: what the call changes is then seen, and is not the caller's.
        state, kept = (jax.tree.map(lambda leaf: leaf, part) for part in (params, rest))
        nnx.replace_by_pure_dict(state, values)
        whole = nnx.merge(graph, state, kept)
        output = whole(x)  # type: ignore  # an nnx module is called by its own __call__
        before, after = (
            jax.tree.leaves(part) for part in (rest, nnx.split(whole, nnx.Param, ...)[2])
        )
        if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
            raise ValueError(f"a call of this {type(module).__name__} {CHANGES}")
        return output

    return Network(lambda key: nnx.to_pure_dict(params), apply)


def _parameters(module: nnx.Module) -> PyTree:
    return nnx.to_pure_dict(nnx.split(module, nnx.Param, ...)[1])


def _takes_rngs(module: Any) -> bool:
    if isinstance(module, type):
        return issubclass(module, nnx.Module)
    return inspect.isfunction(module) and "rngs" in inspect.signature(module).parameters


def _linen(module: linen.Module, x: PyTree) -> Network:
    kind = type(module).__name__
    if x is None:
        raise ValueError(
            f"{kind} is a flax.linen module, whose parameter shapes are only known from a call. "
            "Pass one datum (without batch axis) as x=..., for instance x=images[0]."
        )
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), x
    )

    def init(key: Key) -> PyTree:
        return module.init(key, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like))

    def apply(params: PyTree, x: PyTree) -> PyTree:
        return module.apply(params, x)

    variables = jax.eval_shape(init, jax.random.key(0))
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"{kind} keeps {others} beside its parameters: state that nothing carries from one "
            "step to the next, and that an optimiser would train as if it were parameters. Write "
            "linen.GroupNorm or linen.LayerNorm for linen.BatchNorm, or, where the state is known, "
            "a pair (init, apply) of functions of the parameters alone."
        )
    try:
        jax.eval_shape(apply, variables, like)
    except InvalidRngError as error:
        raise ValueError(
            f"a call of {kind} draws random numbers ({str(error).split(' (')[0]}), but a network "
            "is a function of its parameters and one datum. Write deterministic=True for "
            "linen.Dropout, or let every datum bring its key, as as_network's docstring shows; "
            "noise of an encoder belongs to q's family."
        ) from None
    return Network(init, apply)


CHANGES = (
    "changes state (running averages, the count of a random stream), which nothing carries from "
    "one step to the next. Call module.eval() on it first, so that nnx.BatchNorm uses its averages "
    "and nnx.Dropout is off, or write nnx.GroupNorm or nnx.LayerNorm and leave nnx.Dropout out."
)
