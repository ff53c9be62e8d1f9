"""Control variates from a quadratic function of z, whose expectation under a normal q is known with its gradient.

One idea: take g of a quadratic fq off the sampled gradient and add the exact gradient of E_q[fq]. Settings: where fq comes
from (the integrand's Taylor expansion at the mean, or learned), and which rule makes the sampled gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.noise import IID, Noise
from vijax.rules.base import evaluate_at, from_gradient, mean_aux, reduce_variance, rule
from vijax.types import Array, Aux, Family, Key, PyTree, Requirements, Rule, Scalar


class Quadratic(NamedTuple):
    """constant + slope . (z - centre) + (z - centre)' hessian (z - centre) / 2, a function of z [D]."""

    centre: Array  # [D]
    constant: Scalar
    slope: Array  # [D]
    hessian: Array  # [D, D], symmetric

    def at(self, z: Array) -> Scalar:
        """Its value at z [D]."""
        shift = z - self.centre
        return self.constant + self.slope @ shift + 0.5 * shift @ self.hessian @ shift

    def mean(self, mean: Array, covariance: Array) -> Scalar:
        """Its exact expectation under any law with this mean [D] and covariance [D, D]."""
        return self.at(mean) + 0.5 * jnp.vdot(self.hessian, covariance)


class Surface(NamedTuple):
    """Where the quadratic comes from. It must not depend on the draws."""

    name: str
    quadratic: Callable[..., Quadratic]  # (control, f: z [D] -> [], mean [D]) -> Quadratic
    evaluations: str
    paper: str
    init: Callable[[Key], PyTree] = lambda key: ()


def taylor(order: int = 2) -> Surface:
    """The integrand's Taylor expansion at q's mean: exact, hence without variance, where the integrand is quadratic.

    Args:
      order: 2, with the full Hessian (D Hessian-vector products), or 1, the gradient alone.
    """
    if order not in (1, 2):
        raise ValueError(f"taylor(order={order}): 1 or 2.")

    def quadratic(control: PyTree, f: Callable[[Array], Scalar], mean: Array) -> Quadratic:
        constant, slope = jax.value_and_grad(f)(mean)
        hessian = jax.hessian(f)(mean) if order == 2 else jnp.zeros((mean.size, mean.size), mean.dtype)
        return Quadratic(mean, constant, slope, 0.5 * (hessian + hessian.T))

    cost = "K+1+D" if order == 2 else "K+1"
    return Surface(f"taylor({order})", quadratic, cost, "Miller et al. 2017; Paisley et al. 2012")


def learned_quadratic(dim: int, *, rank: int | None = None) -> Surface:
    """Slope and Hessian in `params.control`, trained to reduce the gradient's variance. Geffner and Domke 2020.

    Shared by all data and steps; starts at zero, which changes nothing, with its own learning rate through `fit`'s optimiser
    for control.

    Args:
      dim: D.    rank: the Hessian is diagonal plus V S V' with V [D, rank]; default D, a full one.
    """
    columns = dim if rank is None else rank

    def init(key: Key) -> PyTree:
        directions = jax.random.normal(key, (dim, columns)) / jnp.sqrt(dim)
        return {
            "centre": jnp.zeros((dim,)), "slope": jnp.zeros((dim,)), "diagonal": jnp.zeros((dim,)), "directions": directions,
            "strengths": jnp.zeros((columns,)),
        }  # fmt: skip

    def quadratic(control: PyTree, f: Callable[[Array], Scalar], mean: Array) -> Quadratic:
        spread = (control["directions"] * control["strengths"][None]) @ control["directions"].T
        return Quadratic(control["centre"], jnp.zeros((), mean.dtype), control["slope"], jnp.diag(control["diagonal"]) + spread)

    name = f"learned_quadratic({dim}{'' if rank is None else f', rank={rank}'})"
    return Surface(name, quadratic, "K", "Geffner and Domke 2020", init)


class Samples(NamedTuple):
    """What a carrier sees: K draws with the integrand's values and z-derivatives there, all of them constants."""

    noise: PyTree  # leaves [K, ...]
    z: Array  # [K, D]
    values: Array  # [K]
    slopes: Array  # [K, D]


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
    return jnp.vdot(values, jax.vmap(family.log_prob, in_axes=(None, 0))(lam, samples.z)) / samples.values.shape[0]


def quadratic_control(surface: Surface | None = None, *, carrier: Carrier = by_path, noise: Noise = IID) -> Rule:
    """Gradient of (f - fq) by samples plus that of E_q[fq] exactly, fq quadratic. With `taylor()` the linearised-gradient
    control variate (Miller et al. 2017), and by the score the delta-method one (Paisley et al. 2012); with
    `learned_quadratic()` the surrogate of Geffner and Domke 2020.

    f contains -log q with q's parameters stopped, itself quadratic: with `taylor(2)` there is no variance at all where the
    log-joint is quadratic.

    Args:
      surface: where fq comes from; default `taylor()`.    carrier: `by_path` or `by_score`.    noise: see `vijax.noise`.

    Unbiased for: the gradient of the ELBO, in theta and phi.
    Requires:     a normal family; a linear objective.
    State:        none; `learned_quadratic` has parameters in `params.control`.
    Cost:         K evaluations of the integrand per datum with one backward pass, and those of `surface`.
    """
    chosen = taylor() if surface is None else surface

    def surrogate(key, family, lam, integrand, *, objective, num_samples, control, state, x, prior):
        noise_key, value_key, mean_key = jax.random.split(key, 3)
        fixed, eps = jax.lax.stop_gradient(lam), noise.draw(noise_key, family, num_samples)
        z, _ = jax.vmap(family.transport, in_axes=(None, 0))(fixed, eps)
        values, pull, aux = jax.vjp(lambda z: evaluate_at(integrand, family, lam, z, value_key), z, has_aux=True)
        samples = jax.lax.stop_gradient(Samples(eps, z, values, pull(jnp.ones_like(values))[0]))

        def at_mean(z: Array) -> Scalar:
            return evaluate_at(integrand, family, lam, z[None], mean_key)[0][0]

        def gradient(control: PyTree) -> PyTree:
            quadratic = chosen.quadratic(control, at_mean, family.normal_moments(fixed)[0])

            def total(lam: PyTree) -> Scalar:
                return carrier(family, lam, samples, quadratic) + quadratic.mean(*family.normal_moments(lam))

            return jax.grad(total)(fixed)

        value = from_gradient(jnp.mean(values), lam, gradient(control))
        return reduce_variance(value, control, gradient), Aux((), mean_aux(aux))

    settings = [chosen.name] + (["by_score"] if carrier is by_score else []) + ([] if noise is IID else [f"noise={noise.name}"])
    requires = Requirements(
        paper=chosen.paper,
        normal=True,
        linear_objective=True,
        differentiates_z=True,
        evaluations=chosen.evaluations,
        unbiased=noise.unbiased,
        advice="Write pathwise() or score() for it.",
    )
    return rule(f"quadratic_control({', '.join(settings)})", requires, surrogate, noise=noise, init=chosen.init)
