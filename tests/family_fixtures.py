"""Every family at a few points of its parameters, with an integrand, exact expectations and, where
there is one, scipy's distribution. A new family is one entry in `FAMILIES`, and every battery that
reads `registry.py` runs over it.
"""

from typing import Any, NamedTuple

import integrands
import jax.numpy as jnp
import numpy as np
import oracles
import problems
from scipy import special, stats

import vijax as vj
from vijax import bijectors, families, supports
from vijax.testing import grids


class Fixture(NamedTuple):
    """A family and what the batteries need to know of it.

    Attributes:
      lams: parameter points, leaves [P, ...]: a random one first, then edges.
      theta: of the integrand.
      f: (theta, z) -> [], defined at relaxed z too.
      nodes: Gauss-Hermite points per normal dimension, or a grid; 0 for finite supports.
      fine: a finer grid, for what is no sum over tuples of nodes; default `nodes`.
      reference: lam in numpy -> scipy's frozen distribution, of z or of its elements.
      seen: draws z, leaves [S, ...] -> the numbers [S, M] whose moments are compared.
      mean: lam in numpy -> the exact mean [M] of those; default that of the reference.
      infinite_variance: names of rules that are unbiased here, but of infinite variance.
      in_matrix: is every rule tried on it? Not if another entry stands for it there.
      per_block: is the rule given to every block, nested, or to the latent as a whole?
    """

    family: vj.Family
    lams: Any
    theta: np.ndarray
    f: Any
    nodes: int | grids.Grid = 0
    fine: grids.Grid | None = None
    reference: Any = None
    seen: Any = None
    mean: Any = None
    infinite_variance: tuple[str, ...] = ()
    in_matrix: bool = True
    per_block: bool = False


def points(**leaves):
    """Lam of several points, leaf by leaf."""
    return {name: np.array(values) for name, values in leaves.items()}


def table(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def bit_chain():
    """Two layers of two bits, the second's logits affine in the first."""
    return families.chain(
        ("h1", families.bernoulli(2)),
        ("h2", families.bernoulli(2)),
        lambda lam, h1: {"logits": lam["weights"] @ (2.0 * h1 - 1.0) + lam["bias"]},
        lambda key: {"weights": jnp.zeros((2, 2)), "bias": jnp.zeros(2)},
    )


def on_circle(z):
    return jnp.concatenate([jnp.cos(z), jnp.sin(z)], axis=-1)


THETA = np.array([0.8, -0.6])
PLANE = points(loc=[[0.3, -0.5], [0.0, 0.0]], log_scale=[[-0.4, 0.2], [-3.0, 0.0]])

FAMILIES = {
    "bernoulli": Fixture(  # the last point is saturated
        families.bernoulli(3),
        points(logits=[[0.4, -0.9, 1.3], [0.0, 0.0, 0.0], [12.0, 0.0, -12.0]]),
        table(0, 2, 2, 2),
        integrands.multilinear,
        reference=oracles.bernoulli,
    ),
    "categorical": Fixture(  # tied, then saturated
        families.categorical(4),
        points(logits=[[0.4, -0.9, 1.3, 0.1], [0.7, 0.7, 0.7, 0.7], [12.0, 0.0, 0.0, 11.0]]),
        np.array([0.5, -1.0, 2.0, 0.3]),
        integrands.square,
        reference=oracles.categorical,
    ),
    "sites": Fixture(
        families.categorical(3, num_sites=2),
        points(logits=[[[0.4, -0.9, 0.0], [1.0, 0.2, -0.5]], [[0.0, 0.0, 0.0], [1.0, 1.0, -1.0]]]),
        table(1, 3, 3),
        lambda theta, z: z[0] @ theta @ z[1],
        reference=oracles.categorical,
    ),
    "normal": Fixture(
        families.diag_normal(2), PLANE, THETA, integrands.curved, 12, reference=oracles.normal
    ),
    "mixed_blocks": Fixture(
        families.product(c=families.categorical(2), z=families.diag_normal(1)),
        {
            "c": points(logits=[[0.4, -0.9], [0.0, 0.0]]),
            "z": points(loc=[[0.3], [0.0]], log_scale=[[-0.4], [0.1]]),
        },
        THETA,
        integrands.near_class,
        24,
    ),
    "full_normal": Fixture(  # the second point is nearly a line
        families.full_normal(2),
        points(
            loc=PLANE["loc"],
            log_scale=[[-0.4, 0.2], [-0.5, -1.5]],
            lower=[[[0.0, 0.0], [0.6, 0.0]], [[0.0, 0.0], [-3.0, 0.0]]],
        ),
        THETA,
        integrands.curved,
        12,
        reference=oracles.full_normal,
    ),
    "bernoulli_chain": Fixture(  # random, zero and saturated logits
        bit_chain(),
        {
            "h1": points(logits=[[0.4, -0.9], [0.0, 0.0], [0.3, 12.0]]),
            "h2": points(
                weights=[[[0.6, -1.0], [0.3, 0.8]], np.zeros((2, 2)), [[0.5, -0.5], [1.0, 0.0]]],
                bias=[[0.2, -0.4], [0.0, 0.0], [12.0, -0.5]],
            ),
        },
        table(2, 2, 2, 2, 2),
        lambda theta, z: integrands.multilinear(theta, jnp.concatenate([z["h1"], z["h2"]])),
        seen=lambda z: z["h1"],
        mean=lambda lam: special.expit(lam["h1"]["logits"]),
    ),
    "normal_chain": Fixture(
        problems.normal_chain(),
        {
            "first": points(loc=[[0.3], [0.0]], log_scale=[[-0.4], [0.1]]),
            "second": points(slope=[[0.7], [0.0]], loc=[[-0.2], [0.5]], log_scale=[[-0.2], [-3.0]]),
        },
        THETA,
        lambda theta, z: integrands.curved(theta, jnp.concatenate([z["first"], z["second"]])),
        12,
        mean=oracles.mean_of_normal_chain,
    ),
    "gamma": Fixture(  # shapes from 2, below which measure-valued pairs have no variance
        families.gamma(2),
        points(log_shape=[[0.9, 1.5], [2.0, 0.7]], log_rate=[[0.4, 0.9], [1.2, -0.2]]),
        THETA,
        integrands.bounded,
        grids.half_line(0.2).power(2),
        reference=oracles.gamma,
    ),
    "small_gamma": Fixture(  # the density has a pole
        families.gamma(1),
        points(log_shape=[[-0.9]], log_rate=[[0.2]]),
        THETA,
        integrands.bounded,
        grids.half_line(0.1),
        reference=oracles.gamma,
        infinite_variance=("measure_valued()", "generalized_reparameterization()"),
    ),
    "exponential": Fixture(
        families.exponential(2),
        points(log_rate=[[0.4, -0.3], [1.0, 0.0]]),
        THETA,
        integrands.bounded,
        grids.half_line(0.2).power(2),
        reference=lambda lam: stats.expon(scale=np.exp(-lam["log_rate"])),
    ),
    "poisson": Fixture(  # one count is nearly always zero at the second point
        families.poisson(2),
        points(log_rate=[[0.4, -0.3], [-3.0, 1.0]]),
        THETA,
        integrands.bounded,
        grids.counts(20).power(2),
        reference=lambda lam: stats.poisson(np.exp(lam["log_rate"])),
    ),
    "beta": Fixture(  # at the second point one shape is 1
        families.beta(1),
        points(log_alpha=[[0.6], [0.0]], log_beta=[[0.3], [1.5]]),
        THETA,
        integrands.bounded,
        grids.unit_interval(0.5, 15.0),
        reference=lambda lam: stats.beta(np.exp(lam["log_alpha"]), np.exp(lam["log_beta"])),
    ),
    "dirichlet": Fixture(  # uniform on the simplex at the second point
        families.dirichlet(3),
        points(log_concentration=[[0.6, 0.2, 0.9], [0.0, 0.0, 0.0]]),
        np.array([0.8, -0.6, 0.3]),
        lambda theta, z: jnp.vdot(theta, z) + jnp.sin(3.0 * z[0] * z[1]),
        grids.unit_simplex(3, 0.8, 15.0),
        grids.unit_simplex(3, 0.6, 18.0),
        reference=lambda lam: stats.dirichlet(np.exp(lam["log_concentration"])),
    ),
    "student_t": Fixture(  # 5 degrees of freedom, and 3.3
        families.student_t(1),
        points(loc=[[0.3], [0.0]], log_scale=[[-0.4], [0.2]], log_degrees=[[1.6], [1.2]]),
        THETA,
        integrands.around,
        grids.real_line(0.25, 9.0),
        reference=oracles.student_t,
    ),
    "von_mises": Fixture(  # across the cut at pi at the second point
        families.von_mises(1),
        points(loc=[[0.5], [3.0]], log_concentration=[[0.3], [1.5]]),
        THETA,
        integrands.turning,
        grids.circle(64),
        reference=oracles.von_mises,
        seen=on_circle,
        mean=oracles.mean_on_circle,
    ),
    "log_normal": Fixture(
        families.transformed(families.diag_normal(2), bijectors.onto(supports.positive(2))),
        points(loc=[[0.3, -0.5], [0.0, 0.0]], log_scale=[[-0.4, -0.7], [-3.0, -0.5]]),
        THETA,
        integrands.bounded,
        16,
        reference=oracles.log_normal_distribution,
    ),
    # Beside the matrix: what other entries stand for there.
    "narrow_von_mises": Fixture(
        families.von_mises(1),
        points(loc=[[1.1]], log_concentration=[[6.0]]),
        THETA,
        integrands.turning,
        grids.circle(1024),
        reference=oracles.von_mises,
        seen=on_circle,
        mean=oracles.mean_on_circle,
        in_matrix=False,
    ),
    "full_normal_of_three": Fixture(
        families.full_normal(3),
        points(
            loc=[[0.1, -0.2, 0.6]],
            log_scale=[[-0.4, 0.3, 0.1]],
            lower=[[[0.0, 0.0, 0.0], [0.7, 0.0, 0.0], [-0.5, 0.9, 0.0]]],
        ),
        THETA,
        lambda theta, z: integrands.curved(theta, z) - 0.3 * z[1] * z[2],
        6,
        reference=oracles.full_normal,
        in_matrix=False,
    ),
    "three_blocks": Fixture(
        families.product(
            c=families.categorical(3), b=families.bernoulli(2), z=families.diag_normal(1)
        ),
        {
            "c": points(logits=[[0.4, -0.9, 0.1]]),
            "b": points(logits=[[0.5, -0.3]]),
            "z": points(loc=[[0.3]], log_scale=[[-0.4]]),
        },
        np.array([0.8, -0.6, 0.3]),
        lambda theta, z: integrands.near_class(theta, z) + z["b"][0] * z["z"][0],
        12,
        in_matrix=False,
    ),
    "finite_blocks": Fixture(
        families.product(c=families.categorical(4), b=families.bernoulli(3)),
        {"c": points(logits=[[0.4, -0.9, 0.1, 0.7]]), "b": points(logits=[[0.5, -0.3, 0.2]])},
        np.array([0.5, -1.0, 2.0, 0.3]),
        lambda theta, z: integrands.square(theta, z["c"]) * (1.0 + z["b"][0] * z["b"][2]),
        in_matrix=False,
    ),
}
"""By name; those of the rule matrix first, in its order."""

FAMILIES |= {
    f"{name}_per_block": FAMILIES[name]._replace(per_block=True)
    for name in ("bernoulli_chain", "normal_chain")
}
