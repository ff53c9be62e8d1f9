"""Quadratic functions of z that stand in for an integrand, and where they come from: its Taylor
expansion at q's mean, or learning. Their expectation under a normal q is known with its gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.families import NormalMoments, need
from vijax.types import Array, Family, Key, PyTree, Scalar


class Quadratic(NamedTuple):
    """constant + slope . (z - centre) + (z - centre)' H (z - centre) / 2, a function of z [D].

    Attributes:
      centre: [D]
      slope: [D]
      product: v [D] -> H v [D], linear, H symmetric
      trace: (family, lam) -> tr(H Cov q), exact or without bias
    """

    centre: Array
    constant: Scalar
    slope: Array
    product: Callable[[Array], Array]
    trace: Callable[[Family, PyTree], Scalar]

    def at(self, z: Array) -> Scalar:
        """Its value at z [D]."""
        shift = z - self.centre
        return self.constant + self.slope @ shift + 0.5 * shift @ self.product(shift)

    def mean(self, family: Family, lam: PyTree) -> Scalar:
        """Its expectation under q."""
        return self.at(need(family, NormalMoments).mean(lam)) + 0.5 * self.trace(family, lam)


def with_hessian(centre: Array, constant: Scalar, slope: Array, hessian: Array) -> Quadratic:
    """The one with this Hessian [D, D], whose expectation is exact."""

    def trace(family: Family, lam: PyTree) -> Scalar:
        return jnp.vdot(hessian, need(family, NormalMoments).covariance(lam))

    return Quadratic(centre, constant, slope, lambda v: hessian @ v, trace)


class Surface(NamedTuple):
    """Where the quadratic comes from. It must not depend on the draws.

    Attributes:
      quadratic: (key, control, f: z [D] -> [], mean [D]) -> Quadratic
      evaluations: of the integrand per datum, with those of the K samples
      init: key -> control
    """

    name: str
    quadratic: Callable[[Key, PyTree, Callable[[Array], Scalar], Array], Quadratic]
    evaluations: str
    paper: str
    init: Callable[[Key], PyTree] = lambda key: ()


def taylor(order: int = 2, *, probes: int | None = None) -> Surface:
    """The integrand's Taylor expansion at q's mean: exact, hence without variance, where the
    integrand is quadratic.

    Args:
      order: 2, with the full Hessian (D Hessian-vector products), or 1, the gradient alone.
      probes: M >= 1; the Hessian is then met in products alone, one per sample and M with random
        signs v for the trace, whose mean v'L'HLv it is (L L' = Cov q). Where the integrand is
        quadratic the gradient of the mean still has no variance; that of log_scale_i has s_i^2
        sum_{j != i} s_j^2 H_ij^2 / M (diagonal q), nothing for a diagonal H. The diagonal from the
        other K - 1 samples' products (Miller et al. 2017, section 3.3) would cancel in the average
        over samples.

    Raises:
      ValueError: if order is neither 1 nor 2, or probes are given for order 1.
    """
    if order not in (1, 2) or (probes is not None and (order != 2 or probes < 1)):
        raise ValueError(
            f"taylor(order={order}, probes={probes}): order 1 or 2; probes, at least 1, go with "
            f"order 2."
        )

    def quadratic(
        key: Key, control: PyTree, f: Callable[[Array], Scalar], mean: Array
    ) -> Quadratic:
        if probes is not None:
            slope, product = jax.linearize(jax.grad(f), mean)
            signs = jax.random.rademacher(key, (probes, mean.size), mean.dtype)

            def trace(family: Family, lam: PyTree) -> Scalar:
                return hutchinson_trace(family, lam, product, signs)

            return Quadratic(mean, f(mean), slope, product, trace)
        constant, slope = jax.value_and_grad(f)(mean)
        hessian = (
            jax.hessian(f)(mean) if order == 2 else jnp.zeros((mean.size, mean.size), mean.dtype)
        )
        return with_hessian(mean, constant, slope, 0.5 * (hessian + hessian.T))

    cost = "K+1" if order == 1 else "K+1+D" if probes is None else f"2K+1+{probes}"
    name = f"taylor({order}{'' if probes is None else f', probes={probes}'})"
    return Surface(name, quadratic, cost, "Miller et al. 2017; Paisley et al. 2012")


def hutchinson_trace(
    family: Family, lam: PyTree, product: Callable[[Array], Array], signs: Array
) -> Scalar:
    """tr(H Cov q) estimated without bias from products at the points to which q's sampler takes the
    signs [M, D].
    """
    mean = need(family, NormalMoments).mean(lam)

    def one(sign: Array) -> Scalar:
        shift = family.transport(lam, sign)[0] - mean
        return shift @ product(shift)

    return jnp.mean(jax.vmap(one)(signs))


def learned_quadratic(dim: int, *, rank: int | None = None) -> Surface:
    """Slope and Hessian in `params.control`, trained to reduce the gradient's variance. Geffner and
    Domke 2020.

    Shared by all data and steps; starts at zero, which changes nothing, with its own learning rate
    through `fit`'s optimiser for control.

    Args:
      dim: D.
      rank: the Hessian is diagonal plus V S V' with V [D, rank]; default D, a full one.
    """
    columns = dim if rank is None else rank

    def init(key: Key) -> PyTree:
        directions = jax.random.normal(key, (dim, columns)) / jnp.sqrt(dim)
        return {
            "centre": jnp.zeros((dim,)),
            "slope": jnp.zeros((dim,)),
            "diagonal": jnp.zeros((dim,)),
            "directions": directions,
            "strengths": jnp.zeros((columns,)),
        }

    def quadratic(
        key: Key, control: PyTree, f: Callable[[Array], Scalar], mean: Array
    ) -> Quadratic:
        spread = (control["directions"] * control["strengths"][None]) @ control["directions"].T
        hessian = jnp.diag(control["diagonal"]) + spread
        return with_hessian(control["centre"], jnp.zeros((), mean.dtype), control["slope"], hessian)

    name = f"learned_quadratic({dim}{'' if rank is None else f', rank={rank}'})"
    return Surface(name, quadratic, "K", "Geffner and Domke 2020", init)
