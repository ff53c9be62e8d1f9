"""Small concentrations in float32: the bound and its gradient are right where z itself rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased, compiled
from scipy import special

from vijax import families
from vijax.families import Kl, need
from vijax.families.log_gamma import log_gamma
from vijax.testing.averages import in_float

NUM_DRAWS = 5_000


def logs(*values):
    return np.log(np.array(values))


# Two members: q, where draws round, and a prior that does not care: uniform, or in log z alone.
CASES = {
    "beta": (
        families.beta(1),
        {"log_alpha": logs(0.2), "log_beta": logs(0.02)},
        {"log_alpha": logs(1.0), "log_beta": logs(1.0)},
    ),
    "dirichlet": (
        families.dirichlet(3),
        {"log_concentration": logs(0.01, 0.01, 0.01)},
        {"log_concentration": logs(1.0, 1.0, 1.0)},
    ),
    "gamma": (
        families.gamma(1),
        {"log_shape": logs(0.01), "log_rate": logs(2.0)},
        {"log_shape": logs(1.0), "log_rate": logs(1.0)},
    ),
}


def single(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@pytest.mark.parametrize("name", CASES)
def test_the_bound_and_its_gradient_are_right_where_z_rounds(name):
    """Against the closed-form divergence in float64; log q of the rounded z, as a planted fault, is
    nats away.
    """
    family, lam, prior = CASES[name]
    with in_float(64):
        minus_kl = jax.value_and_grad(lambda lam: -need(family, Kl).value(lam, prior))
        exact = jax.device_get(minus_kl(jax.tree.map(jnp.asarray, lam)))

    def one(lam, key):
        def bound(lam, *, of_z):
            z, log_q = family.transport(lam, key)
            log_q = family.log_prob(lam, z) if of_z else log_q
            return family.log_prob(single(prior), z) - log_q

        return [jax.value_and_grad(bound)(lam, of_z=of_z) for of_z in (False, True)]

    keys = family.noise(jax.random.key(0), NUM_DRAWS)
    right, rounded = compiled(jax.vmap(one, (None, 0)), single(lam), keys)
    assert right[0].dtype == np.float32
    assert_unbiased(right, exact)
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(rounded, exact)


@pytest.mark.parametrize("shape", [0.02, 3.0])
def test_log_gamma_has_the_derivative_of_its_quantile(shape, x64):
    """dlog z/da = -(dF/da) / (dF/dlog z): by scipy where z is no tiny number, below by log F = a
    log z - log Gamma(a + 1). In float32 too.
    """

    def both(dtype):
        key, a = jax.random.key(0), jnp.full(200, shape, dtype)
        return compiled(
            lambda a: jax.jvp(lambda a: log_gamma(key, a), (a,), (jnp.ones_like(a),)), a
        )

    log_z, slope = (np.asarray(part, np.float64) for part in both(jnp.float64))
    by_power = (special.digamma(shape + 1.0) - log_z) / shape
    tiny = log_z < -40.0
    np.testing.assert_allclose(slope[tiny], by_power[tiny], rtol=1e-12)
    z, step = np.exp(log_z), 1e-5 * shape
    rise = special.gammainc(shape + step, z) - special.gammainc(shape - step, z)
    # dF/dlog z = z^a exp(-z) / Gamma(a)
    exact = -rise / (2 * step) / np.exp(shape * log_z - z - special.gammaln(shape))
    seen = (log_z > -300.0) & (special.gammaincc(shape, z) > 1e-3)
    np.testing.assert_allclose(slope[seen], exact[seen], rtol=1e-4)
    assert tiny.any() == (shape < 0.5) and seen.sum() > 20
    log_z, slope = (np.asarray(part, np.float64) for part in both(jnp.float32))
    tiny = log_z < -15.0
    by_power = (special.digamma(shape + 1.0) - log_z) / shape
    np.testing.assert_allclose(slope[tiny], by_power[tiny], rtol=1e-5)


def test_two_classes_hold_what_a_beta_rounds():
    """`dirichlet(2)` is the beta whose z keeps 1 - z: its own log_prob is right at its draws."""
    family, one = families.dirichlet(2, num_sites=3), families.dirichlet(2)
    lam = {"log_concentration": jnp.log(jnp.full((3, 2), 0.15))}

    def draws(noise):
        z, log_q = families.transports(family, lam, noise)
        first = {"log_concentration": lam["log_concentration"][0]}
        sites = jax.vmap(jax.vmap(one.log_prob, (None, 0)), (None, 0))(first, z)
        return z, log_q, families.log_probs(family, lam, z), jnp.sum(sites, axis=1)

    z, log_q, of_z, site_by_site = compiled(draws, family.noise(jax.random.key(0), 2000))
    np.testing.assert_allclose(of_z, log_q, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(of_z, site_by_site, rtol=1e-4, atol=1e-4)
    assert z.shape == (2000, 3, 2) and np.any(z[:, :, 0] == 1.0) and np.all(z > 0.0)
