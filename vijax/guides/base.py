"""Where a guide is read: q's parameters for a batch of data, in one place for all who need them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vijax import rows
from vijax.host import rows_of
from vijax.inference import Guide
from vijax.shapes import is_concrete
from vijax.types import Batch, Integrand, Key, Params, PyTree, Q

REFINEMENT = 3  # folded into a datum's key for the noise of its refinement


def global_q(guide: Guide, phi: PyTree) -> Q:
    """q(w), from phi or either view of it."""
    lam = phi.lam["w"] if isinstance(phi, rows.Lam) else guide.global_lam(rows.stored(phi))
    return Q(guide.families["w"], lam)


def at_hand(guide: Guide, params: Params, batch: Batch) -> Params:
    """The params, of tables that are numpy's (a fit with `rowwise.on_host`) the batch's rows alone:
    for whoever compiles what follows, which would move whole tables to the device.
    """
    if isinstance(params.phi, rows.Rows | rows.Lam) or not is_concrete(batch.index):
        return params
    mask = guide.is_table(params.phi)
    tables, _ = rows.split(mask, params.phi)
    if not any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tables)):
        return params
    index = np.asarray(batch.index)

    def take(leaf: Any, *, is_table: bool) -> Any:
        if not is_table:
            return leaf
        return rows_of(leaf, index) if isinstance(leaf, np.ndarray) else leaf[batch.index]

    phi = jax.tree.map(lambda mark, leaf: take(leaf, is_table=mark), mask, params.phi)
    return params._replace(phi=rows.Rows(phi))


def over_data(
    guide: Guide,
    phi: PyTree,
    key: Key,
    batch: Batch,
    integrand: Callable[[PyTree], Integrand],
    body: Callable[[Key, Q, Integrand, PyTree], Any],
    *,
    chunk_size: int | None = None,
) -> Any:
    """`body(key_i, q(z_i), integrand at x_i, x_i)` for every datum of the batch, leaves [B, ...].

    The one place where rows are gathered, encoders run, q refined, and noise keyed: a datum's key
    is fold_in(key, its row), so the same datum gets the same noise in any minibatch.

    Args:
      phi: as stored, or a view of it (`rows.Rows`, `rows.Lam`).
      integrand: x -> integrand of one datum.
      chunk_size: data at once, which bounds the memory; None: all.
    """
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch.index)
    at, here = (lambda lam, x: lam), phi
    if isinstance(phi, rows.Lam):
        here, mask = phi.lam["z"], marked(phi.lam["z"], value=True)
    else:
        at, mask = guide.at, guide.is_table(rows.stored(phi))
        here = phi.phi if isinstance(phi, rows.Rows) else rows.gather(mask, phi, batch.index)
    own, common = rows.split(mask, here)

    def one(key: Key, own: PyTree, x: PyTree) -> Any:
        f = integrand(x)
        lam = at(rows.join(own, common), x)
        lam = guide.refine(jax.random.fold_in(key, REFINEMENT), lam, f)
        return body(key, Q(guide.families["z"], lam), f, x)

    if chunk_size is None:
        return jax.vmap(one)(keys, own, batch.x)
    return jax.lax.map(lambda args: one(*args), (keys, own, batch.x), batch_size=chunk_size)


def locate(guide: Guide, phi: PyTree, batch: Batch) -> rows.Lam:
    """Q's own parameters for these data, before any refinement."""
    lam = {"w": global_q(guide, phi).lam} if "w" in guide.families else {}
    if "z" in guide.families:
        plain = guide._replace(refine=as_it_is)
        unused = jax.random.key(0)
        lam["z"] = over_data(
            plain, phi, unused, batch, lambda x: lambda s: s.log_q, lambda key, q, f, x: q.lam
        )
    return rows.Lam(lam)


def marked(tree: PyTree, *, value: bool) -> PyTree:
    """The tree with this value in the place of every leaf."""
    return jax.tree.map(lambda leaf: value, tree)


def as_it_is(key: Key, lam: PyTree, integrand: Integrand) -> PyTree:
    """No refinement."""
    return lam


def no_global(phi: PyTree) -> PyTree:
    """The `global_lam` of a guide without one."""
    raise ValueError("this guide has no global latent w.")


def no_local(phi: PyTree, x: PyTree) -> PyTree:
    """The `at` of a guide without a local latent."""
    raise ValueError("this guide has no local latent z.")
