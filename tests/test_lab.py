"""The gradient report against closed-form moments of a one-dimensional estimator, in standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from jax.flatten_util import ravel_pytree

import vijax as vj
from vijax.lab.moments import measure

DRAWS = 20_000
M, LOG_S = 0.4, 0.3


@pytest.fixture(scope="module")
def setting():
    """Total pathwise ELBO of q = N(m, s^2) on N(0, 1): Var[dm] = s^2 (identity 7 with S = 1)."""
    family = vj.families.diag_normal(1)
    model = vj.models.latent_model(lambda key: (), lambda theta, z, x: jnp.sum(vj.densities.standard_normal(z)))
    guide = vj.guides.per_datapoint(family, 1)
    estimator = vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=1)
    phi = {"loc": jnp.full((1, 1), M), "log_scale": jnp.full((1, 1), LOG_S)}
    params, batch = estimator.init_params(jax.random.key(0))._replace(phi=phi), vj.Batch(jnp.zeros(1), jnp.zeros(1, jnp.int32))
    return estimator, params, estimator.init(jax.random.key(0), params), batch


def test_moments_against_the_closed_form(setting):
    report = vj.lab.gradient_report(jax.random.key(1), *setting, num_draws=DRAWS)
    variance = np.exp(2 * LOG_S)
    mean, error = report.mean.phi["loc"][0, 0], report.mean_error.phi["loc"][0, 0]
    assert report.num_draws == DRAWS and abs(mean - M) < 5 * error
    assert abs(report.variance.phi["loc"][0, 0] / variance - 1.0) < 5 * np.sqrt(2.0 / DRAWS)  # normal draws
    assert_close(error, np.sqrt(report.variance.phi["loc"][0, 0] / DRAWS), tolerance=1e-6)
    assert_close(report.snr.phi["loc"][0, 0], abs(mean) / np.sqrt(report.variance.phi["loc"][0, 0]), tolerance=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 25])
def test_chunks_do_not_change_the_moments(setting, chunk_size):
    """The streaming moments are those of the draws themselves, however they are cut."""
    moments = measure(jax.random.key(1), *setting, num_draws=25, chunk_size=chunk_size)
    draws = draws_of(setting, 25)
    away = draws - draws.mean(axis=0)
    assert moments.num_draws == 25
    for name, expected in (
        ("mean", draws.mean(axis=0)), ("variance", draws.var(axis=0, ddof=1)), ("third", (away**3).mean(axis=0)),
        ("fourth", (away**4).mean(axis=0)),
    ):  # fmt: skip
        assert_close(getattr(moments, name), expected, tolerance=1e-5)


def draws_of(setting, num_draws):
    """[S, P], one after the other."""
    keys = [jax.random.fold_in(jax.random.key(1), i) for i in range(num_draws)]
    estimate = jax.jit(lambda key: ravel_pytree(setting[0].estimate(key, *setting[1:])[0].grads)[0])
    return np.asarray([estimate(key) for key in keys], np.float64)


def test_one_draw_has_no_variance(setting):
    with pytest.raises(ValueError, match="num_draws=1, but a variance needs at least 2"):
        vj.lab.gradient_report(jax.random.key(0), *setting, num_draws=1)
