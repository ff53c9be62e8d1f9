"""The linearised-gradient control variate by Hessian-vector products: its variance is that of the
trace's probes alone.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, compiled

import vijax as vj
from vijax import families, rules
from vijax.families import Entropy, NormalMoments, need
from vijax.rules.surfaces import hutchinson_trace

pytestmark = pytest.mark.usefixtures("x64")

DIM = 3
HESSIAN = np.array([[-1.0, 0.4, -0.3], [0.4, -2.0, 0.7], [-0.3, 0.7, -1.5]])
LAM = {"loc": np.array([0.4, -0.7, 0.1]), "log_scale": np.array([0.3, -0.5, 0.2])}
LOWER = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [-0.2, 0.8, 0.0]])


def gradients(rule, family, lam, log_joint, num_draws, num_samples=2):
    def value(lam, key):
        return vj.expect(
            key, family, lam, lambda s: log_joint(s.z) - s.log_q, rule=rule, num_samples=num_samples
        )[0]

    return compiled(
        jax.vmap(jax.grad(value), in_axes=(None, 0)),
        lam,
        jax.random.split(jax.random.key(0), num_draws),
    )


def quadratic(z):
    return jnp.array([0.5, -1.0, 0.2]) @ z + 0.5 * z @ HESSIAN @ z


def exact_of(family, lam):
    def elbo_of(lam):
        moments = need(family, NormalMoments)
        curved = 0.5 * jnp.vdot(HESSIAN, moments.covariance(lam))
        return quadratic(moments.mean(lam)) + curved + need(family, Entropy).value(lam)

    return jax.device_get(jax.grad(elbo_of)(lam))


@pytest.mark.parametrize("carrier", [rules.by_path, rules.by_score], ids=["by_path", "by_score"])
def test_on_a_quadratic_every_draw_is_the_exact_gradient_plus_the_probes_cross_terms(carrier):
    """One probe v: the mean has no variance; log_scale_i is off by s_i v_i sum_{j != i} H_ij s_j
    v_j, sign by sign.
    """
    family, rule = (
        families.diag_normal(DIM),
        rules.quadratic_control(rules.taylor(probes=1), carrier=carrier),
    )
    draws, exact = gradients(rule, family, LAM, quadratic, 64), exact_of(family, LAM)
    np.testing.assert_allclose(draws["loc"], np.tile(exact["loc"], (64, 1)), atol=1e-12)
    crossed = HESSIAN - np.diag(np.diag(HESSIAN))
    scaled = [
        np.exp(LAM["log_scale"]) * np.array(v) for v in itertools.product([-1.0, 1.0], repeat=DIM)
    ]
    possible = np.array([s * (crossed @ s) for s in scaled])
    off = draws["log_scale"] - exact["log_scale"]
    assert np.abs(off[:, None] - possible[None]).max(axis=2).min(axis=1).max() < 1e-12
    assert len({tuple(row) for row in np.round(off, 9)}) == 4  # v and -v are one: all of them occur


def test_more_probes_divide_the_variance_and_a_diagonal_hessian_leaves_none():
    family, scale, num_draws = families.diag_normal(DIM), np.exp(LAM["log_scale"]), 8000
    crossed = (HESSIAN - np.diag(np.diag(HESSIAN))) ** 2
    for probes in (1, 4):
        draws = gradients(
            rules.quadratic_control(rules.taylor(probes=probes)), family, LAM, quadratic, num_draws
        )
        squares = np.square(draws["log_scale"] - exact_of(family, LAM)["log_scale"])
        expected = scale**2 * (crossed @ scale**2) / probes
        error = squares.std(axis=0) / num_draws**0.5
        assert np.all(np.abs(squares.mean(axis=0) - expected) < 5.0 * error + 1e-12)
        assert np.any(np.abs(squares.mean(axis=0) - 1.3 * expected) > 5.0 * error + 1e-12)

    def separable(z):
        return jnp.sum(jnp.diag(HESSIAN) * jnp.square(z) + z)

    draws = gradients(rules.quadratic_control(rules.taylor(probes=1)), family, LAM, separable, 20)
    assert max(leaf.std(axis=0).max() for leaf in draws.values()) < 1e-12


def test_a_full_covariance_is_probed_through_its_sampler():
    """All eight signs together are the exact trace, whatever the covariance's factor."""
    family, lam = families.full_normal(DIM), LAM | {"lower": LOWER}
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=DIM)))

    def probed(lam):
        return hutchinson_trace(family, lam, lambda v: HESSIAN @ v, signs)

    def exact(lam):
        return jnp.vdot(HESSIAN, need(family, NormalMoments).covariance(lam))

    (ours, slope), (value, gradient) = (
        jax.value_and_grad(probed)(lam),
        jax.value_and_grad(exact)(lam),
    )
    assert_close((ours, slope), (value, gradient), tolerance=1e-12)
    draws = gradients(rules.quadratic_control(rules.taylor(probes=1)), family, lam, quadratic, 20)
    np.testing.assert_allclose(
        draws["loc"], np.tile(exact_of(family, lam)["loc"], (20, 1)), atol=1e-12
    )


def test_settings_without_a_meaning_are_refused():
    for settings in ({"order": 3}, {"order": 1, "probes": 2}, {"probes": 0}):
        with pytest.raises(ValueError, match="order 1 or 2"):
            rules.taylor(**settings)
    assert rules.quadratic_control(rules.taylor(probes=3)).requires.evaluations == "2K+1+3"
