"""Guides whose lam is computed from the datum by an encoder."""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from vijax.families import lam_like
from vijax.guides.base import as_it_is, marked, no_global
from vijax.inference import Guide
from vijax.networks import as_network
from vijax.types import Family, PyTree


def amortized(family: Family, encoder: Any, *, x: PyTree = None) -> Guide:
    """q(z_i; encoder(x_i)): the parameters are a function of the datum. Kingma and Welling 2014;
    Rezende et al. 2014. phi: {"z": the encoder's parameters}.

    Args:
      encoder: one datum -> lam, or -> a flat vector with as many numbers as lam, filled in the
        order of `jax.tree.leaves` (for normals: `loc` first, then `log_scale`). A flax module or an
        (init, apply) pair, see `networks.as_network`.
      x: one datum (or its `jax.ShapeDtypeStruct`), for modules that are initialised by a call.

    Raises:
      ValueError: if the encoder's output fits neither form; at once if `x` is given, else when
        traced.
    """
    network, like = as_network(encoder, x), lam_like(family)
    leaves, tree = jax.tree.flatten(like)
    sizes = [math.prod(leaf.shape) for leaf in leaves]

    def fill(output: PyTree) -> PyTree:
        if jax.tree.structure(output) == tree and len(leaves) > 1:
            chex.assert_trees_all_equal_shapes(output, like)
            return output
        flat = jax.tree.leaves(output)
        if len(flat) != 1 or flat[0].shape != (sum(sizes),):
            got = [leaf.shape for leaf in flat]
            raise ValueError(
                f"the encoder returned shapes {got} for one datum, but {family.name} needs {like} "
                f"or one vector of {sum(sizes)} numbers. Make the last layer {sum(sizes)} wide; "
                "the guide adds no layer of its own."
            )
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
        parts = zip(jnp.split(flat[0], ends), leaves, strict=True)
        return jax.tree.unflatten(tree, [part.reshape(leaf.shape) for part, leaf in parts])

    if x is not None:
        jax.eval_shape(
            lambda key, x: fill(network.apply(network.init(key), x)), jax.random.key(0), x
        )
    return Guide(
        init=lambda key: {"z": network.init(key)},
        families=FrozenDict({"z": family}),
        global_lam=no_global,
        at=lambda phi, x: fill(network.apply(phi["z"], x)),
        refine=as_it_is,
        is_table=lambda phi: marked(phi, value=False),
        num_data=None,
    )
