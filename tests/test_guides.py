"""Guides: every kind of encoder gives the same lam; outputs of the wrong shape and things that are
no network are refused.
"""

import jax
import jax.numpy as jnp
import pytest
from checks import assert_close
from flax import linen, nnx

from vijax import families, guides, networks

FAMILY, X = families.diag_normal(2), jnp.array([0.5, -1.0, 2.0])
KERNEL = jax.random.normal(jax.random.key(0), (3, 4))


class Pair:
    """Any object with init and apply."""

    def init(self, key):
        return KERNEL

    def apply(self, params, x):
        return x @ params


class Blocks:
    """An encoder that returns lam itself."""

    def init(self, key):
        return KERNEL

    def apply(self, params, x):
        return {"loc": (x @ params)[:2], "log_scale": (x @ params)[2:]}


def nnx_encoder(rngs):
    return nnx.Linear(
        3, 4, use_bias=False, kernel_init=lambda key, shape, dtype=None: KERNEL, rngs=rngs
    )


ENCODERS = {
    "object": (Pair(), lambda phi: phi),
    "pair": ((lambda key: KERNEL, lambda params, x: x @ params), lambda phi: phi),
    "lam": (Blocks(), lambda phi: phi),
    "linen": (linen.Dense(4, use_bias=False), lambda phi: {"params": {"kernel": KERNEL}}),
    "nnx": (nnx_encoder, lambda phi: phi),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_fills_loc_then_log_scale(name):
    encoder, known = ENCODERS[name]
    guide = guides.amortized(FAMILY, encoder, x=X)
    phi = {"z": known(guide.init(jax.random.key(1))["z"])}
    lam, grads = jax.jit(jax.value_and_grad(lambda phi: jnp.sum(guide.at(phi, X)["loc"])))(phi)
    assert_close(
        guide.at(phi, X), {"loc": (X @ KERNEL)[:2], "log_scale": (X @ KERNEL)[2:]}, tolerance=1e-6
    )
    assert_close(
        jax.tree.leaves(grads)[0], jnp.outer(X, jnp.array([1.0, 1.0, 0.0, 0.0])), tolerance=1e-6
    )
    assert (
        guide.families["z"] is FAMILY
        and not any(jax.tree.leaves(guide.is_table(phi)))
        and guide.num_data is None
    )


@pytest.mark.parametrize("width", [3, 5])
def test_an_encoder_of_the_wrong_width_is_refused(width):
    guide = guides.amortized(FAMILY, (lambda key: (), lambda params, x: jnp.zeros(width)))
    with pytest.raises(
        ValueError,
        match=rf"shapes \[\({width},\)\].*one vector of 4 numbers. Make the last layer 4 wide",
    ):
        guide.at({"z": ()}, X)


def test_a_linen_module_needs_a_datum():
    with pytest.raises(ValueError, match=r"Dense is a flax.linen module.*x=images\[0\]"):
        guides.amortized(FAMILY, linen.Dense(4))


@pytest.mark.parametrize("thing", [3, "encoder", (1, 2), lambda x: x])
def test_what_is_no_network_is_refused(thing):
    with pytest.raises(
        TypeError, match="is not a network: give a flax.linen module, lambda rngs: a flax.nnx"
    ):
        networks.as_network(thing)


def test_table_and_shared():
    table = guides.per_datapoint(FAMILY, 5)
    phi = table.init(jax.random.key(0))
    assert {leaf.shape for leaf in jax.tree.leaves(phi)} == {(5, 2)} and all(
        jax.tree.leaves(table.is_table(phi))
    )
    assert jnp.unique(phi["z"]["loc"][:, 0]).shape == (5,)  # every row has its own start
    shared = guides.shared(FAMILY, init=lambda key: {"loc": jnp.ones(2), "log_scale": jnp.zeros(2)})
    assert_close(
        shared.global_lam(shared.init(jax.random.key(0))),
        {"loc": jnp.ones(2), "log_scale": jnp.zeros(2)},
        tolerance=0,
    )
    with pytest.raises(ValueError, match="no local latent z"):
        shared.at({}, X)
    with pytest.raises(ValueError, match="no global latent w"):
        table.global_lam(phi)
    both = guides.hierarchical(w=shared, z=table)
    phi = both.init(jax.random.key(0))
    assert both.is_table(phi) == {
        "w": {"loc": False, "log_scale": False},
        "z": {"loc": True, "log_scale": True},
    }
    assert both.num_data == 5 and dict(both.families) == {"w": FAMILY, "z": FAMILY}
