"""Every family of the registry against scipy, enumeration and quadrature: densities, samplers and
whatever its traits promise.
"""

import family_facts
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from checks import assert_close, assert_unbiased
from exact import Grid
from family_facts import NAMES, NUM_DRAWS, drawn, facts, generic_lam, having, point, rounding
from registry import FAMILIES
from scipy import stats

from vijax import families, supports
from vijax.families import (
    BernoulliSites,
    CategoricalSites,
    Density,
    Entropy,
    FiniteSupport,
    GammaSites,
    Inverse,
    Kl,
    Moments,
    Natural,
    NormalMoments,
    Reparameterized,
    UniformNoise,
    WeakDerivative,
    log_probs,
    need,
)

WITH_REFERENCE = [name for name in NAMES if FAMILIES[name].reference is not None]


def is_continuous(name):
    """Does scipy know the distribution function of every element?"""
    lam = jax.tree.map(lambda leaf: leaf[0], FAMILIES[name].lams)
    return isinstance(getattr(FAMILIES[name].reference(lam), "dist", None), stats.rv_continuous)


def of(names):
    return pytest.mark.parametrize("name", names)


@of(WITH_REFERENCE)
def test_log_prob_is_scipys(name, x64):
    fixture, seen = FAMILIES[name], jax.tree.map(lambda leaf: leaf[:20], drawn(name))
    tolerance = 1e-11 if isinstance(fixture.nodes, Grid) else 1e-13
    there = point(name), generic_lam(fixture.family, seed=1)
    for lam, log_q in zip(there, (seen.values[:, 2], seen.elsewhere), strict=True):
        reference = fixture.reference(jax.tree.map(np.asarray, lam))
        assert_close(log_q, oracles.summed_log_density(reference, seen.z), tolerance=tolerance)


@of(having(Density))
def test_transport_returns_the_log_prob_of_what_it_draws(name):
    """In value and in every derivative."""
    seen = drawn(name)
    moved, direct = (
        (seen.values[:, i], jax.tree.map(lambda leaf, i=i: leaf[:, i], seen.slopes)) for i in (1, 2)
    )
    assert_close(moved, direct, tolerance=1e-12)


@of(NAMES)
def test_sampler_matches_log_prob(name):
    """First and second moments of z under the sampler against quadrature or enumeration under
    log_prob.
    """
    sampled, exact = drawn(name).moments, facts(name)["moments"]
    assert_unbiased(sampled, exact)
    shifted = jax.tree.map(lambda leaf: leaf + 0.1, exact)
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(sampled, shifted)


@of(NAMES)
def test_density_is_normalised(name):
    """Mass 1 and E_q[dlog q] = 0, which the score rule and its direct term rest on; and the
    quadrature that says so has the known mean, at every point.
    """
    found = facts(name)
    np.testing.assert_allclose(found["mass"], 1.0, atol=rounding(name))
    zero = jax.tree.map(np.zeros_like, found["score"])
    assert_close(found["score"], zero, tolerance=rounding(name))
    for number, mean in enumerate(found["mean"]):
        known = known_mean(name, number)
        assert known is None or np.abs(mean - known).max() < 1e-6


def known_mean(name, number):
    """[M] of what is seen of z at a point, or None where neither fixture nor scipy says."""
    fixture = FAMILIES[name]
    lam = jax.tree.map(lambda leaf: leaf[number], fixture.lams)
    if fixture.mean is not None:
        return fixture.mean(lam)
    mean = None if fixture.reference is None else getattr(fixture.reference(lam), "mean", None)
    return np.ravel(mean()) if callable(mean) else mean


@of(having(Entropy))
def test_entropy_is_exact(name):
    """In value and derivative, against the sum or the quadrature of log q, and against scipy."""
    assert_close(*facts(name)["entropy"], tolerance=rounding(name))
    if name in WITH_REFERENCE:
        reference = FAMILIES[name].reference(
            jax.tree.map(lambda leaf: leaf[0], FAMILIES[name].lams)
        )
        exact = np.sum(reference.entropy())
        np.testing.assert_allclose(facts(name)["entropy"][0][0], exact, rtol=1e-6)


@of(having(Kl))
def test_kl_is_exact(name):
    """In value and both derivatives; it vanishes between equals, and is stationary there."""
    assert_close(*facts(name)["kl"], tolerance=rounding(name))
    value, slopes = facts(name)["own_kl"]
    assert abs(value) < (1e-12 if isinstance(FAMILIES[name].nodes, Grid) else 1e-14)
    assert all(np.abs(leaf).max() < 1e-9 for leaf in jax.tree.leaves(slopes))


@of(having(Moments))
def test_mean_and_variance_are_exact(name, x64):
    assert_close(*facts(name)["closed_moments"], tolerance=rounding(name))
    family, lam = FAMILIES[name].family, point(name)
    both = families.mean(family, lam), families.variance(family, lam)
    assert_close(both, facts(name)["closed_moments"][0], tolerance=1e-14)


@of(having(Natural))
def test_a_natural_step_moves_on_the_line_between_natural_parameters(name):
    """Along the gradient of -KL(q || q2) a step of rate 1 ends in q2, one of rate r in the member
    whose log-density is (1 - r) log q + r log q2 but for a constant.
    """
    steps = facts(name)["natural"]
    for ours, exact in steps.values():
        assert_close(ours, exact, tolerance=1e-10)
    (whole, _), (part, _) = (steps[rate] for rate in family_facts.RATES)
    with pytest.raises(AssertionError, match="differs by"):  # a step too short
        assert_close(part, whole - whole[0], tolerance=1e-2)


@of(having(UniformNoise))
def test_uniform_numbers_make_the_same_law(name, x64):
    """The moments of z from noise that is made of uniform numbers."""
    uniform = need(FAMILIES[name].family, UniformNoise)
    numbers = jax.random.uniform(jax.random.key(8), (NUM_DRAWS, uniform.num_uniforms), minval=1e-15)
    made = family_facts.drawn_from(name, jax.vmap(uniform.from_uniform)(numbers))
    assert_unbiased(made.moments, facts(name)["moments"])


@of(having(Inverse))
def test_inverse_finds_the_noise_behind_a_draw(name, x64):
    family, lam = FAMILIES[name].family, point(name)
    noise = family.noise(jax.random.key(3), 20)
    z, _ = families.transports(family, lam, noise)
    found = jax.vmap(need(family, Inverse).noise, (None, 0))(lam, z)
    assert_close(found, noise, tolerance=1e-12)


def with_finite_pairs():
    """Those whose measure-valued gradient has a variance at all of their points."""
    return [
        n for n in having(WeakDerivative) if "measure_valued()" not in FAMILIES[n].infinite_variance
    ]


@of(with_finite_pairs())
def test_pairs_differentiate_an_expectation(name):
    """E[scale (f(plus) - f(minus))] is the derivative of E[f] in every number of lam."""
    slopes, exact = family_facts.weak_slopes(name), facts(name)["f_slope"]
    assert_unbiased(slopes, exact)
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(jax.tree.map(lambda leaf: 0.8 * leaf, slopes), exact)


@of(having(Reparameterized))
def test_gradient_through_the_sampler_is_that_of_the_expectation(name):
    slopes = jax.tree.map(lambda leaf: leaf[:, 0], drawn(name).slopes)
    exact = facts(name)["f_slope"]
    assert_unbiased(slopes, exact)
    with pytest.raises(AssertionError, match="biased"):  # a gradient a fifth too small
        assert_unbiased(jax.tree.map(lambda leaf: 0.8 * leaf, slopes), exact)


@of([name for name in WITH_REFERENCE if is_continuous(name)])
def test_sampler_has_the_law(name):
    """Every element by Kolmogorov and Smirnov, which sees a shift of a few hundredths."""
    fixture, z = FAMILIES[name], drawn(name).z
    lam = jax.tree.map(lambda leaf: leaf[0], fixture.lams)
    if fixture.family.support.name == "circle":
        z = lam["loc"] + (z - lam["loc"] + np.pi) % (2.0 * np.pi) - np.pi
    cdf, caught = fixture.reference(lam).cdf, False
    for column, shifted in zip(cdf(z).T, cdf(z * 1.05 + 0.05).T, strict=True):
        assert stats.kstest(column, "uniform").pvalue > 1e-4
        caught |= stats.kstest(shifted, "uniform").pvalue < 1e-4
    assert caught


@of(having(FiniteSupport))
def test_finite_support_has_every_value_once(name, x64):
    family, lam = FAMILIES[name].family, point(name)
    finite = need(family, FiniteSupport)
    leaves = jax.tree.leaves(finite.values())
    flat = np.concatenate([leaf.reshape(finite.size, -1) for leaf in leaves], axis=1)
    assert len(np.unique(flat, axis=0)) == finite.size
    total = jnp.sum(jnp.exp(log_probs(family, lam, finite.values())))
    assert_close(total, 1.0, tolerance=1e-14)


def is_one(total):
    return np.abs(total - 1.0) < 1e-12


INSIDE = {
    "real": lambda z, part: np.isfinite(z),
    "positive": lambda z, part: z > 0.0,
    "interval": lambda z, part: (z > part.bounds[0]) & (z < part.bounds[1]),
    "simplex": lambda z, part: (z > 0.0) & is_one(z.sum(axis=-1, keepdims=True)),
    "circle": lambda z, part: np.abs(z) <= np.pi,
    "binary": lambda z, part: (z == 0.0) | (z == 1.0),
    "one_hot": lambda z, part: ((z == 0.0) | (z == 1.0)) & is_one(z.sum(axis=-1, keepdims=True)),
    "counts": lambda z, part: (z >= 0.0) & (z == np.round(z)),
}


@of(NAMES)
def test_draws_lie_in_the_stated_support(name):
    parts, leaves = supports.parts(FAMILIES[name].family.support), jax.tree.leaves(drawn(name).z)
    for part, leaf in zip(parts, leaves, strict=True):
        assert leaf.shape[1:] == part.shape
        assert np.all(INSIDE[part.name](leaf, part)), part


@of(NAMES)
def test_traits_that_name_the_parameters_agree_with_the_moments(name, x64):
    """What rules for one kind of latent read, against the exact mean and products."""
    traits, lam = FAMILIES[name].family.traits, point(name)
    mean, products = facts(name)["moments"]
    if bits := traits.get(BernoulliSites):
        assert_close(jax.nn.sigmoid(bits.logits(lam)), mean, tolerance=1e-12)
    if classes := traits.get(CategoricalSites):
        assert_close(jax.nn.softmax(classes.logits(lam)).ravel(), mean, tolerance=1e-12)
    if gammas := traits.get(GammaSites):
        shape, rate = gammas.shape(lam), gammas.rate(lam)
        assert_close(
            (shape / rate, shape / rate**2), (mean, np.diag(products) - mean**2), tolerance=1e-6
        )
    if normal := traits.get(NormalMoments):
        covariance = products - np.outer(mean, mean)
        assert_close(
            (normal.mean(lam), normal.covariance(lam)), (mean, covariance), tolerance=1e-12
        )
