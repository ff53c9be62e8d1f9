"""Continuous families against formulas: derivatives of single draws, special functions, extreme
parameters. What all families have in common is in test_families.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from vijax import families
from vijax.families import Entropy, Kl, need
from vijax.families.positive import positive
from vijax.families.von_mises import angle_derivative, mean_fall, with_derivative


def test_gamma_derivative_is_that_of_the_distribution_function(x64):
    """dz/da = -(dF/da) / (dF/dz), F by scipy, its derivative by central differences: pathwise, not
    only on average.
    """

    @jax.jit
    def both(shape):
        def draw(a):
            return positive(jax.random.loggamma(jax.random.key(0), a, (30,)), jnp.zeros((30,)))

        return jax.jvp(draw, (shape,), (jnp.ones(()),))

    for shape in (0.3, 1.0, 4.0, 60.0):
        z, slope = both(shape)
        z, step = np.asarray(z), 1e-5 * shape
        exact = (
            -(special.gammainc(shape + step, z) - special.gammainc(shape - step, z))
            / (2 * step)
            / stats.gamma.pdf(z, shape)
        )
        tail = np.minimum(special.gammainc(shape, z), special.gammaincc(shape, z)) > 1e-3
        np.testing.assert_allclose(np.asarray(slope)[tail], exact[tail], rtol=1e-4)


@pytest.mark.parametrize("concentration", [0.01, 1.0, 20.0, 5000.0])
def test_von_mises_derivative_is_that_of_the_distribution_function(concentration, x64):
    z = np.linspace(-3.0, 3.0, 13) * min(1.0, 1.0 / concentration**0.5)

    def normaliser(c):
        return 2.0 * np.pi * special.ive(0, c)

    def mass(c):  # the distribution function from 0, by adaptive quadrature
        return np.array(
            [
                integrate.quad(
                    lambda t: np.exp(c * (np.cos(t) - 1.0)), 0, b, epsabs=0, epsrel=1e-13
                )[0]
                for b in z
            ]
        ) / normaliser(c)

    step = 1e-4 * concentration
    slope = (mass(concentration + step) - mass(concentration - step)) / (2 * step)
    exact = -slope / (np.exp(concentration * (np.cos(z) - 1.0)) / normaliser(concentration))
    ours = angle_derivative(jnp.asarray(z), jnp.full(z.shape, concentration))
    np.testing.assert_allclose(ours, exact, rtol=2e-6, atol=1e-7 / concentration)
    single = angle_derivative(
        jnp.asarray(z, jnp.float32), jnp.full(z.shape, concentration, jnp.float32)
    )
    np.testing.assert_allclose(single, ours, rtol=2e-3, atol=1e-5 / concentration)
    back = jax.grad(lambda c: jnp.sum(with_derivative(jnp.asarray(z), jnp.full(z.shape, c))))(
        concentration
    )
    np.testing.assert_allclose(back, jnp.sum(ours), rtol=1e-9, atol=1e-9)


def test_bessel_quotient_keeps_its_digits(x64):
    c = np.array([1e-3, 1.0, 30.0, 99.0, 101.0, 1e3, 1e6])
    exact = [1e-3, 1.0, 30.0, 99.0, 101.0, 1e3, 1e6]
    with np.errstate(all="ignore"):
        exact = 1.0 - special.ive(1, c) / special.ive(0, c)
    np.testing.assert_allclose(mean_fall(jnp.asarray(c)), exact, rtol=1e-9)


def test_dirichlet_against_scipy(x64):
    family = families.dirichlet(3)
    lam = {"log_concentration": jnp.asarray([0.3, -0.5, 0.9])}
    shapes = np.exp(np.asarray(lam["log_concentration"]))
    dist = stats.dirichlet(shapes)
    z = dist.rvs(6, random_state=0)
    ours = families.log_probs(family, lam, jnp.asarray(z))
    np.testing.assert_allclose(ours, [dist.logpdf(row) for row in z], rtol=1e-10)
    np.testing.assert_allclose(need(family, Entropy).value(lam), dist.entropy(), rtol=1e-10)
    two = families.dirichlet(2)
    pair, other = (
        {"log_concentration": jnp.asarray([0.5, 0.9])},
        {"log_concentration": jnp.asarray([0.1, 0.2])},
    )
    names = ("log_alpha", "log_beta")
    one_by_one = [
        {n: v[i : i + 1] for i, n in enumerate(names)}
        for v in (pair["log_concentration"], other["log_concentration"])
    ]
    ours, betas = need(two, Kl).value(pair, other), need(families.beta(1), Kl).value(*one_by_one)
    np.testing.assert_allclose(ours, betas, rtol=1e-12)


def test_poisson_against_scipy(x64):
    family, lam = families.poisson(2), {"log_rate": jnp.asarray([0.2, 1.4])}
    lam2 = {"log_rate": jnp.asarray([-0.3, 1.0])}
    rates, rates2 = np.exp(np.asarray(lam["log_rate"])), np.exp(np.asarray(lam2["log_rate"]))
    z = jnp.asarray([3.0, 0.0])
    np.testing.assert_allclose(
        family.log_prob(lam, z), stats.poisson.logpmf(np.asarray(z), rates).sum(), rtol=1e-12
    )
    counts = np.arange(60)
    exact = sum(
        np.sum(
            stats.poisson.pmf(counts, r)
            * (stats.poisson.logpmf(counts, r) - stats.poisson.logpmf(counts, s))
        )
        for r, s in zip(rates, rates2, strict=True)
    )
    np.testing.assert_allclose(need(family, Kl).value(lam, lam2), exact, rtol=1e-10)


@pytest.mark.parametrize("name", ["beta", "student_t", "von_mises"])
def test_extreme_parameters_stay_finite_in_float32(name):
    family = getattr(families, name)(2)

    @jax.jit
    def bounds(lam):
        def bound(lam, noise):
            z, log_q = family.transport(lam, noise)
            return jnp.sum(z) - log_q

        return jax.vmap(jax.value_and_grad(bound), in_axes=(None, 0))(
            lam, family.noise(jax.random.key(1), 50)
        )

    for size in (-1.0 if name == "student_t" else -5.0, 0.0, 7.0):
        value, slope = bounds(
            jax.tree.map(
                lambda leaf, size=size: jnp.full_like(leaf, size), family.init(jax.random.key(0))
            )
        )
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((value, slope))), (
            name,
            size,
        )
