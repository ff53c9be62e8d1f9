"""Objectives as functions of the log-weights: limits, order, invariances, and the order of the
bounds by enumeration.
"""

import cases
import exact as exact_bounds
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from checks import assert_close

from vijax.objectives import elbo, is_linear, iwae, renyi

LOG_W = np.array([0.3, -1.2, 2.0, 0.7])


def test_formulas(x64):
    assert_close(elbo(jnp.asarray(LOG_W)), LOG_W.mean(), tolerance=1e-15)
    assert_close(iwae(jnp.asarray(LOG_W)), np.log(np.exp(LOG_W).mean()), tolerance=1e-15)
    assert_close(
        renyi(3.0)(jnp.asarray(LOG_W)), np.log(np.exp(-2.0 * LOG_W).mean()) / -2.0, tolerance=1e-15
    )
    assert_close(
        jax.grad(iwae)(jnp.asarray(LOG_W)), np.exp(LOG_W) / np.exp(LOG_W).sum(), tolerance=1e-15
    )


def test_renyi_joins_iwae_and_elbo(x64):
    log_w = jnp.asarray(LOG_W)
    assert renyi(1.0) is elbo and is_linear(elbo) and not is_linear(iwae)
    assert_close(renyi(0.0)(log_w), iwae(log_w), tolerance=1e-15)
    assert_close(renyi(1.0 + 1e-6)(log_w), elbo(log_w), tolerance=1e-5)
    values = [renyi(alpha)(log_w) for alpha in (-5.0, 0.0, 0.5, 1.0, 2.0, 10.0)]
    assert (
        all(a > b for a, b in zip(values, values[1:], strict=False))
        and LOG_W.max() > values[0]
        and values[-1] > LOG_W.min()
    )


@pytest.mark.parametrize("objective", [elbo, iwae, renyi(0.5), renyi(2.0)])
def test_symmetric_one_sample_and_shift(objective, x64):
    """R of one log-weight is it; a constant passes through; the order of samples does not matter;
    weights sum to 1.
    """
    log_w = jnp.asarray(LOG_W)
    assert_close(objective(log_w[:1]), log_w[0], tolerance=1e-15)
    assert_close(objective(log_w + 700.0), objective(log_w) + 700.0, tolerance=1e-15)
    assert_close(objective(log_w[::-1]), objective(log_w), tolerance=1e-15)
    assert_close(jnp.sum(jax.grad(objective)(log_w)), 1.0, tolerance=1e-15)


def test_bounds_are_ordered_and_exact_in_the_identity(x64):
    """Identity 1, by enumeration: ELBO = L_1 < L_2 < L_3 < log p(x) < EUBO, and log p(x) = ELBO +
    KL(q || posterior).
    """
    problem = cases.cached_problem(problems.binary)
    params, batch = (
        cases.build(cases.Case(problems.binary, cases.ENUM)).params,
        problems.batch_of(problem, (1,)),
    )
    params = params._replace(control=())
    bounds = [
        -float(exact_bounds.exact_loss(problem, iwae, k)(params, batch)) / problems.N
        for k in (1, 2, 3)
    ]
    z, weights = exact_bounds.quadrature(
        problem.guide.family_z, problem.guide.locate_z(params.phi, batch.x[0]), 0
    )
    log_joint = jax.vmap(lambda b: problem.model.log_local(params.theta, None, b, batch.x[0]))(z)
    log_p = jax.nn.logsumexp(log_joint)
    kl = weights @ (jnp.log(weights) - log_joint + log_p)
    eubo = jnp.exp(log_joint - log_p) @ (log_joint - jnp.log(weights))
    assert_close(log_p, bounds[0] + kl, tolerance=1e-12)
    assert bounds[0] < bounds[1] < bounds[2] < float(log_p) < float(eubo)
