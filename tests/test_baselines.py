"""Baselines: the signal as an identity, use before update, and what a learned one descends."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_unbiased, compiled

import vijax as vj
from vijax import baselines, families, objectives, rules
from vijax.baselines import learned, leave_one_out, moving_average, none
from vijax.objectives import elbo, iwae, renyi

LOG_W = np.array([0.3, -1.2, 2.0])
LOGIT, VALUES = 0.4, np.array([1.0, 3.0])  # one bit, f(0) and f(1)
PROB = 1.0 / (1.0 + np.exp(-LOGIT))


def signal(baseline, objective, log_w, state=(), control=(), x=None):
    return baseline.signal(objective, jnp.asarray(log_w), control, state, x)


def test_leave_one_out_is_rloo_and_vimco(x64):
    """Identities 3 and 14: K/(K-1) times the batch-mean baseline; R minus R with the geometric mean
    swapped in.
    """
    assert_close(
        signal(leave_one_out(), elbo, LOG_W), (LOG_W - LOG_W.mean()) / 2.0, tolerance=1e-15
    )
    others = (LOG_W.sum() - LOG_W) / 2.0
    swapped = [
        np.log(np.exp(np.where(np.arange(3) == k, others[k], LOG_W)).mean()) for k in range(3)
    ]
    assert_close(
        signal(leave_one_out(), iwae, LOG_W),
        np.log(np.exp(LOG_W).mean()) - swapped,
        tolerance=1e-14,
    )
    assert_close(signal(leave_one_out(), iwae, np.full(3, 1.7)), np.zeros(3), tolerance=1e-15)


@pytest.mark.parametrize("objective", [elbo, iwae, renyi(2.0)])
def test_leave_one_out_ignores_constants_and_the_order(objective, x64):
    """Identities 16 and 32."""
    plain = signal(leave_one_out(), objective, LOG_W)
    assert_close(signal(leave_one_out(), objective, LOG_W + 50.0), plain, tolerance=1e-13)
    assert_close(signal(leave_one_out(), objective, LOG_W[::-1]), plain[::-1], tolerance=1e-15)


def test_no_baseline(x64):
    assert_close(signal(none(), elbo, LOG_W), LOG_W / 3.0, tolerance=1e-15)
    assert_close(
        signal(none(), iwae, LOG_W), np.full(3, np.log(np.exp(LOG_W).mean())), tolerance=1e-15
    )


def expected_gradient(update_first):
    """Exact mean of the gradient of E[f(b)] in the logit over the draw of one bit, with a running
    mean of decay 0.9.
    """
    baseline, total = moving_average(0.9), 0.0
    state = {"sum": jnp.asarray(0.9 * 2.0), "weight": jnp.asarray(0.9)}
    for bit, prob in ((0, 1.0 - PROB), (1, PROB)):
        used = baseline.update(state, jnp.asarray(VALUES[bit])) if update_first else state
        total += prob * signal(baseline, elbo, VALUES[bit : bit + 1], used)[0] * (bit - PROB)
    return total


def test_moving_average_is_used_then_updated(x64):
    """Identity 5: the other order scales the mean gradient, here by 1 - (1 - decay) / (new
    weight).
    """
    exact = (VALUES[1] - VALUES[0]) * PROB * (1.0 - PROB)
    assert_close(expected_gradient(update_first=False), exact, tolerance=1e-15)
    assert_close(expected_gradient(update_first=True), exact * (1.0 - 0.1 / 0.91), tolerance=1e-15)
    with pytest.raises(AssertionError, match="differs by"):
        assert_close(expected_gradient(update_first=True), exact, tolerance=1e-3)


def test_the_rule_uses_the_state_that_it_was_given(x64):
    """The estimate depends on the incoming mean only, and the outgoing one is its blend with the
    value.
    """
    estimator, params, state = cases.build(cases.Case(cases.problems.binary, cases.MEAN))
    batch = cases.problems.batch_of(cases.cached_problem(cases.problems.binary))
    estimate = jax.jit(estimator.estimate)
    result, after = estimate(jax.random.key(0), params, state, batch)
    mean_value = -result.loss / cases.problems.N
    assert_close(after["z"]["sum"], 0.9 * state["z"]["sum"] + 0.1 * mean_value, tolerance=1e-14)
    assert_close(after["z"]["weight"], 0.9 * state["z"]["weight"] + 0.1, tolerance=1e-15)
    other = jax.tree.map(lambda leaf: leaf * 0.0, state)
    moved = estimate(jax.random.key(0), params, other, batch)[0]
    moved_bias, bias = (found.grads.phi["z"]["bias"] for found in (moved, result))
    assert abs(moved_bias - bias).max() > 1e-3


def test_moving_average_survives_a_bad_value():
    state = {"sum": jnp.ones(()), "weight": jnp.ones(())}
    assert moving_average().update(state, jnp.asarray(jnp.nan)) == state


@pytest.mark.parametrize("objective", [elbo, iwae])
def test_learned_baseline_descends_its_squared_error(objective, x64):
    """Gradient of `control` against finite differences of (c - value)^2, samples fixed; a step
    along it comes nearer.
    """
    family, x, key = vj.families.bernoulli(2), jnp.asarray(1.5), jax.random.key(3)
    rule = vj.rules.score(learned((lambda key: {"w": jnp.ones(())}, lambda c, x: c["w"] * x)))

    def bound(control):
        integrand = lambda s: jnp.sum(s.z) ** 2 - s.log_q  # noqa: E731
        lam = {"logits": jnp.array([0.3, -0.2])}
        return vj.expect(
            key,
            family,
            lam,
            integrand,
            rule=rule,
            objective=objective,
            num_samples=3,
            control=control,
            x=x,
        )[0]

    control = {"w": jnp.asarray(0.7)}
    value, gradient = jax.value_and_grad(lambda c: -bound(c))(control)
    # Value is minus the bound
    assert_close(gradient["w"], 2.0 * (0.7 * 1.5 + value) * 1.5, tolerance=1e-13)
    nearer = 0.7 - 0.05 * gradient["w"]
    assert abs(nearer * 1.5 + value) < abs(0.7 * 1.5 + value)


@pytest.mark.parametrize("num_samples", [2, 4])
@pytest.mark.parametrize(
    "baseline",
    [
        baselines.none(),
        baselines.leave_one_out(),
        baselines.leave_one_out(objectives.iwae),
        baselines.moving_average(),
        baselines.ovis(0.0),
        baselines.ovis_monte_carlo(2),
    ],
    ids=lambda baseline: baseline.name,
)
def test_log_weights_of_minus_infinity_make_no_finite_signal_infinite(baseline, num_samples):
    """The mean weight is finite where samples have density zero, here 4 in 10, and its expectation
    under any q is the evidence: the gradient is zero in the mean, and finite in every draw.
    """
    family = families.diag_normal(1)
    lam = {"loc": jnp.array([0.3]), "log_scale": jnp.array([0.2])}
    rule = rules.score(baseline)
    evidence = vj.Objective("mean weight", lambda log_w: jnp.mean(jnp.exp(log_w)), smooth=True)

    def log_w(s):
        inside = jnp.where(s.z[0] > 0.0, jnp.sum(-0.5 * (s.z - 1.0) ** 2), -jnp.inf)
        return inside - s.log_q

    def value(lam, key):
        given = dict(rule=rule, objective=evidence, num_samples=num_samples)
        return vj.expect(key, family, lam, log_w, state=rule.init_state(), **given)[0]

    keys = jax.random.split(jax.random.key(3), 10_000)
    draws = compiled(jax.vmap(jax.grad(value), in_axes=(None, 0)), lam, keys)
    assert_unbiased(draws, jax.tree.map(jnp.zeros_like, lam))
