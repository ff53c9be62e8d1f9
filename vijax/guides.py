"""Guides: where q's parameters come from. One shared set, a table with a row phi_i per datum, or an
encoder of x_i.
"""

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from vijax.families import lam_like
from vijax.networks import as_network
from vijax.types import Family, Guide, Key, PyTree


def shared(family: Family, *, init: Callable[[Key], PyTree] | None = None) -> Guide:
    """q(w; phi): one set of parameters for a global latent. phi is the family's lam.

    Args:
      init: key -> initial lam; default the family's.
    """
    return Guide(
        init=family.init if init is None else init,
        family_w=family,
        family_z=None,
        locate_w=lambda phi: phi,
        locate_z=_no_local,
        tables=_all(value=False),
        num_data=None,
    )


def per_datapoint(
    family: Family, num_data: int, *, init: Callable[[Key], PyTree] | None = None
) -> Guide:
    """q(z_i; phi_i): a table of parameters, one row per datum; the classical (non-amortized)
    scheme.

    phi: the family's lam with a leading axis of num_data rows. A step of `fit` touches the rows of
    its batch only.

    Args:
      num_data: N, the number of rows.
      init: key -> initial lam of one row; default the family's.
    """
    if num_data < 1:
        raise ValueError(f"per_datapoint(num_data={num_data}): the table needs at least one row.")
    row = family.init if init is None else init
    return Guide(
        init=lambda key: jax.vmap(row)(jax.random.split(key, num_data)),
        family_w=None,
        family_z=family,
        locate_w=_no_global,
        locate_z=lambda phi_i, x: phi_i,
        tables=_all(value=True),
        num_data=num_data,
    )


def amortized(family: Family, encoder: Any, *, x: PyTree = None) -> Guide:
    """q(z_i; encoder(x_i)): the parameters are a function of the datum. Kingma and Welling 2014;
    Rezende et al. 2014.

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
                f"or one vector of "
                f"{sum(sizes)} numbers. Make the last layer {sum(sizes)} wide; the guide adds no "
                f"layer of its own."
            )
        parts = jnp.split(flat[0], [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)])
        return jax.tree.unflatten(
            tree, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        )

    if x is not None:
        jax.eval_shape(
            lambda key, x: fill(network.apply(network.init(key), x)), jax.random.key(0), x
        )
    return Guide(
        init=network.init,
        family_w=None,
        family_z=family,
        locate_w=_no_global,
        locate_z=lambda phi, x: fill(network.apply(phi, x)),
        tables=_all(value=False),
        num_data=None,
    )


def hierarchical(*, w: Guide, z: Guide) -> Guide:
    """q(w) prod_i q(z_i): a `shared` guide for the global latent together with a local one. phi:
    {"w": ..., "z": ...}.
    """
    if w.family_w is None or w.family_z is not None or z.family_z is None or z.family_w is not None:
        raise ValueError(
            "hierarchical(w=..., z=...) joins a global guide with a local one: w=shared(...), "
            "z=per_datapoint(...) or "
            "amortized(...)."
        )

    def init(key: Key) -> PyTree:
        key_w, key_z = jax.random.split(key)
        return {"w": w.init(key_w), "z": z.init(key_z)}

    return Guide(
        init=init,
        family_w=w.family_w,
        family_z=z.family_z,
        locate_w=lambda phi: w.locate_w(phi["w"]),
        locate_z=lambda phi, x: z.locate_z(phi["z"], x),
        tables=lambda phi: {"w": w.tables(phi["w"]), "z": z.tables(phi["z"])},
        num_data=z.num_data,
    )


def located(guide: Guide) -> Guide:
    """The guide whose phi is q's parameters themselves: lam of w, and one row lam_i for every datum
    of a batch.
    """
    both = guide.family_w is not None and guide.family_z is not None

    def tables(lam: PyTree) -> PyTree:
        parts = lam if both else {"z" if guide.family_w is None else "w": lam}
        marked = {name: _all(value=name == "z")(part) for name, part in parts.items()}
        return marked if both else next(iter(marked.values()))

    return guide._replace(
        locate_w=(lambda lam: lam["w"]) if both else (lambda lam: lam),
        locate_z=(lambda lam, x: lam["z"]) if both else (lambda lam, x: lam),
        tables=tables,
        num_data=None,
    )


def _all(*, value: bool) -> Callable[[PyTree], PyTree]:
    return lambda phi: jax.tree.map(lambda leaf: value, phi)


def _no_global(phi: PyTree) -> PyTree:
    raise ValueError("this guide has no global latent w.")


def _no_local(phi: PyTree, x: PyTree) -> PyTree:
    raise ValueError("this guide has no local latent z.")
