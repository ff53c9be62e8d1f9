"""Adapts whatever a user calls a network to one pair of pure functions; no architectures live
here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

from vijax.types import Key, PyTree


class Network(NamedTuple):
    """A pure function with parameters.

    Attributes:
      init: -> params
      apply: (params, one datum) -> output
    """

    init: Callable[[Key], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]


def as_network(module: Any, x: PyTree = None) -> Network:
    """A `Network` from a `flax.linen` module, a `flax.nnx` module, or any object or pair with
    `init` and `apply`.

    Args:
      module: linen: initialised by a call on `x`. nnx: its present parameter values are the initial
        ones (they were drawn by the `rngs` given to its constructor). A pair: `init(key) ->
        params`, `apply(params, x)`.
      x: one datum or its `jax.ShapeDtypeStruct`; only linen modules need it.

    Raises:
      ValueError: a linen module without `x`.
      TypeError: none of the above.
    """
    if isinstance(module, linen.Module):
        if x is None:
            raise ValueError(
                f"{type(module).__name__} is a flax.linen module, whose parameter shapes are only "
                f"known from a call. "
                "Pass one datum (without batch axis) as x=..., for instance x=images[0]."
            )
        shapes = jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), x)

        def init_by_call(key: Key) -> PyTree:
            zeros = jax.tree.map(
                lambda s: jnp.zeros(*s), shapes, is_leaf=lambda s: isinstance(s, tuple)
            )
            return module.init(key, zeros)

        return Network(init_by_call, lambda params, x: module.apply(params, x))
    if isinstance(module, nnx.Module):
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        return Network(lambda key: nnx.to_pure_dict(params), _nnx_apply(graph, params, rest))
    if isinstance(module, tuple) and len(module) == 2 and all(callable(part) for part in module):
        return Network(*module)
    init, apply = getattr(module, "init", None), getattr(module, "apply", None)
    if callable(init) and callable(apply):
        return Network(init, apply)
    raise TypeError(
        f"{module!r} is not a network: give a flax.linen or flax.nnx module, or a pair (init, "
        f"apply) with "
        "init(key) -> params and apply(params, x) -> output for one datum x."
    )


def _nnx_apply(graph: Any, params: Any, rest: Any) -> Callable[[PyTree, PyTree], PyTree]:
    def apply(values: PyTree, x: PyTree) -> PyTree:
        state = jax.tree.map(lambda leaf: leaf, params)
        nnx.replace_by_pure_dict(state, values)
        return nnx.merge(graph, state, rest)(x)

    return apply
