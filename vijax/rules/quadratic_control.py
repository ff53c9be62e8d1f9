"""Control variates from a quadratic function of z, whose expectation under a normal q is known with
its gradient.

One idea: take g of a quadratic fq off the sampled gradient and add the exact gradient of E_q[fq].
Settings: where fq comes from (the integrand's Taylor expansion at the mean, or learned), and which
rule makes the sampled gradient.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from vijax.noise import IID, Noise
from vijax.rules.base import evaluate_at, from_gradient, mean_aux, reduce_variance, rule
from vijax.types import Array, Aux, Family, Key, PyTree, Requirements, Rule, Scalar


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
        return self.at(moments(family, lam)[0]) + 0.5 * self.trace(family, lam)


def moments(family: Family, lam: PyTree) -> tuple[Array, Array]:
    """Mean [D] and covariance [D, D] of q."""
    return cast(Callable, family.normal_moments)(lam)


def with_hessian(centre: Array, constant: Scalar, slope: Array, hessian: Array) -> Quadratic:
    """The one with this Hessian [D, D], whose expectation is exact."""

    def trace(family: Family, lam: PyTree) -> Scalar:
        return jnp.vdot(hessian, moments(family, lam)[1])

    return Quadratic(centre, constant, slope, lambda v: hessian @ v, trace)


class Surface(NamedTuple):
    """Where the quadratic comes from. It must not depend on the draws.

    Attributes:
      quadratic: (key, control, f: z [D] -> [], mean [D]) -> Quadratic
    """

    name: str
    quadratic: Callable[..., Quadratic]
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
            return Quadratic(
                mean,
                f(mean),
                slope,
                product,
                lambda family, lam: probed_trace(family, lam, product, signs),
            )
        constant, slope = jax.value_and_grad(f)(mean)
        hessian = (
            jax.hessian(f)(mean) if order == 2 else jnp.zeros((mean.size, mean.size), mean.dtype)
        )
        return with_hessian(mean, constant, slope, 0.5 * (hessian + hessian.T))

    cost = "K+1" if order == 1 else "K+1+D" if probes is None else f"2K+1+{probes}"
    name = f"taylor({order}{'' if probes is None else f', probes={probes}'})"
    return Surface(name, quadratic, cost, "Miller et al. 2017; Paisley et al. 2012")


def probed_trace(
    family: Family, lam: PyTree, product: Callable[[Array], Array], signs: Array
) -> Scalar:
    """tr(H Cov q) estimated without bias from products at the points to which q's sampler takes the
    signs [M, D].
    """
    mean = moments(family, lam)[0]

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


class Samples(NamedTuple):
    """What a carrier sees: K draws with the integrand's values and z-derivatives there, all of them
    constants.

    Attributes:
      noise: leaves [K, ...]
      z: [K, D]
      values: [K]
      slopes: [K, D]
    """

    noise: PyTree
    z: Array
    values: Array
    slopes: Array


Carrier = Callable[[Family, PyTree, Samples, Quadratic], Scalar]
"""A scalar whose derivative in lam is the sampled gradient of the integrand less the quadratic."""


def by_path(family: Family, lam: PyTree, samples: Samples, quadratic: Quadratic) -> Scalar:
    """Through the sampler: the paths of the integrand less the quadratic."""
    slopes = samples.slopes - jax.vmap(jax.grad(quadratic.at))(samples.z)
    z, _ = jax.vmap(family.transport, in_axes=(None, 0))(lam, samples.noise)
    return jnp.vdot(slopes, z) / samples.values.shape[0]


def by_score(family: Family, lam: PyTree, samples: Samples, quadratic: Quadratic) -> Scalar:
    """By the score function: the values of the integrand less the quadratic."""
    values = samples.values - jax.vmap(quadratic.at)(samples.z)
    return (
        jnp.vdot(values, jax.vmap(family.log_prob, in_axes=(None, 0))(lam, samples.z))
        / samples.values.shape[0]
    )


def quadratic_control(
    surface: Surface | None = None, *, carrier: Carrier = by_path, noise: Noise = IID
) -> Rule:
    """Gradient of (f - fq) by samples plus that of E_q[fq] exactly, fq quadratic. With `taylor()`
    the linearised-gradient control variate (Miller et al. 2017), and by the score the delta-method
    one (Paisley et al. 2012); with `learned_quadratic()` the surrogate of Geffner and Domke 2020.

    f contains -log q with q's parameters stopped, itself quadratic: with `taylor(2)` there is no
    variance at all where the log-joint is quadratic.

    Args:
      surface: where fq comes from; default `taylor()`.
      carrier: `by_path` or `by_score`.
      noise: see `vijax.noise`.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a normal family; a linear objective.
    State:        none; `learned_quadratic` has parameters in `params.control`.
    Cost:         K evaluations of the integrand per datum with one backward pass, and those of
                  `surface`.
    """
    chosen = taylor() if surface is None else surface

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        noise_key, value_key, mean_key = jax.random.split(key, 3)
        fixed, eps = jax.lax.stop_gradient(lam), noise.draw(noise_key, family, num_samples)
        z, _ = jax.vmap(family.transport, in_axes=(None, 0))(fixed, eps)
        values, pull, aux = jax.vjp(
            lambda z: evaluate_at(integrand, family, lam, z, value_key), z, has_aux=True
        )
        samples = jax.lax.stop_gradient(Samples(eps, z, values, pull(jnp.ones_like(values))[0]))

        def at_mean(z: Array) -> Scalar:
            return evaluate_at(integrand, family, lam, z[None], mean_key)[0][0]

        def gradient(control: PyTree) -> PyTree:
            quadratic = chosen.quadratic(
                jax.random.fold_in(key, 3), control, at_mean, moments(family, fixed)[0]
            )

            def total(lam: PyTree) -> Scalar:
                return carrier(family, lam, samples, quadratic) + quadratic.mean(family, lam)

            return jax.grad(total)(fixed)

        value = from_gradient(jnp.mean(values), lam, gradient(control))
        return reduce_variance(value, control, gradient), Aux((), mean_aux(aux))

    settings = (
        [chosen.name]
        + (["by_score"] if carrier is by_score else [])
        + ([] if noise is IID else [f"noise={noise.name}"])
    )
    requires = Requirements(
        paper=chosen.paper,
        normal=True,
        linear_objective=True,
        differentiates_z=True,
        evaluations=chosen.evaluations,
        unbiased=noise.unbiased,
        advice="Write pathwise() or score() for it.",
    )
    return rule(
        f"quadratic_control({', '.join(settings)})",
        requires,
        surrogate,
        noise=noise,
        init=chosen.init,
    )
