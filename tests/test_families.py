"""Every family of the registry: whatever it and its traits promise, and scipy's densities,
entropies and laws.
"""

import jax
import numpy as np
import oracles
import pytest
from checks import assert_close
from family_facts import NAMES, drawn, fine_quadrature, generic_lam, having, masses, point, rounding
from registry import FAMILIES
from scipy import stats

from vijax import families
from vijax.families import Entropy, Moments, need
from vijax.testing import check_family
from vijax.testing.grids import Grid

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
    for lam, log_q in zip(there, (seen.log_q, seen.elsewhere), strict=True):
        reference = fixture.reference(jax.tree.map(np.asarray, lam))
        assert_close(log_q, oracles.summed_log_density(reference, seen.z), tolerance=tolerance)


@of(NAMES)
def test_family_keeps_what_it_promises(name):
    """Against quadrature or enumeration where a figure is exact."""
    fixture = FAMILIES[name]
    check_family(
        fixture.family,
        lams=[jax.tree.map(lambda leaf: leaf[0], fixture.lams)],
        integrand=lambda z: fixture.f(fixture.theta, z),
        quadrature=fine_quadrature(fixture),
        rounding=rounding(name) / 5.0,
        without=("pairs",) if "measure_valued()" in fixture.infinite_variance else (),
    )


@of(NAMES)
def test_density_is_normalised_at_every_point(name):
    """And the quadrature that says so has the known mean."""
    mass, means = masses(name)
    np.testing.assert_allclose(mass, 1.0, atol=rounding(name))
    for number, mean in enumerate(means):
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


@of([name for name in having(Entropy) if name in WITH_REFERENCE])
def test_entropy_is_scipys(name, x64):
    reference = FAMILIES[name].reference(jax.tree.map(lambda leaf: leaf[0], FAMILIES[name].lams))
    ours = need(FAMILIES[name].family, Entropy).value(point(name))
    np.testing.assert_allclose(ours, np.sum(reference.entropy()), rtol=1e-6)


@of(having(Moments))
def test_mean_and_variance_are_the_traits(name, x64):
    family, lam = FAMILIES[name].family, point(name)
    known = need(family, Moments)
    both = families.mean(family, lam), families.variance(family, lam)
    assert_close(both, (known.mean(lam), known.variance(lam)), tolerance=1e-14)


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
