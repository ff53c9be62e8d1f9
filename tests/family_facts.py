"""What the batteries of families look at beside `vijax.testing.check_family`: draws and masses of
each entry of the registry, in float64.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from checks import compiled, in_float
from registry import FAMILIES

from vijax.families import lam_like, log_probs, transports
from vijax.testing import grids

NUM_DRAWS = 20_000
NAMES = [name for name, fixture in FAMILIES.items() if not fixture.per_block]


def having(*kinds):
    """Names of the families that have all these traits."""
    return [
        name
        for name in NAMES
        if all(FAMILIES[name].family.traits.get(kind) is not None for kind in kinds)
    ]


def point(name, number=0):
    """Lam of a fixture, in the float type in force."""
    lams = FAMILIES[name].lams
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[number], jnp.result_type(float)), lams)


def generic_lam(family, seed=0):
    """Random lam of any family."""
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.7 * random.normal(size=leaf.shape), jnp.result_type(float)),
        lam_like(family),
    )


def fine_quadrature(fixture):
    """lam -> (z, weights), for what is no sum over tuples of nodes."""
    nodes = fixture.nodes if fixture.fine is None else fixture.fine
    return lambda lam: grids.quadrature(fixture.family, lam, nodes)


def rounding(name):
    """What an exact figure of the family may be off by: a grid has its own error."""
    return 1e-6 if isinstance(FAMILIES[name].nodes, grids.Grid) else 1e-12


class Drawn(NamedTuple):
    """Draws at a fixture's first point.

    Attributes:
      z: leaves [S, ...].
      log_q: [S] as the sampler says.
      elsewhere: [S] log_prob of z at the parameters `generic_lam(family, seed=1)`.
    """

    z: Any
    log_q: np.ndarray
    elsewhere: np.ndarray


@functools.cache
def drawn(name):
    """`Drawn` from noise of the family's own."""
    family = FAMILIES[name].family

    def many(lam, other, noise):
        z, log_q = transports(family, lam, noise)
        return Drawn(z, log_q, log_probs(family, other, z))

    with in_float(64):
        noise = family.noise(jax.random.key(3), NUM_DRAWS)
        return compiled(many, point(name), generic_lam(family, seed=1), noise)


@functools.cache
def masses(name):
    """By quadrature or enumeration at every point of a fixture: the mass [P], and the mean of what
    is seen of z [P, M].
    """
    fixture = FAMILIES[name]

    def one(lam):
        z, weights = grids.quadrature(fixture.family, lam, fixture.nodes)
        shown = jax.tree.leaves(z if fixture.seen is None else fixture.seen(z))
        flat = jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in shown], axis=1)
        return jnp.sum(weights), weights @ flat

    with in_float(64):
        return compiled(jax.vmap(one), jax.tree.map(jnp.asarray, fixture.lams))
