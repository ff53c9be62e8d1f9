"""Small expectations with exact answers, and what a rule makes of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vijax.families import Density, bernoulli, categorical, diag_normal, gamma, log_probs, product
from vijax.objectives import as_objective
from vijax.rules import draw, evaluate, expect, no_aux, rule, stopped
from vijax.rules.base import zero_valued
from vijax.testing.averages import quickly
from vijax.testing.grids import Grid, expectation, half_line, quadrature, real_line
from vijax.types import (
    Array,
    Aux,
    Family,
    Integrand,
    Key,
    Objective,
    PyTree,
    Q,
    Requirements,
    Rule,
    Scalar,
    Setting,
)

Weigh = Callable[[Scalar, Scalar], Scalar]
"""(log p(z), log q(z)) -> the integrand."""


class Toy(NamedTuple):
    """An expectation to differentiate in lam and theta.

    Attributes:
      lams: parameter points, leaves [P, ...].
      theta: of the integrand.
      f: (theta, z) -> [], defined at relaxed z too.
      nodes: for `quadrature`; None: no exact answer is known.
    """

    family: Family
    lams: PyTree
    theta: np.ndarray
    f: Callable[[Any, PyTree], Scalar]
    nodes: int | Grid | None = 0


class Seen(NamedTuple):
    """Of a rule on a toy; each figure is (value, gradient in (lam, theta)), leaves [P, ...].

    Attributes:
      draws: leaves [P, S, ...].
      looped: those of the first keys again, one by one, [P, L, ...].
      exact: leaves [P, ...]; None where it is not known.
    """

    draws: Any
    looped: Any
    exact: Any


def bound(log_p: Scalar, log_q: Scalar) -> Scalar:
    """The integrand of a bound."""
    return log_p - log_q


def prior_of(toy: Toy) -> PyTree:
    """A fixed prior in the family, which every integrand contains."""
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * leaf[0] - 0.1), toy.lams)


def look_at(
    toy: Toy,
    chosen: Rule,
    objective: Objective,
    num_samples: Any,
    *,
    num_draws: int,
    num_looped: int = 0,
    weigh: Weigh = bound,
    seed: int = 2,
) -> Seen:
    """Draws of value and gradient, the same in a loop (which compiles the rule once more), and the
    exact answer, by one program in the float type in force.
    """
    objective = as_objective(objective, num_samples)
    control, state = chosen.init(jax.random.key(1)), chosen.init_state()
    theta, lams = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), (toy.theta, toy.lams)
    )
    prior = prior_of(toy)

    def log_joint(theta: Any, z: PyTree) -> Scalar:
        return toy.f(theta, z) + toy.family.log_prob(prior, z)

    def one(key: Any, lam: PyTree) -> Any:
        def estimated(lam: PyTree, theta: Any) -> Scalar:
            return expect(
                key,
                toy.family,
                lam,
                lambda s: weigh(log_joint(theta, s.z), s.log_q),
                rule=chosen,
                objective=objective,
                num_samples=num_samples,
                control=control,
                state=state,
                x=jnp.zeros(()),
                prior=prior,
            )[0]

        return jax.value_and_grad(estimated, argnums=(0, 1))(lam, theta)

    def exactly(lam: PyTree) -> Any:
        def value(lam: PyTree, theta: Any) -> Scalar:
            z, weights = quadrature(toy.family, lam, toy.nodes or 0)
            log_p = jax.vmap(lambda z: log_joint(theta, z))(z)
            log_w = jax.vmap(weigh)(log_p, log_probs(toy.family, lam, z))
            return expectation(objective, num_samples, weights, log_w)

        return jax.value_and_grad(value, argnums=(0, 1))(lam, theta)

    def everything(lams: PyTree) -> Seen:
        keys = jax.random.split(jax.random.key(seed), num_draws)
        exact = None if toy.nodes is None else jax.vmap(exactly)(lams)
        draws = jax.lax.map(lambda lam: jax.vmap(one, (0, None))(keys, lam), lams)
        if not num_looped:
            return Seen(draws, None, exact)
        few = keys[:num_looped]
        looped = jax.lax.map(lambda lam: jax.lax.map(lambda key: one(key, lam), few), lams)
        return Seen(draws, looped, exact)

    return jax.device_get(quickly(everything, lams)(lams))


def measured_answer(
    toy: Toy, objective: Objective, num_samples: int, *, num_draws: int, weigh: Weigh
) -> Any:
    """Draws of a gradient that asks for no more than a density, where no exact answer is known:
    four times as many, and others.
    """
    settings = {"num_draws": 4 * num_draws, "weigh": weigh, "seed": 3}
    return look_at(toy, _likelihood_ratio(), objective, num_samples, **settings).draws


def _likelihood_ratio() -> Rule:
    """E[R sum_k dlog q_k + dR], whatever R is of log q: no baseline, nothing left out."""

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        drawn = draw(key, stopped(q), setting.num_samples)
        log_q = log_probs(q.family, q.lam, drawn.z)
        log_w, aux = evaluate(integrand, drawn._replace(log_q=log_q))
        value = setting.objective.value(log_w)
        return value + jax.lax.stop_gradient(value) * jnp.sum(zero_valued(log_q)), no_aux(aux)

    return rule("likelihood_ratio()", Requirements(needs=(Density,), affine=False), surrogate)


def _points(**leaves: Any) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in leaves.items()}


def _table(theta: Array, z: Array) -> Scalar:
    """Every product of bits."""
    for bit in z:
        theta = theta[0] * (1.0 - bit) + theta[1] * bit
    return theta.reshape(())


def _square(theta: Array, z: Array) -> Scalar:
    return jnp.vdot(theta, z) + jnp.square(jnp.vdot(theta, z) - 0.4)


def _curved(theta: Array, z: Array) -> Scalar:
    return theta[0] * jnp.sin(z[0]) + theta[1] * z[0] * z[1] - 0.1 * jnp.square(z[1])


def _kinked(theta: Array, z: Array) -> Scalar:
    return theta[0] * jnp.maximum(z[0], 0.2) + theta[1] * jnp.sin(z[0])


def _near_class(theta: Array, z: PyTree) -> Scalar:
    return -0.5 * jnp.square(z["z"][0] - z["c"] @ theta)


PAIR = np.array([0.8, -0.6])
TOYS = {
    "bits": Toy(
        bernoulli(3),
        _points(logits=[[0.4, -0.9, 1.3], [0.0, 0.0, 2.5]]),
        np.random.default_rng(0).normal(size=(2, 2, 2)),
        _table,
    ),
    "class": Toy(
        categorical(4),
        _points(logits=[[0.4, -0.9, 1.3, 0.1], [0.7, 0.7, 0.7, 0.7]]),
        np.array([0.5, -1.0, 2.0, 0.3]),
        _square,
    ),
    "plane": Toy(
        diag_normal(2),
        _points(loc=[[0.3, -0.5], [0.0, 0.0]], log_scale=[[-0.4, 0.2], [0.1, -1.0]]),
        PAIR,
        _curved,
        12,
    ),
    "line with a kink": Toy(
        diag_normal(1),
        _points(loc=[[0.3], [-0.6]], log_scale=[[-0.4], [0.2]]),
        PAIR,
        _kinked,
        real_line(0.04, 3.5),
    ),
    "positive": Toy(
        gamma(1),
        _points(log_shape=[[0.9], [2.0]], log_rate=[[0.4], [1.2]]),
        PAIR,
        _kinked,
        half_line(0.05),
    ),
    "blocks": Toy(
        product(c=categorical(2), z=diag_normal(1)),
        {
            "c": _points(logits=[[0.4, -0.9], [0.0, 0.0]]),
            "z": _points(loc=[[0.3], [0.0]], log_scale=[[-0.4], [0.1]]),
        },
        PAIR,
        _near_class,
        24,
    ),
}
"""Latents of each kind, at a random point and an edge."""
