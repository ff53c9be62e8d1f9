"""Reweighted wake-sleep, and what multi-sample rules refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased
from multisample import BETAS, DOUBLY, GENERALIZED, PATHWISE, SCORE, STICKING, WAKE, WAKE_PATHS
from multisample import precise as precise

import vijax as vj
from vijax import baselines, objectives, path_weights, rules
from vijax.families import FiniteSupport, bernoulli, diag_normal, full_normal, need, sample

# Sleep
# ------------------------------------------------------------------------------------------


def dream_model():
    """Two hidden bits with their own prior, two visible ones: everything can be enumerated."""
    hidden = bernoulli(2)

    def likelihood(theta, z):
        return {"logits": theta["bias"] + theta["weights"] @ z}

    def log_joint(theta, z, x):
        return hidden.log_prob({"logits": theta["prior"]}, z) + hidden.log_prob(
            likelihood(theta, z), x
        )

    def simulate(key, theta, num_data):
        key_z, key_x = jax.random.split(key)
        z = jax.vmap(lambda k: sample(k, hidden, {"logits": theta["prior"]}))(
            jax.random.split(key_z, num_data)
        )
        x = jax.vmap(lambda k, z: sample(k, hidden, likelihood(theta, z)))(
            jax.random.split(key_x, num_data), z
        )
        return z, x

    def init(key):
        return {
            "prior": jnp.array([0.3, -0.5]),
            "bias": jnp.array([0.1, 0.4]),
            "weights": jnp.array([[1.0, -1.0], [0.5, 2.0]]),
        }

    model = vj.models.latent_model(init, log_joint, simulate=simulate)
    encoder = (
        lambda key: {"a": 0.3 * jnp.ones((2, 2)), "b": jnp.array([0.2, -0.1])},
        lambda phi, x: phi["a"] @ x + phi["b"],
    )
    return model, vj.guides.amortized(hidden, encoder)


def dreams():
    model, guide = dream_model()
    sleep = vj.sleep(model, guide, num_samples=2, num_data=6)
    params = sleep.init_params(jax.random.key(0))
    batch = vj.Batch(jnp.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), jnp.arange(3))
    states = need(bernoulli(2), FiniteSupport).values()

    def exact_loss(phi):
        def one(z, x):
            log_p = model.log_local(params.theta, None, z, x)
            return -6.0 * jnp.exp(log_p) * bernoulli(2).log_prob(guide.at(phi, x), z)

        return jnp.sum(jax.vmap(lambda z: jax.vmap(lambda x: one(z, x))(states))(states))

    return model, guide, sleep, params, batch, exact_loss


def test_sleep_is_unbiased_for_the_dreamt_divergence():
    """Row 56: the gradient of -N E_p[log q(z; x)], over all sixteen (z, x); theta's gradient is
    zero.
    """
    _, _, sleep, params, batch, exact_loss = dreams()
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.jit(jax.vmap(lambda key: sleep.estimate(key, params, (), batch)[0]))(keys)
    assert_unbiased(
        (draws.grads.phi, draws.loss), (jax.grad(exact_loss)(params.phi), exact_loss(params.phi))
    )
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(draws.grads.theta))
    halved = jax.tree.map(lambda leaf: 0.5 * leaf, jax.grad(exact_loss)(params.phi))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(draws.grads.phi, halved)


def test_reweighted_wake_sleep_is_a_split():
    """Identity 31: theta's gradient is bit for bit the wake phase's, phi's the sleep phase's."""
    model, guide, sleep, params, batch, _ = dreams()
    wake = vj.estimator(
        model, guide, objective=objectives.iwae, rules=WAKE, num_samples=4, num_data=6
    )
    both = vj.split(theta=wake, phi=sleep)
    joint = both.init_params(jax.random.key(0))
    key, state = jax.random.key(2), both.init(jax.random.key(0), joint)
    ours, _ = jax.jit(both.estimate)(key, joint, state, batch)
    awake, _ = jax.jit(wake.estimate)(
        key, wake.init_params(jax.random.key(0)), state["theta"], batch
    )
    asleep, _ = jax.jit(sleep.estimate)(key, params, (), batch)
    jax.tree.map(np.testing.assert_array_equal, ours.grads.phi, asleep.grads.phi)
    jax.tree.map(np.testing.assert_array_equal, ours.grads.theta, awake.grads.theta)


# Legality
# ------------------------------------------------------------------------------------------


def check(rule, family, objective, num_samples, prior=None):
    return lambda: rule.check(family, objective, num_samples, prior)


ILLEGAL = {
    "VIMCO with one sample": (check(SCORE, bernoulli(2), objectives.iwae, 1), "at least 2"),
    "jackknife of one sample": (
        check(PATHWISE, diag_normal(2), objectives.jackknife(), 1),
        "at least 2",
    ),
    "chi bound of one sample": (
        check(PATHWISE, diag_normal(2), objectives.cubo(), 1),
        "at least 2",
    ),
    "vector objective": (check(PATHWISE, diag_normal(2), lambda log_w: log_w, 2), "one number"),
    "wake with the ELBO": (check(WAKE, bernoulli(2), objectives.elbo, 4), "linear"),
    "wake paths with the ELBO": (check(WAKE_PATHS, diag_normal(2), objectives.elbo, 4), "linear"),
    "wake paths of one sample": (
        check(WAKE_PATHS, diag_normal(2), objectives.iwae, 1),
        "at least 2",
    ),
    "tail-adaptive IWAE": (
        check(
            rules.doubly_reparameterized(path_weights.tail_adaptive()),
            diag_normal(2),
            objectives.iwae,
            4,
        ),
        "not linear",
    ),
    "paths on bits": (check(STICKING, bernoulli(2), objectives.iwae, 2), "sample"),
    "covariance of another objective": (
        check(rules.covariance(BETAS), bernoulli(2), objectives.iwae, 2),
        "thermodynamic",
    ),
    "covariance of other betas": (
        check(rules.covariance(BETAS), bernoulli(2), objectives.thermodynamic((0, 0.5, 1)), 2),
        "same betas",
    ),
    "no prior": (check(GENERALIZED, diag_normal(2), objectives.iwae, 2), "states no prior"),
    "another prior": (
        check(GENERALIZED, diag_normal(2), objectives.iwae, 2, full_normal(2)),
        "prior_family",
    ),
    "prior without inverse": (
        check(
            rules.generalized_doubly_reparameterized(bernoulli(2)),
            diag_normal(2),
            objectives.iwae,
            2,
            bernoulli(2),
        ),
        "no inverse",
    ),
    "betas out of order": (lambda: objectives.thermodynamic((0.0, 0.7, 0.5, 1.0)), "increasing"),
    "chi bound of order 1": (lambda: objectives.cubo(1.0), "above 1"),
    "gamma above 1": (lambda: baselines.ovis(1.5), "between 0"),
    "alpha above 1": (lambda: path_weights.interpolated(1.5), "between 0"),
    "positive beta": (lambda: path_weights.tail_adaptive(1.0), "must not be positive"),
    "sleep of a table": (
        lambda: vj.sleep(dream_model()[0], vj.guides.per_datapoint(bernoulli(2), 6), num_data=6),
        "no row for a dreamt",
    ),
    "sleep without dreams": (
        lambda: vj.sleep(dream_model()[0]._replace(simulate=None), dream_model()[1], num_data=6),
        "cannot dream",
    ),
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_what_would_be_silently_wrong_is_refused(case):
    build, message = ILLEGAL[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_rules_say_whether_they_are_biased():
    assert not any(
        rule.requires.unbiased
        for rule in (
            WAKE,
            rules.covariance(BETAS),
            rules.score(baselines.ovis(0.5)),
            *(
                rules.doubly_reparameterized(w)
                for w in (
                    path_weights.sticking(),
                    path_weights.wake(),
                    path_weights.interpolated(0.5),
                    path_weights.tail_adaptive(),
                )
            ),
        )
    )
    assert all(
        rule.requires.unbiased
        for rule in (
            DOUBLY,
            GENERALIZED,
            rules.score(baselines.ovis(0.0)),
            rules.score(baselines.leave_one_out(objectives.iwae)),
        )
    )
