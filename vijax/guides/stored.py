"""Guides whose phi is q's parameters themselves: one set, one row per datum, or some of each."""

from collections.abc import Callable

import jax
from flax.core import FrozenDict

from vijax.families import lam_like
from vijax.guides.base import as_it_is, marked, no_global, no_local
from vijax.inference import Guide
from vijax.types import Family, Key, PyTree


def shared(family: Family, *, init: Callable[[Key], PyTree] | None = None) -> Guide:
    """q(w; phi): one set of parameters for a global latent. phi: {"w": the family's lam}.

    Args:
      init: key -> initial lam; default the family's.
    """
    start = family.init if init is None else init
    return Guide(
        init=lambda key: {"w": start(key)},
        families=FrozenDict({"w": family}),
        global_lam=lambda phi: phi["w"],
        at=no_local,
        refine=as_it_is,
        is_table=lambda phi: marked(phi, value=False),
        num_data=None,
    )


def per_datapoint(
    family: Family, num_data: int, *, init: Callable[[Key], PyTree] | None = None
) -> Guide:
    """q(z_i; phi_i): a table of parameters, one row per datum; the classical (non-amortized)
    scheme.

    phi: {"z": the family's lam with a leading axis of num_data rows}. A step of `fit` touches the
    rows of its batch only.

    Args:
      num_data: N, the number of rows.
      init: key -> initial lam of one row; default the family's.

    Raises:
      ValueError: if num_data is below 1.
    """
    if num_data < 1:
        raise ValueError(f"per_datapoint(num_data={num_data}): the table needs at least one row.")
    row = family.init if init is None else init
    return Guide(
        init=lambda key: {"z": jax.vmap(row)(jax.random.split(key, num_data))},
        families=FrozenDict({"z": family}),
        global_lam=no_global,
        at=lambda phi, x: phi["z"],
        refine=as_it_is,
        is_table=lambda phi: marked(phi, value=True),
        num_data=num_data,
    )


def with_shared(guide: Guide, *names: str) -> Guide:
    """A `per_datapoint` guide in which the named entries of lam are one set for all data, such as
    the weights of a flow over every datum's own base.

    phi: {"z": lam}, its named entries without the axis of rows.

    Raises:
      ValueError: if the guide is no plain table, or the names are not some of the entries of lam.
    """
    if guide.num_data is None or set(guide.families) != {"z"}:
        raise ValueError(
            "with_shared: give a guide made by per_datapoint(...), whose rows to share."
        )
    family, num_data = guide.families["z"], guide.num_data
    known = lam_like(family)
    if not all(jax.tree.leaves(guide.is_table(jax.eval_shape(guide.init, jax.random.key(0))))):
        raise ValueError("with_shared: this guide shares already. Name all the entries at once.")
    if not isinstance(known, dict) or not names or not set(names) < set(known):
        raise ValueError(
            f"with_shared{names}: name some, not all, of the entries of lam of {family.name}: "
            f"{sorted(known) if isinstance(known, dict) else 'it is no dict'}."
        )

    def init(key: Key) -> PyTree:
        table = guide.init(key)["z"]
        return {"z": {n: table[n][0] if n in names else table[n] for n in table}}

    def is_table(phi: PyTree) -> PyTree:
        lam = phi["z"]
        return {"z": {name: marked(lam[name], value=name not in names) for name in lam}}

    return guide._replace(init=init, is_table=is_table, num_data=num_data)
