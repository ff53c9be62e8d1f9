"""Objectives as functions of the log-weights: limits, order, invariances, and the order of the
bounds by enumeration; which functions are taken for the mean, which bounds may move theta.
"""

import cases
import exact as exact_bounds
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from checks import assert_close

import vijax as vj
from vijax import families, guides, models
from vijax.objectives import as_objective, cubo, elbo, exp_cubo, iwae, renyi
from vijax.rules import enumerated, muprop, pathwise, wake

LOG_W = np.array([0.3, -1.2, 2.0, 0.7])


def test_formulas(x64):
    assert_close(elbo.value(jnp.asarray(LOG_W)), LOG_W.mean(), tolerance=1e-15)
    assert_close(iwae.value(jnp.asarray(LOG_W)), np.log(np.exp(LOG_W).mean()), tolerance=1e-15)
    assert_close(
        renyi(3.0).value(jnp.asarray(LOG_W)),
        np.log(np.exp(-2.0 * LOG_W).mean()) / -2.0,
        tolerance=1e-15,
    )
    assert_close(
        jax.grad(iwae.value)(jnp.asarray(LOG_W)),
        np.exp(LOG_W) / np.exp(LOG_W).sum(),
        tolerance=1e-15,
    )


def test_renyi_joins_iwae_and_elbo(x64):
    log_w = jnp.asarray(LOG_W)
    assert renyi(1.0) is elbo and elbo.linear and not iwae.linear
    assert_close(renyi(0.0).value(log_w), iwae.value(log_w), tolerance=1e-15)
    assert_close(renyi(1.0 + 1e-6).value(log_w), elbo.value(log_w), tolerance=1e-5)
    values = [renyi(alpha).value(log_w) for alpha in (-5.0, 0.0, 0.5, 1.0, 2.0, 10.0)]
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
    log_w, value = jnp.asarray(LOG_W), objective.value
    assert_close(value(log_w[:1]), log_w[0], tolerance=1e-15)
    assert_close(value(log_w + 700.0), value(log_w) + 700.0, tolerance=1e-15)
    assert_close(value(log_w[::-1]), value(log_w), tolerance=1e-15)
    assert_close(jnp.sum(jax.grad(value)(log_w)), 1.0, tolerance=1e-15)


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
        problem.guide.families["z"], problem.guide.at(params.phi, batch.x[0]), 0
    )
    log_joint = jax.vmap(lambda b: problem.model.log_local(params.theta, None, b, batch.x[0]))(z)
    log_p = jax.nn.logsumexp(log_joint)
    kl = weights @ (jnp.log(weights) - log_joint + log_p)
    eubo = jnp.exp(log_joint - log_p) @ (log_joint - jnp.log(weights))
    assert_close(log_p, bounds[0] + kl, tolerance=1e-12)
    assert bounds[0] < bounds[1] < bounds[2] < float(log_p) < float(eubo)


# A user's own objective: a bare function of the log-weights.

MEANS = {
    "method": lambda log_w: log_w.mean(),
    "sum over K": lambda w: w.sum() / w.shape[0],
    "product": lambda w: jnp.vdot(w, jnp.full(w.shape, 1.0 / w.shape[0], w.dtype)),
}
OTHERS = {
    "max": jnp.max,
    "median": jnp.median,
    "clipped mean": lambda w: jnp.mean(jnp.clip(w, -9.0, 9.0)),
    "sum": jnp.sum,
    "weighted mean": lambda w: jnp.average(w, weights=jnp.arange(1.0, w.shape[0] + 1.0)),
    "logsumexp": jax.nn.logsumexp,
    "a third of the sum": lambda w: jnp.sum(w) / 3,
    "the first three": lambda w: jnp.mean(w[:3]),
    "shifted mean": lambda w: jnp.mean(w) + 1.0,
    "a mean with a step": lambda w: jnp.mean(w) + 0.5 * jnp.sum(w > 0.2),
}
BITS, LAM = families.bernoulli(2), {"logits": np.array([0.4, -0.9])}


def bits_bound(rule, objective, num_samples=2):
    """(value, gradient in lam) of a bare bound on two bits."""

    def bound(lam):
        return vj.expect(
            jax.random.key(0),
            BITS,
            lam,
            lambda s: jnp.sum(s.z) ** 2 - s.log_q,
            rule=rule,
            objective=objective,
            num_samples=num_samples,
        )[0]

    return jax.jit(jax.value_and_grad(bound))(LAM)


def estimator_of(make=problems.normal, **settings):
    problem = cases.cached_problem(make)
    return vj.estimator(problem.model, problem.guide, num_data=problems.N, **settings)


def estimate(estimator, make=problems.normal):
    """One estimate of a minibatch, at generic parameters."""
    params = problems.generic(jax.eval_shape(estimator.init_params, jax.random.key(0)))
    state = estimator.init(jax.random.key(0), params)
    batch = problems.batch_of(cases.cached_problem(make))
    return jax.jit(estimator.estimate)(jax.random.key(1), params, state, batch)[0]


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_of_ones_own_is_the_elbo(name, x64):
    """Linear, hence taken by the rules that need the ELBO, bare and through an estimator, with the
    ELBO's numbers; and refused where the ELBO is.
    """
    mean = MEANS[name]
    assert as_objective(mean).linear
    for rule in (enumerated(), muprop()):
        assert_close(bits_bound(rule, mean), bits_bound(rule, elbo), tolerance=1e-15)
    ours, theirs = (
        estimate(
            estimator_of(problems.binary, objective=objective, rules=enumerated()), problems.binary
        )
        for objective in (mean, elbo)
    )
    assert_close(ours, theirs, tolerance=1e-15)

    refused = "linear in the log-weights, where this rule has nothing to estimate.*iwae"
    with pytest.raises(ValueError, match=refused):
        bits_bound(wake(), mean)
    with pytest.raises(ValueError, match=refused):
        estimator_of(problems.binary, objective=mean, rules=wake(), num_samples=2)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_mean_is_not_taken_for_linear(name):
    """The clipped mean is the mean at every point near 0, and the sum is linear: neither is it."""
    other = OTHERS[name]
    assert not as_objective(other).linear
    for rule in (enumerated(), muprop()):
        with pytest.raises(ValueError, match="is not linear in the log-weights"):
            bits_bound(rule, other)
    with pytest.raises(ValueError, match="is not linear in the log-weights"):
        estimator_of(problems.binary, objective=other, rules=enumerated())
    wake().check(BITS, as_objective(other), 2, None)


# Bounds from above.

FROM_ABOVE = [cubo(2.0), exp_cubo(2.0, reference=-1.0)]


@pytest.mark.parametrize("objective", FROM_ABOVE, ids=lambda objective: objective.name)
def test_a_bound_from_above_moves_phi_alone(objective, x64):
    """Refused where it would move theta; with theta held its gradient is exactly zero; inside
    `split` theta's gradient is the other estimator's.
    """
    settings = {"objective": objective, "rules": pathwise(), "num_samples": 2}
    with pytest.raises(ValueError, match=r"from above.*Write learn_theta=False.*split\(theta="):
        estimator_of(**settings)

    held = estimator_of(**settings, learn_theta=False)
    alone = estimate(held).grads
    for leaf in jax.tree.leaves(alone.theta):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))
    assert all(float(jnp.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(alone.phi))

    lower = estimator_of(rules=pathwise(), num_samples=2)
    both, below = estimate(vj.split(theta=lower, phi=held)).grads, estimate(lower).grads
    assert_close(both.theta, below.theta, tolerance=1e-14)
    assert_close(both.phi, alone.phi, tolerance=1e-14)
    assert all(float(jnp.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(both.theta))


@pytest.mark.parametrize("objective", FROM_ABOVE, ids=lambda objective: objective.name)
def test_a_bound_from_above_needs_no_setting_where_nothing_is_learned(objective):
    model = models.latent_model(
        lambda key: (), lambda theta, z, x: -jnp.sum(z**2) - jnp.sum((x - z) ** 2)
    )
    guide = guides.per_datapoint(families.diag_normal(1), problems.N)
    vj.estimator(
        model, guide, objective=objective, rules=pathwise(), num_samples=2, num_data=problems.N
    )
