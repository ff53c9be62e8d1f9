"""Continuous families against scipy: densities, samplers, derivatives of the sampler, entropies and
divergences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from vijax import families
from vijax.families.positive import positive
from vijax.families.von_mises import angle_derivative, mean_fall, with_derivative

LAMS = {
    "gamma": (
        families.gamma(1),
        {"log_shape": 0.7, "log_rate": -0.4},
        {"log_shape": -0.2, "log_rate": 0.3},
    ),
    "gamma_small": (
        families.gamma(1),
        {"log_shape": -1.2, "log_rate": 0.5},
        {"log_shape": 0.1, "log_rate": 0.3},
    ),
    "exponential": (families.exponential(1), {"log_rate": 0.4}, {"log_rate": -0.5}),
    "beta": (
        families.beta(1),
        {"log_alpha": 0.5, "log_beta": 0.9},
        {"log_alpha": 0.1, "log_beta": 0.2},
    ),
    "student_t": (families.student_t(1), {"loc": 0.3, "log_scale": -0.4, "log_degrees": 1.3}, None),
    "von_mises": (
        families.von_mises(1),
        {"loc": 1.1, "log_concentration": 0.6},
        {"loc": -2.0, "log_concentration": -0.5},
    ),
    "von_mises_narrow": (
        families.von_mises(1),
        {"loc": 1.1, "log_concentration": 6.0},
        {"loc": 1.0, "log_concentration": 4.0},
    ),
}


def oracle(name, lam):
    """The scipy distribution."""
    value = {
        key: float(np.exp(v)) if key.startswith("log_") else float(v) for key, v in lam.items()
    }
    if name.startswith("gamma"):
        return stats.gamma(value["log_shape"], scale=1.0 / value["log_rate"])
    if name == "exponential":
        return stats.expon(scale=1.0 / value["log_rate"])
    if name == "beta":
        return stats.beta(value["log_alpha"], value["log_beta"])
    if name == "student_t":
        return stats.t(value["log_degrees"], value["loc"], value["log_scale"])
    return stats.vonmises(value["log_concentration"], loc=value["loc"])


def vector(lam):
    return {key: jnp.asarray([v]) for key, v in lam.items()}


def points(name, lam):
    """16-point quadrature nodes and weights per panel of q: expectations to 1e-7 and better."""
    dist, ends = oracle(name, lam), np.linspace(0.0, 1.0, 9)
    if name.startswith("von_mises"):
        centre, width = lam["loc"], min(np.pi, 14.0 * np.exp(-0.5 * lam["log_concentration"]))
        edges = centre + width * np.linspace(-1.0, 1.0, 41)
    else:
        edges = (
            np.linspace(*np.log(dist.ppf([1e-14, 1 - 1e-14])), 41)
            if name.startswith("gamma")
            else dist.ppf(
                np.concatenate(
                    [
                        [1e-14, 1e-9, 1e-6, 1e-4, 1e-2],
                        ends[1:-1],
                        1 - np.array([1e-2, 1e-4, 1e-6, 1e-9, 1e-14]),
                    ]
                )
            )
        )
    node, weight = np.polynomial.legendre.leggauss(40)
    half = 0.5 * np.diff(edges)
    z = (edges[:-1] + half)[:, None] + half[:, None] * node
    if name.startswith("gamma"):  # panels of equal width in log z
        z, half = np.exp(z), half * 1.0
        return z.ravel(), (half[:, None] * weight * z * dist.pdf(z)).ravel()
    return z.ravel(), (half[:, None] * weight * dist.pdf(z)).ravel()


@pytest.mark.parametrize("name", LAMS)
def test_density_entropy_and_divergence(name, x64):
    family, lam, lam2 = LAMS[name]
    z, weight = points(name, lam)
    log_q = jax.vmap(lambda z: family.log_prob(vector(lam), z[None]))(jnp.asarray(z))
    np.testing.assert_allclose(log_q, oracle(name, lam).logpdf(z), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(family.entropy(vector(lam)), oracle(name, lam).entropy(), rtol=1e-6)
    if lam2 is not None:
        exact = np.sum(weight * (np.asarray(log_q) - oracle(name, lam2).logpdf(z)))
        np.testing.assert_allclose(family.kl(vector(lam), vector(lam2)), exact, rtol=2e-5)
        np.testing.assert_allclose(family.kl(vector(lam), vector(lam)), 0.0, atol=1e-12)
        slope = jax.grad(lambda other: family.kl(vector(lam), other))(vector(lam))
        assert all(float(jnp.abs(leaf).max()) < 1e-9 for leaf in jax.tree.leaves(slope)), (
            "KL(q||q) is stationary"
        )


@pytest.fixture(scope="module")
def draws():
    """z, its log-density by the sampler, and E[gradient of an integrand through the sampler],
    10,000 draws per family.
    """
    found, jitted = {}, {}
    with jax.enable_x64(True):
        for name, (family, lam, _) in LAMS.items():

            def many(lam, key, family=family):
                def one(lam, noise):
                    z, log_q = family.transport(lam, noise)
                    return integrand(family.name, z[0]), (z[0], log_q - family.log_prob(lam, z))

                noise = family.noise(key, 10_000)
                slope, (z, difference) = jax.vmap(jax.grad(one, has_aux=True), in_axes=(None, 0))(
                    lam, noise
                )
                return z, difference, slope

            shared = jitted.setdefault(family.name, jax.jit(many))
            found[name] = jax.device_get(shared(vector(lam), jax.random.key(3)))
    return found


def integrand(name, z):
    """Smooth; periodic for angles."""
    return (
        jnp.sin(z) + 0.5 * jnp.cos(2.0 * z)
        if name.startswith("von_mises")
        else jnp.log1p(jnp.square(z))
    )


@pytest.mark.parametrize("name", LAMS)
def test_sampler_has_the_law(name, draws):
    z, difference, _ = draws[name]
    assert np.abs(difference).max() < 1e-6, "transport's log q is log_prob"
    dist, lam = oracle(name, LAMS[name][1]), LAMS[name][1]
    if name.startswith("von_mises"):
        z = lam["loc"] + (z - lam["loc"] + np.pi) % (2 * np.pi) - np.pi
    assert stats.kstest(z, dist.cdf).pvalue > 1e-4
    assert stats.kstest(z * 1.05 + 0.05, dist.cdf).pvalue < 1e-4, (
        "the test sees a shift of a few hundredths"
    )


@pytest.mark.parametrize("name", LAMS)
def test_gradient_through_the_sampler_is_that_of_the_expectation(name, draws, x64):
    family, lam, _ = LAMS[name]
    z, weight = points(name, lam)
    f = integrand(name, jnp.asarray(z))
    log_q = jax.vmap(jax.grad(family.log_prob), in_axes=(None, 0))(
        vector(lam), jnp.asarray(z)[:, None]
    )
    caught = False
    for leaf, score in log_q.items():
        exact = np.sum(weight * np.asarray(f) * np.asarray(score)[:, 0])
        sampled = draws[name][2][leaf][:, 0]
        standard_error = sampled.std() / len(sampled) ** 0.5
        assert abs(sampled.mean() - exact) < 5.0 * standard_error, leaf
        caught |= abs(0.8 * sampled.mean() - exact) > 5.0 * standard_error
    assert caught, "a gradient a fifth too small would pass"


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
    ours = jax.vmap(family.log_prob, in_axes=(None, 0))(lam, jnp.asarray(z))
    np.testing.assert_allclose(ours, [dist.logpdf(row) for row in z], rtol=1e-10)
    np.testing.assert_allclose(family.entropy(lam), dist.entropy(), rtol=1e-10)
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
    np.testing.assert_allclose(two.kl(pair, other), families.beta(1).kl(*one_by_one), rtol=1e-12)

    # E[sum_i w_i z_i^2] and its gradient, in closed form: E z_i^2 = a_i (a_i + 1) / (A (A + 1)).
    weights = jnp.asarray([1.0, -2.0, 0.5])

    def exact(lam):
        a = jnp.exp(lam["log_concentration"])
        return jnp.sum(weights * a * (a + 1.0)) / (a.sum() * (a.sum() + 1.0))

    slope = jax.grad(lambda lam, key: jnp.sum(weights * family.sample(key, lam) ** 2))
    slopes = jax.jit(jax.vmap(slope, in_axes=(None, 0)))(
        lam, jax.random.split(jax.random.key(1), 5_000)
    )["log_concentration"]
    z = (slopes.mean(0) - jax.grad(exact)(lam)["log_concentration"]) / (slopes.std(0) / 5_000**0.5)
    assert float(jnp.abs(z).max()) < 5.0


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
    np.testing.assert_allclose(family.kl(lam, lam2), exact, rtol=1e-10)


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
