"""EM is coordinate ascent on the bound: exact q-step, then a theta-step, and the evidence never
falls.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from test_fits import mixture_problem

import vijax as vj

pytestmark = pytest.mark.usefixtures("x64")


def at_params(estimator, theta, phi, batch):
    """The enumerated estimate, which has no noise."""
    return estimator.estimate(
        jax.random.key(0), vj.Params(theta, {"z": phi}, {"z": ()}), {"z": ()}, batch
    )[0]


def assert_ascent(x, theta, estimator, q_step, *, num_rounds=8):
    """EM as coordinate ascent: a q-step closes the gap, a theta-step (numpy's closed form) raises
    the bound.

    After the q-step the bound is the evidence and theta's gradient is the evidence's; after the
    theta-step it vanishes.
    """
    batch = vj.Batch(jnp.asarray(x), jnp.arange(len(x)))
    estimate = jax.jit(lambda theta, phi: at_params(estimator, theta, phi, batch))
    evidences = []
    for _ in range(num_rounds):
        phi = q_step(theta)
        evidences.append(oracles.mixture_log_evidence(x, theta).sum())
        assert abs(-estimate(theta, phi).loss - evidences[-1]) < 1e-9, (
            "after the q-step the bound is not the evidence"
        )
        theta = oracles.mixture_em_step(x, theta)
        after = estimate(theta, phi)
        assert -after.loss > evidences[-1], "the theta-step did not raise the bound"
        assert (
            max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(after.grads.theta)) < 1e-9
        ), "not its maximum"
    assert np.all(np.diff(evidences) > 0.0), f"the evidence fell: {evidences}"


def test_em_is_coordinate_ascent_on_the_bound():
    x, theta, model, estimator = mixture_problem()
    assert_ascent(
        x, theta, estimator, jax.jit(lambda theta: jax.vmap(model.posterior, (None, 0))(theta, x))
    )


def test_gradient_steps_in_theta_raise_the_evidence_too():
    """Generalised EM: exact q, then one small step along the enumerated bound's gradient."""
    x, theta, model, estimator = mixture_problem()
    batch, theta = vj.Batch(jnp.asarray(x), jnp.arange(60)), jax.tree.map(jnp.asarray, theta)

    @jax.jit
    def round_of(theta):
        phi = jax.vmap(model.posterior, (None, 0))(theta, x)
        evidence, slope = jax.value_and_grad(
            lambda t: jnp.sum(jax.vmap(model.log_evidence, (None, 0))(t, x))
        )(theta)
        grads = at_params(estimator, theta, phi, batch).grads
        fisher = jax.tree.map(
            lambda g, s: jnp.max(jnp.abs(g + s)), grads.theta, slope
        )  # Fisher's identity
        return jax.tree.map(lambda t, g: t - 0.005 * g, theta, grads.theta), evidence, fisher

    evidences = []
    for _ in range(20):
        theta, evidence, fisher = round_of(theta)
        evidences.append(float(evidence))
        assert max(jax.tree.leaves(fisher)) < 1e-10
    assert np.all(np.diff(evidences) > 0.0)


def test_ascent_catches_responsibilities_without_the_mixing_weights():
    x, theta, model, estimator = mixture_problem()
    flat = lambda theta: theta | {"logits": jnp.zeros(3)}  # noqa: E731
    with pytest.raises(AssertionError, match="not the evidence"):
        assert_ascent(
            x,
            theta,
            estimator,
            jax.jit(lambda theta: jax.vmap(model.posterior, (None, 0))(flat(theta), x)),
        )
