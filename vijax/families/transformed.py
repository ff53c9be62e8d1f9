"""Families on constrained supports: a family on R^D, carried over by a bijector."""

from collections.abc import Callable

from vijax import supports
from vijax.bijectors import Bijector, onto
from vijax.families.base import family, need
from vijax.families.traits import (
    Density,
    Inverse,
    Kl,
    Natural,
    Pushforward,
    Reparameterized,
    UniformNoise,
)
from vijax.types import Array, Family, PyTree, Scalar


def transformed(base: Family, bijector: Bijector) -> Family:
    """A family on R^D seen through a bijector: z = forward(u), log q(z) = log q(u) - log |det
    dz/du|. Kucukelbir et al. 2017, section 2.3.

    `transformed(full_normal(3), bijectors.onto(supports.positive(3)))` is log-normal. KL
    divergences between members, and natural-gradient steps, are the base family's: one map for both
    changes neither. Its entropy and moments are not, and have no closed form here.

    lam: the base family's. z: a tree like the bijector's support, with the density of its free
    coordinates (`bijectors.onto` says which). `log_prob` sees no more of u than the floats of z
    keep: at a draw at the edge of its support it may differ from that of the sampler.

    Args:
      base: a family whose support is real(D), D the bijector's size.
      bijector: from `bijectors.onto`, or one's own.

    Raises:
      ValueError: if the base family is on anything but real(D).
    """
    if base.support != supports.real(bijector.size):
        start = supports.describe(supports.real(bijector.size))
        raise ValueError(
            f"transformed({base.name}, {bijector.name}): the map starts from {start}, but the base "
            f"family is on {supports.describe(base.support)}. Give a family on {start}, such as "
            f"families.full_normal({bijector.size})."
        )
    density, inverse = base.traits.get(Density), base.traits.get(Inverse)

    def transport(lam: PyTree, noise: PyTree) -> tuple[PyTree, Scalar]:
        u, log_q = base.transport(lam, noise)
        return bijector.forward(u), log_q - bijector.log_det(u)

    def log_prob(lam: PyTree, z: PyTree) -> Scalar:
        u: Array = bijector.inverse(z)
        return base.log_prob(lam, u) - bijector.log_det(u)

    def noise_behind(lam: PyTree, z: PyTree) -> PyTree:
        return need(base, Inverse).noise(lam, bijector.inverse(z))

    return family(
        f"transformed({base.name}, {bijector.name})",
        init=base.init,
        support=bijector.support,
        log_prob=None if density is None else log_prob,
        noise=base.noise,
        transport=transport,
        traits=[
            *(base.traits.get(kind) for kind in (Reparameterized, Kl, Natural, UniformNoise)),
            None if inverse is None else Inverse(noise_behind),
            Pushforward(base, bijector.forward, bijector.log_det),
        ],
    )


def over(support: PyTree, make_family: Callable[[int], Family]) -> Family:
    """A family over a support, or over a tree of supports at once, made on R^D.

    `over({"mu": supports.real(8), "tau": supports.positive()}, full_normal)`: lam is that of one
    normal of dimension 9, z a dict like the supports. Over a plain real(D) it is the family itself.

    Args:
      support: from `vijax.supports`; see `bijectors.onto` for those that can be reached.
      make_family: D -> a family on real(D), such as `diag_normal` or `full_normal`.

    Raises:
      ValueError: if a part of the support cannot be reached from R^D.
    """
    bijector = onto(support)
    base = make_family(bijector.size)
    return base if support == supports.real(bijector.size) else transformed(base, bijector)
