"""Noise plugs in the rule that doubly reparameterizes the prior as well."""

import jax
import numpy as np
import pytest
from checks import assert_unbiased, compiled
from multisample import exact_gradient, line, line_point, surrogate_of
from multisample import precise as precise

from vijax import noise, objectives
from vijax.families import diag_normal
from vijax.objectives import elbo
from vijax.rules import generalized_doubly_reparameterized

PLUGS = {"antithetic": noise.antithetic(), "sobol": noise.sobol()}


def draws(rule, num_samples, num_draws, seed=0):
    """Gradients in (theta, lam), leaves [S, ...]: theta holds the prior's own parameters."""
    (theta, lam), keys = line_point(), jax.random.split(jax.random.key(seed), num_draws)
    grad = jax.grad(surrogate_of(line(8), rule, elbo, num_samples), argnums=(0, 1))
    return compiled(jax.vmap(lambda key: grad(theta, lam, None, key)), keys)


@pytest.mark.parametrize("name", PLUGS)
def test_unbiased_in_the_prior_and_in_q(name):
    seen = draws(generalized_doubly_reparameterized(noise=PLUGS[name]), 4, 4000)
    exact = exact_gradient(line(48), elbo, 1, *line_point())
    assert_unbiased(seen, exact)
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(seen, jax.tree.map(lambda leaf: 0.7 * leaf, exact))


def test_the_prior_mean_has_no_variance_under_mirrored_noise():
    """Its path is affine in the noise for normal q and p: samples and mirror images cancel;
    independent ones do not.
    """
    spread = {
        name: draws(generalized_doubly_reparameterized(**settings), 2, 100)[0]["prior"]["loc"].std()
        for name, settings in {"antithetic": {"noise": PLUGS["antithetic"]}, "iid": {}}.items()
    }
    assert spread["antithetic"] < 1e-12 < 0.1 < spread["iid"]


def test_fixed_draws_are_the_same_at_every_step_and_said_to_be_biased():
    rule = generalized_doubly_reparameterized(noise=noise.fixed(jax.random.key(4), noise.sobol()))
    assert all(np.ptp(leaf, axis=0).max() == 0.0 for leaf in jax.tree.leaves(draws(rule, 4, 3)))
    assert (
        not rule.requires.unbiased
        and rule.name == "generalized_doubly_reparameterized(noise=fixed(sobol()))"
    )


def test_what_would_be_silently_wrong_is_refused():
    normal = diag_normal(2)
    with pytest.raises(ValueError, match="num_samples=3 is odd"):
        generalized_doubly_reparameterized(noise=noise.antithetic()).check(normal, elbo, 3, normal)
    with pytest.raises(ValueError, match="needs independent samples"):
        generalized_doubly_reparameterized(noise=noise.sobol()).check(
            normal, objectives.iwae, 4, normal
        )
    generalized_doubly_reparameterized().check(normal, objectives.iwae, 4, normal)
