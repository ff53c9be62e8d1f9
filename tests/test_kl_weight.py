"""The annealed objective: exact answers, linearity in the weight, schedules kept in the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_close, assert_same_bits, assert_unbiased

import vijax as vj
from vijax import families, guides, models, objectives, rules
from vijax.testing import gradient_draws

N = 3
X = jnp.array([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1]])
WHOLE = vj.Batch(X, jnp.arange(N))
MODEL = models.probabilistic_pca(2, 1, prior_family=families.diag_normal)
GUIDE = guides.per_datapoint(families.diag_normal(1), N)
RULES = {
    "pathwise": rules.pathwise(),
    "doubly_reparameterized": rules.doubly_reparameterized(),
    "score": rules.score(),
    "closed_form_kl": rules.closed_form_kl(rules.pathwise()),
    "closed_form_entropy": rules.closed_form_entropy(rules.score()),
    "generalized": rules.generalized_doubly_reparameterized(),
}


def build(rule, weight, **settings):
    given = dict(rules=rule, num_samples=2, num_data=N, kl_weight=weight) | settings
    return vj.estimator(MODEL, GUIDE, **given)


def start():
    params = build(rules.pathwise(), 1.0).init_params(jax.random.key(0))
    moved = {
        "loc": jnp.array([[0.4], [-0.2], [1.0]]),
        "log_scale": jnp.array([[-0.5], [0.1], [-1]]),
    }
    return params._replace(phi={"z": moved})


def exact_loss(params, weight):
    """Minus the expected log-likelihood plus `weight` times the KL, both in closed form."""
    theta, lam = params.theta, params.phi["z"]
    mean, variance = lam["loc"], jnp.exp(2.0 * lam["log_scale"])

    def log_lik(z, x):
        return MODEL.log_local(theta, None, z, x) - jnp.sum(vj.densities.standard_normal(z))

    def one(mean, variance, x):
        return log_lik(mean, x) + 0.5 * jnp.vdot(jnp.diag(jax.hessian(log_lik)(mean, x)), variance)

    expected = jnp.sum(jax.vmap(one)(mean, variance, X))
    kl = 0.5 * jnp.sum(variance + mean**2 - 1.0 - jnp.log(variance))
    return -expected + weight * kl


@pytest.mark.parametrize("name", RULES)
def test_the_annealed_gradient_is_unbiased(name, x64):
    """At weight 0.3; that of weight 1 must be caught."""
    params = start()
    loss, grads = jax.value_and_grad(exact_loss)(params, 0.3)
    est = build(RULES[name], 0.3)
    seen, _ = gradient_draws(
        jax.random.key(1), est, params, est.init(jax.random.key(2), params), WHOLE, num_draws=4000
    )
    assert_unbiased((seen.loss, seen.grads.theta, seen.grads.phi), (loss, grads.theta, grads.phi))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(seen.grads.phi, jax.grad(exact_loss)(params, 1.0).phi)


@pytest.mark.parametrize("name", RULES)
def test_the_bound_is_linear_in_the_weight(name, x64):
    params = start()

    def at(weight):
        est = build(RULES[name], weight)
        state = est.init(jax.random.key(2), params)
        seen, _ = est.estimate(jax.random.key(3), params, state, WHOLE)
        return seen.loss, seen.grads.phi

    mixed = jax.tree.map(lambda one, none: 0.3 * one + 0.7 * none, at(1.0), at(0.0))
    assert_close(at(0.3), mixed, tolerance=1e-10)


def test_a_global_latent_is_weighed_too(x64):
    model = models.bayes_model(
        lambda theta, w: jnp.sum(vj.densities.standard_normal(w)),
        lambda theta, w, x: vj.densities.normal(x, w[0], 0.0),
    )
    guide, key = guides.shared(families.diag_normal(1)), jax.random.key(3)
    batch = vj.Batch(X[:, 0], jnp.arange(N))

    def loss(weight):
        est = vj.estimator(
            model, guide, rules=rules.pathwise(), num_samples=2, num_data=N, kl_weight=weight
        )
        lam = {"loc": jnp.ones(1), "log_scale": jnp.zeros(1)}
        params = est.init_params(jax.random.key(0))._replace(phi={"w": lam})
        return est.estimate(key, params, est.init(key, params), batch)[0].loss

    np.testing.assert_allclose(loss(0.3), 0.3 * loss(1.0) + 0.7 * loss(0.0), rtol=1e-12)
    assert abs(loss(0.3) - loss(1.0)) > 0.01


def test_a_schedule_is_counted_in_the_state_and_survives_a_resumed_run():
    est = build(rules.pathwise(), optax.linear_schedule(0.0, 1.0, 10), objective=objectives.iwae)
    params, descent = start(), vj.descent(est, optax.adam(0.01))
    state = est.init(jax.random.key(1), params)
    for step, weight in ((0, 0.0), (5, 0.5), (20, 1.0)):
        fixed = build(rules.pathwise(), weight, objective=objectives.iwae)
        at = {**state, "step": jnp.int32(step)}
        scheduled, after = est.estimate(jax.random.key(2), params, at, WHOLE)
        same, _ = fixed.estimate(jax.random.key(2), params, state, WHOLE)
        np.testing.assert_allclose(scheduled.loss, same.loss, rtol=1e-6)
        assert int(after["step"]) == step + 1
    whole = vj.fit(jax.random.key(4), descent, params, X, num_steps=12)
    first = vj.fit(jax.random.key(4), descent, params, X, num_steps=5)
    second = vj.fit(jax.random.key(4), descent, None, X, num_steps=7, resume=first)
    assert_same_bits(whole.params, second.params)
    assert int(second.state.estimator["step"]) == 12


def test_a_weight_that_means_nothing_is_refused():
    for weight in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="number of at least 0"):
            build(rules.pathwise(), weight)
    blind = models.latent_model(lambda key: (), lambda theta, z, x: -jnp.sum((z - x[:1]) ** 2))
    with pytest.raises(ValueError, match="states no prior of its local latent"):
        vj.estimator(blind, GUIDE, rules=rules.pathwise(), num_data=N, kl_weight=0.5)
