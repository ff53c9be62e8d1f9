"""Guides of a global and a local latent together."""

import jax
from flax.core import FrozenDict

from vijax.inference import Guide
from vijax.types import Key, PyTree


def hierarchical(*, w: Guide, z: Guide) -> Guide:
    """q(w) prod_i q(z_i): a `shared` guide for the global latent together with a local one.

    Raises:
      ValueError: if either guide is not for its latent.
    """
    if set(w.families) != {"w"} or set(z.families) != {"z"}:
        raise ValueError(
            "hierarchical(w=..., z=...) joins a global guide with a local one: w=shared(...), "
            "z=per_datapoint(...) or amortized(...)."
        )

    def init(key: Key) -> PyTree:
        key_w, key_z = jax.random.split(key)
        return w.init(key_w) | z.init(key_z)

    def is_table(phi: PyTree) -> PyTree:
        return w.is_table({"w": phi["w"]}) | z.is_table({"z": phi["z"]})

    return Guide(
        init=init,
        families=FrozenDict({"w": w.families["w"], "z": z.families["z"]}),
        global_lam=w.global_lam,
        at=z.at,
        refine=z.refine,
        is_table=is_table,
        num_data=z.num_data,
    )
