"""The latents of the matrix: one family, a few points of its parameters and one integrand each,
with exact expectations.
"""

from typing import Any, NamedTuple

import exact
import jax.numpy as jnp
import numpy as np
import problems

import vijax as vj
from vijax import families


class Fixture(NamedTuple):
    """Fields.

    Attributes:
      lams: parameter points, leaves [P, ...]: random first
      f: (theta, z) -> [], defined at relaxed z too
      per_block: is the rule given to every block, nested, or to the latent as a whole?
    """

    family: vj.Family
    lams: Any
    theta: np.ndarray
    f: Any
    nodes: int | exact.Grid = 0
    per_block: bool = False


def multilinear(table, bits):
    """The entry of a table at bits, extended to relaxed ones."""
    for bit in bits:
        table = table[0] * (1.0 - bit) + table[1] * bit
    return table


def bernoulli() -> Fixture:
    """Three bits, a random table extended multilinearly; random, all-zero and saturated logits."""
    logits = np.array([[0.4, -0.9, 1.3], [0.0, 0.0, 0.0], [12.0, 0.0, -12.0]])
    return Fixture(
        families.bernoulli(3),
        {"logits": logits},
        np.random.default_rng(0).normal(size=(2, 2, 2)),
        multilinear,
    )


def categorical() -> Fixture:
    """Four classes, f quadratic in the one-hot z; random, tied and saturated logits."""

    def f(theta, z):
        return jnp.vdot(theta, z) + jnp.square(jnp.vdot(theta, z) - 0.4)

    logits = np.array([[0.4, -0.9, 1.3, 0.1], [0.7, 0.7, 0.7, 0.7], [12.0, 0.0, 0.0, 11.0]])
    return Fixture(families.categorical(4), {"logits": logits}, np.array([0.5, -1.0, 2.0, 0.3]), f)


def sites() -> Fixture:
    """Two sites of three classes each."""

    def f(theta, z):
        return z[0] @ theta @ z[1]

    logits = np.array([[[0.4, -0.9, 0.0], [1.0, 0.2, -0.5]], [[0.0, 0.0, 0.0], [1.0, 1.0, -1.0]]])
    return Fixture(
        families.categorical(3, num_sites=2),
        {"logits": logits},
        np.random.default_rng(1).normal(size=(3, 3)),
        f,
    )


def curved(theta, z):
    """Neither linear nor quadratic."""
    return theta[0] * jnp.sin(z[0]) + theta[1] * z[0] * z[1] - 0.1 * jnp.square(z[1])


def normal() -> Fixture:
    """A normal plane."""
    lams = {
        "loc": np.array([[0.3, -0.5], [0.0, 0.0]]),
        "log_scale": np.array([[-0.4, 0.2], [-3.0, 0.0]]),
    }
    return Fixture(families.diag_normal(2), lams, np.array([0.8, -0.6]), curved, 12)


def full_normal() -> Fixture:
    """A correlated normal plane; at the second point nearly a line."""
    lower = np.array([[[0.0, 0.0], [0.6, 0.0]], [[0.0, 0.0], [-3.0, 0.0]]])
    lams = {**normal().lams, "lower": lower}
    lams["log_scale"] = np.array([[-0.4, 0.2], [-0.5, -1.5]])
    return Fixture(families.full_normal(2), lams, np.array([0.8, -0.6]), curved, 12)


def mixed_blocks() -> Fixture:
    """A class and a normal number."""

    def f(theta, latent):
        return -0.5 * jnp.square(latent["z"][0] - latent["c"] @ theta)

    lams = {
        "c": {"logits": np.array([[0.4, -0.9], [0.0, 0.0]])},
        "z": {"loc": np.array([[0.3], [0.0]]), "log_scale": np.array([[-0.4], [0.1]])},
    }
    return Fixture(
        families.product(c=families.categorical(2), z=families.diag_normal(1)),
        lams,
        np.array([0.8, -0.6]),
        f,
        24,
    )


def bernoulli_chain() -> Fixture:
    """Two layers of two bits, the second's logits affine in the first; random, zero and saturated
    logits.
    """
    family = families.chain(
        ("h1", families.bernoulli(2)),
        ("h2", families.bernoulli(2)),
        lambda lam, h1: {"logits": lam["weights"] @ (2.0 * h1 - 1.0) + lam["bias"]},
        lambda key: {"weights": jnp.zeros((2, 2)), "bias": jnp.zeros(2)},
    )
    weights = np.array([[[0.6, -1.0], [0.3, 0.8]], np.zeros((2, 2)), [[0.5, -0.5], [1.0, 0.0]]])
    lams = {
        "h1": {"logits": np.array([[0.4, -0.9], [0.0, 0.0], [0.3, 12.0]])},
        "h2": {"weights": weights, "bias": np.array([[0.2, -0.4], [0.0, 0.0], [12.0, -0.5]])},
    }
    theta = np.random.default_rng(2).normal(size=(2, 2, 2, 2))
    return Fixture(
        family,
        lams,
        theta,
        lambda theta, z: multilinear(theta, jnp.concatenate([z["h1"], z["h2"]])),
    )


def normal_chain() -> Fixture:
    """A normal number, and another whose mean is affine in it."""
    lams = {
        "first": {"loc": np.array([[0.3], [0.0]]), "log_scale": np.array([[-0.4], [0.1]])},
        "second": {
            "slope": np.array([[0.7], [0.0]]),
            "loc": np.array([[-0.2], [0.5]]),
            "log_scale": np.array([[-0.2], [-3.0]]),
        },
    }

    def f(theta, z):
        return curved(theta, jnp.concatenate([z["first"], z["second"]]))

    return Fixture(problems.normal_chain(), lams, np.array([0.8, -0.6]), f, 12)


def bounded(theta, z):
    """Of one positive or real number, neither linear nor quadratic; a second one, if there is one,
    joins in.
    """
    return theta[0] * jnp.sin(z[0]) + theta[1] * jnp.log1p(jnp.square(z[0]) + z[-1] * z[0])


def gamma() -> Fixture:
    """Two gamma variables; shapes from 2, below which measure-valued pairs have no variance, to
    8.
    """
    lams = {
        "log_shape": np.array([[0.9, 1.5], [2.0, 0.7]]),
        "log_rate": np.array([[0.4, 0.9], [1.2, -0.2]]),
    }
    return Fixture(
        families.gamma(2), lams, np.array([0.8, -0.6]), bounded, exact.half_line(0.2).power(2)
    )


def small_gamma() -> Fixture:
    """One gamma variable of shape 0.4, whose density has a pole."""
    lams = {"log_shape": np.array([[-0.9]]), "log_rate": np.array([[0.2]])}
    return Fixture(families.gamma(1), lams, np.array([0.8, -0.6]), bounded, exact.half_line(0.1))


def exponential() -> Fixture:
    """Two exponential variables."""
    lams = {"log_rate": np.array([[0.4, -0.3], [1.0, 0.0]])}
    return Fixture(
        families.exponential(2), lams, np.array([0.8, -0.6]), bounded, exact.half_line(0.2).power(2)
    )


def poisson() -> Fixture:
    """Two counts, one of them nearly always zero at the second point."""
    lams = {"log_rate": np.array([[0.4, -0.3], [-3.0, 1.0]])}
    return Fixture(
        families.poisson(2), lams, np.array([0.8, -0.6]), bounded, exact.counts(20).power(2)
    )


def beta() -> Fixture:
    """A number in the unit interval; at the second point one shape is 1."""
    lams = {"log_alpha": np.array([[0.6], [0.0]]), "log_beta": np.array([[0.3], [1.5]])}
    return Fixture(
        families.beta(1), lams, np.array([0.8, -0.6]), bounded, exact.unit_interval(0.5, 15.0)
    )


def dirichlet() -> Fixture:
    """Three shares; uniform on the simplex at the second point."""

    def f(theta, z):
        return jnp.vdot(theta, z) + jnp.sin(3.0 * z[0] * z[1])

    lams = {"log_concentration": np.array([[0.6, 0.2, 0.9], [0.0, 0.0, 0.0]])}
    return Fixture(
        families.dirichlet(3), lams, np.array([0.8, -0.6, 0.3]), f, exact.unit_simplex(3, 0.8, 15.0)
    )


def student_t() -> Fixture:
    """A real number, with 5 degrees of freedom and with 3.3."""

    def f(theta, z):
        return theta[0] * jnp.sin(z[0]) + theta[1] * jnp.log1p(jnp.square(z[0] - 0.5))

    lams = {
        "loc": np.array([[0.3], [0.0]]),
        "log_scale": np.array([[-0.4], [0.2]]),
        "log_degrees": np.array([[1.6], [1.2]]),
    }
    return Fixture(
        families.student_t(1), lams, np.array([0.8, -0.6]), f, exact.real_line(0.25, 9.0)
    )


def von_mises() -> Fixture:
    """An angle; at the second point across the cut at pi."""

    def f(theta, z):
        return theta[0] * jnp.sin(z[0]) + theta[1] * jnp.cos(2.0 * z[0])

    lams = {"loc": np.array([[0.5], [3.0]]), "log_concentration": np.array([[0.3], [1.5]])}
    return Fixture(families.von_mises(1), lams, np.array([0.8, -0.6]), f, exact.circle(64))


MAKERS = (
    bernoulli,
    categorical,
    sites,
    normal,
    mixed_blocks,
    full_normal,
    bernoulli_chain,
    normal_chain,
    gamma,
    small_gamma,
    exponential,
    poisson,
    beta,
    dirichlet,
    student_t,
    von_mises,
)
FIXTURES = {make.__name__: make() for make in MAKERS}
FIXTURES |= {
    f"{name}_per_block": FIXTURES[name]._replace(per_block=True)
    for name in ("bernoulli_chain", "normal_chain")
}
