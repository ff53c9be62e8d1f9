"""MuProp with the baselines of the score function: exact means over all draws, what the baseline is
fitted to, where a learned scale comes to rest.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from discrete_noise import (
    B3,
    BERNOULLI_LOGITS,
    C4,
    CATEGORICAL_LOGITS,
    THETA,
    assert_equal,
    enumerated_moments,
    exact_rows,
    nonlinear,
    one_draw,
    perturbed,
    run,
    states_noise,
    support_of,
)

import vijax as vj
from vijax import families
from vijax.baselines import learned, leave_one_out, moving_average, ovis, ovis_monte_carlo
from vijax.families import log_probs
from vijax.rules import double_control_variates, muprop

NETWORK = learned(
    (
        lambda key: {"slope": jnp.ones(()), "bias": jnp.zeros(())},
        lambda c, x: c["slope"] * x + c["bias"],
    )
)
STATE = {"sum": jnp.asarray(0.3), "weight": jnp.asarray(0.2)}
CASES = {
    "learned": (muprop(baseline=NETWORK), 1, {"x": jnp.asarray(0.7)}),
    "learned_scale": (muprop(baseline=NETWORK, learn_scale=True), 2, {"x": jnp.asarray(0.7)}),
    "moving_average": (muprop(baseline=moving_average(0.9)), 2, {"state": STATE}),
    "leave_one_out": (muprop(baseline=leave_one_out()), 2, {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", [B3, C4], ids=lambda family: family.name)
def test_any_baseline_leaves_the_mean_exact(x64, family, name):
    rule, num_samples, given = CASES[name]
    logits = BERNOULLI_LOGITS if family is B3 else CATEGORICAL_LOGITS
    mean, _ = enumerated_moments(rule, family, logits, num_samples=num_samples, **given)
    assert_equal(mean, exact_rows(family, logits, num_samples=num_samples))


def test_a_baseline_that_knows_the_sample_is_caught(x64):
    """Planted: the mean of all samples, a sample's own among them, stands in."""
    seen = leave_one_out()._replace(
        signal=lambda objective, log_w, *rest: (log_w - jnp.mean(log_w)) / log_w.shape[0]
    )
    mean, _ = enumerated_moments(muprop(baseline=seen), B3, BERNOULLI_LOGITS, num_samples=2)
    with pytest.raises(AssertionError):
        assert_equal(mean, exact_rows(B3, BERNOULLI_LOGITS, num_samples=2))


def residual(z, logits, scale):
    """f - log q less `scale` times its expansion at E[z], as published."""

    def value(z):
        return nonlinear(jnp.asarray(THETA), z) - B3.log_prob({"logits": logits}, z)

    at = jax.nn.sigmoid(logits)
    level, slope = jax.value_and_grad(value)(at)
    return value(z) - scale * (level + slope @ (z - at))


def test_the_baseline_is_fitted_to_the_residual_and_the_scale_to_the_variance(x64):
    """Least squares in the network's parameters, |g|^2 in the scale, neither in the other; the
    residual is remembered.
    """
    logits, x = jnp.asarray(BERNOULLI_LOGITS[0]), jnp.asarray(0.7)
    rule, draw = muprop(baseline=NETWORK, learn_scale=True), jnp.array([1.0, 0.0, 1.0])
    control = perturbed(rule)
    gradient = one_draw(rule, B3, noise=1.0 - draw[None], x=x)
    bar = gradient(jnp.asarray(THETA), logits, control, jax.random.key(0))[2]

    def loss(baseline):
        return jnp.square(
            baseline["slope"] * x + baseline["bias"] - residual(draw, logits, control["scale"])
        )

    assert_equal(bar["baseline"], jax.tree.map(jnp.negative, jax.grad(loss)(control["baseline"])))

    def squared(scale):
        moved = control | {"scale": scale}
        return jnp.sum(
            jnp.square(gradient(jnp.asarray(THETA), logits, moved, jax.random.key(0))[1])
        )

    step = 1e-5
    difference = (squared(control["scale"] + step) - squared(control["scale"] - step)) / (
        2.0 * step
    )
    np.testing.assert_allclose(-bar["scale"], difference, rtol=1e-6)

    averaged = muprop(baseline=moving_average(0.9))
    _, aux = vj.expect(
        jax.random.key(0),
        B3._replace(noise=lambda key, count: 1.0 - draw[None]),
        {"logits": logits},
        lambda s: nonlinear(jnp.asarray(THETA), s.z) - s.log_q,
        rule=averaged,
        state=STATE,
    )
    new = averaged.update(STATE, aux.stats)
    np.testing.assert_allclose(
        new["sum"], 0.9 * STATE["sum"] + 0.1 * residual(draw, logits, 1.0), rtol=1e-12
    )


def test_the_best_constant_lowers_the_variance(x64):
    """One bit: there is a baseline, between the two residuals, that leaves no variance at all."""
    family, logits = families.bernoulli(1), jnp.array([0.8])
    p = float(jax.nn.sigmoid(logits[0]))

    def value(z):
        return nonlinear(jnp.asarray(THETA), z) - family.log_prob({"logits": logits}, z)

    level, slope = jax.value_and_grad(value)(jnp.array([p]))
    zero, one = (value(jnp.array([b])) - level - slope[0] * (b - p) for b in (0.0, 1.0))
    # (r1 - c)(1 - p) with chance p against (r0 - c)(-p): equal where c = (1 - p) r1 + p r0.
    constant = learned((lambda key: jnp.zeros(()), lambda control, x: control))
    variances = {}
    for name, at in {"best": (1.0 - p) * one + p * zero, "none": 0.0}.items():
        fixed = constant._replace(init=lambda key, at=at: jnp.asarray(at))
        rule = muprop(baseline=fixed)
        draws = [
            one_draw(rule, family, noise=jnp.array([[1.0 - b]]), x=jnp.zeros(()))(
                jnp.asarray(THETA), logits, rule.init(jax.random.key(0)), jax.random.key(0)
            )[1][0]
            for b in (0.0, 1.0)
        ]
        variances[name] = p * (1.0 - p) * float(draws[1] - draws[0]) ** 2
    assert variances["best"] < 1e-20 < 1e-6 < variances["none"]


def test_biased_baselines_and_those_with_draws_of_their_own():
    assert muprop(baseline=leave_one_out()).requires.min_samples == 2
    assert (
        not muprop(baseline=ovis(1.0)).requires.unbiased
        and muprop(baseline=NETWORK).requires.unbiased
    )
    with pytest.raises(ValueError, match=r"draws of its own. Write baselines.leave_one_out"):
        muprop(baseline=ovis_monte_carlo(2))


@pytest.mark.parametrize(
    "rule", [muprop(learn_scale=True), double_control_variates()], ids=lambda rule: rule.name
)
def test_the_learned_scale_is_at_rest_where_the_enumerated_variance_is_least(x64, rule):
    """E|g|^2 is a parabola in the scale: through three points, its vertex is where the mean slope
    vanishes.
    """
    noise, index = (jnp.asarray(part) for part in states_noise(B3, 2))
    logits, start = jnp.asarray(BERNOULLI_LOGITS[0]), rule.init(jax.random.key(0))
    log_q = log_probs(B3, {"logits": logits}, support_of(B3))
    weights = jnp.exp(jnp.sum(log_q[index], axis=1))

    def at(scale):
        def one(noise):
            gradient = one_draw(rule, B3, num_samples=2, noise=noise)
            return gradient(
                jnp.asarray(THETA), logits, start | {"scale": scale}, jax.random.key(0)
            )[1:]

        draws, slopes = jax.vmap(one)(noise)
        return weights @ jnp.sum(jnp.square(draws), axis=1), weights @ slopes["scale"]

    low, middle, high = (run(at, jnp.asarray(scale))[0] for scale in (0.0, 0.5, 1.0))
    curvature = 4.0 * (low - 2.0 * middle + high)
    best = 0.5 - (high - low) / curvature
    square, slope = run(at, jnp.asarray(best))
    assert square < min(low, middle, high) and abs(slope) < 1e-9 * curvature
    assert run(at, jnp.asarray(best - 0.1))[1] > 0.0 > run(at, jnp.asarray(best + 0.1))[1]
