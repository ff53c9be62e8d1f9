"""Control variates from a continuous relaxation of a discrete z: REBAR, and what it shares with
RELAX.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vijax.families import BernoulliSites, CategoricalSites, Density
from vijax.rules.base import (
    draw,
    evaluate,
    evaluate_at,
    learned_gradient,
    no_aux,
    rule,
    spare_key,
    stopped,
)
from vijax.rules.discrete import site_logits, site_mean
from vijax.rules.relaxed_scores import Relaxation, concrete, scores_of, two_scores
from vijax.types import Array, Aux, Integrand, Key, PyTree, Q, Requirements, Rule, Scalar, Setting


def rebar(
    *, temperature: float = 0.5, relaxation: Relaxation = concrete, tied: bool = True
) -> Rule:
    """Score function of f(z) - s c(z~) plus the pathwise gradient of s [c(z^) - c(z~)], with c = f
    at a relaxed z.

    Tucker et al. 2017, eq. 8-9; categorical sites as in its appendix. z^ are the relaxed scores
    whose hard value is z, z~ scores drawn given z. Scale s and temperature are learned, by the
    variance's gradient.

    Args:
      temperature: the initial one.
      relaxation: `concrete` or `to_mean_field`, or your own.
      tied: z~ takes z^'s own noise, as in the authors' code: equal in value, different in
        derivative, one evaluation for both. False draws it anew.

    Unbiased for: the gradient of the ELBO, in theta and phi, whatever the control's values.
    Requires:     independent Bernoulli or one-hot categorical sites with logits; an integrand that
                  is differentiable at relaxed z, twice to learn the temperature; a linear
                  objective.
    State:        none; {"scale", "log_temperature"} are in `control`.
    Cost:         2K evaluations of the integrand per datum and K derivatives in z; 3K and 2K if not
                  tied.
    """
    return relaxed_control_rule(
        f"rebar({'' if tied else 'tied=False'})",
        Control(init=init_scale, values=scaled_integrand),
        temperature=temperature,
        relaxation=relaxation,
        tied=tied,
        paper="Tucker et al. 2017",
    )


class Control(NamedTuple):
    """The control variate c as a function of the relaxed z: what `rebar` and `relax` differ in.

    Attributes:
      init: key -> what it learns beside the temperature, a dict.
      values: (those parameters, the integrand as a function of M relaxed z, M relaxed z, datum) ->
        [M].
      integrand_at_soft: does it evaluate the integrand?
    """

    init: Callable[[Key], dict[str, PyTree]]
    values: Callable[[PyTree, Callable[[Array], Array], Array, PyTree], Array]
    integrand_at_soft: bool = True


def init_scale(key: Key) -> dict[str, PyTree]:
    """The parameter of `scaled_integrand`."""
    return {"scale": jnp.ones(())}


def scaled_integrand(
    control: PyTree, integrand: Callable[[Array], Array], soft: Array, x: PyTree
) -> Array:
    """REBAR's control variate [M]: the integrand itself at relaxed z, times the learned scale."""
    return control["scale"] * integrand(soft)


def relaxed_control_rule(
    name: str,
    variate: Control,
    *,
    temperature: float,
    relaxation: Relaxation,
    tied: bool,
    paper: str,
) -> Rule:
    """The score function with a control variate on relaxed scores, whose mean the pathwise
    gradient puts back; its parameters and the temperature are learned.
    """
    if not temperature > 0.0:
        raise ValueError(f"{name}: temperature={temperature!r} must be positive.")

    def surrogate(key: Key, q: Q, integrand: Integrand, setting: Setting) -> tuple[Scalar, Aux]:
        drawn = draw(key, stopped(q), setting.num_samples)
        values, aux = evaluate(integrand, drawn)
        live, scores = site_logits(q.family, q.lam), scores_of(q.family)
        logits = jax.lax.stop_gradient(live)
        free_key, given_key, value_key = jax.random.split(spare_key(key), 3)
        both = two_scores(scores, logits, drawn.z, free_key, free_key if tied else given_key)

        def integrand_at(soft: Array) -> Array:
            return evaluate_at(integrand, q, soft, value_key)[0]

        def at(control: PyTree, points: Array, eta: Array) -> Array:
            soft_logits = relaxation(
                points, scores.normal(eta)[None], jnp.exp(control["log_temperature"])
            )
            return variate.values(control, integrand_at, scores.squash(soft_logits), setting.x)

        def term(eta: Array, control: PyTree) -> tuple[Scalar, Array]:
            return (tied_path if tied else free_path)(functools.partial(at, control), both, eta)

        def gradient(control: PyTree) -> Array:
            path, controls = jax.grad(term, has_aux=True)(logits, control)
            return score_part(values, controls, drawn.z - site_mean(q.family, logits)[None]) + path

        value = setting.objective.value(values)
        return learned_gradient(value, live, setting.control, gradient), no_aux(aux)

    def init(key: Key) -> PyTree:
        start = jnp.log(jnp.asarray(temperature, jnp.result_type(float)))
        return {"log_temperature": start} | variate.init(key)

    relaxed_evaluations = (1 if tied else 2) if variate.integrand_at_soft else 0
    requires = Requirements(
        needs=(Density,) if variate.integrand_at_soft else (),
        any_of=(BernoulliSites, CategoricalSites),
        linear=True,
        in_z=variate.integrand_at_soft,
        evaluations=f"{1 + relaxed_evaluations}K" if relaxed_evaluations else "K",
        paper=paper,
        advice="Write score() or local_expectation() instead.",
    )
    return rule(name, requires, surrogate, init=init)


def score_part(values: Array, controls: Array, away: Array) -> Array:
    """The mean of (f - c) (z - E z): c is live in the control's parameters, or its variance's
    gradient would be wrong.
    """
    return jnp.tensordot(values - controls, away, axes=1) / values.shape[0]


Controls = Callable[[Array, Array], Array]
"""(scores [M, ...], logits) -> the control variate there [M]."""

Both = Callable[[Array], tuple[Array, Array]]
"""eta -> the scores that move with it, and those drawn given z, each [K, ...]."""


def free_path(control: Controls, both: Both, eta: Array) -> tuple[Scalar, Array]:
    """The mean of c(z^) - c(z~), to be differentiated in eta, and c(z~) [K]."""
    free, given = both(eta)
    c = control(jnp.concatenate([free, given]), eta)
    num_samples = free.shape[0]
    return jnp.mean(c[:num_samples] - c[num_samples:]), c[num_samples:]


def tied_path(control: Controls, both: Both, eta: Array) -> tuple[Scalar, Array]:
    """`free_path` where both scores are equal in value: its derivative from one evaluation, taken
    along the difference of the two paths. The value is c's mean, and of no use.
    """
    free, given = both(eta)
    apart = free - given
    points = jax.lax.stop_gradient(given - apart) + apart
    c = control(points, jax.lax.stop_gradient(eta))
    return jnp.mean(c), c
