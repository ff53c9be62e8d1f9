"""Evidence says when its error bar holds: k-hat against scipy's fit and known tails, smoothed
means, chunks, degenerate weights; brackets against quadrature.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import vijax as vj
from vijax import diagnostics, families, guides, models
from vijax.diagnostics import evidence_of, most_k_hat, pareto_smoothed

KEY = jax.random.key(2)
MODEL = models.conjugate_normal(1, noise_scale=0.5)
THETA = {"loc": jnp.zeros(1), "log_scale": jnp.zeros(1)}
N = 200
GUIDE = guides.per_datapoint(families.diag_normal(1), N)


def pareto(seed, k, *, sets=1, size=4000):
    """[sets, size] log-weights of a Pareto law with mean 1 / (1 - k)."""
    return k * np.random.default_rng(seed).exponential(size=(sets, size))


def scaled(scale, x):
    """The exact posteriors, their standard deviations multiplied."""
    lam = jax.vmap(MODEL.posterior, (None, 0))(THETA, x)
    lam["log_scale"] += np.log(scale)
    return vj.Params(THETA, {"z": lam}, ())


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_hat_is_the_shape_of_the_tail_by_scipys_fit(k):
    log_w = pareto(0, k)[0]
    tail = int(3 * len(log_w) ** 0.5)
    ordered = np.sort(np.exp(log_w))
    by_scipy = stats.genpareto.fit(ordered[-tail:] - ordered[-tail - 1], floc=0.0)[0]
    shrunk = (tail * by_scipy + 5.0) / (tail + 10.0)  # towards 1/2, as if by ten weights more
    assert pareto_smoothed(log_w).k_hat == pytest.approx(shrunk, abs=0.03)
    # And of the law itself, whose fit has a standard error of (1 + k) / sqrt(tail)
    expected = (tail * k + 5.0) / (tail + 10.0)
    assert abs(pareto_smoothed(log_w).k_hat - expected) < 5.0 * (1.0 + k) / tail**0.5


def test_smoothing_keeps_the_mean_and_takes_noise_off():
    log_w = pareto(1, 0.3, sets=60)
    smooth = pareto_smoothed(log_w)
    relative = np.exp(smooth.log_mean) * (1.0 - 0.3)
    assert abs(relative.mean() - 1.0) < 5.0 * relative.std(ddof=1) / 60**0.5
    np.testing.assert_allclose(pareto_smoothed(log_w - 70.0).log_mean, smooth.log_mean - 70.0)
    heavy = pareto(2, 0.7, sets=60)
    plain = diagnostics.evidence.log_mean_exp(heavy)
    assert pareto_smoothed(heavy).log_mean.std() < 0.8 * plain.std()


def test_the_error_bar_holds_where_it_is_said_to():
    """q wider than the posterior has bounded weights; one with a twentieth of its variance has
    weights without a variance, k = 1 - 1/20, and an error bar that is far too short.
    """
    _, x = MODEL.simulate(KEY, THETA, N)
    exact, batch = jax.vmap(MODEL.log_evidence, (None, 0))(THETA, x), vj.Batch(x, jnp.arange(N))
    away = {}
    for scale in (1.5, 20.0**-0.5):
        found = diagnostics.log_evidence(KEY, MODEL, GUIDE, scaled(scale, x), batch)
        away[scale] = np.abs(found.log_evidence - exact) / found.standard_error, found.reliable
        assert found.k_hat.shape == found.smoothed.shape == (N,)
    good, reliable = away[1.5]
    assert np.all(reliable) and np.max(good) < 5.0
    bad, reliable = away[20.0**-0.5]
    assert np.mean(reliable) < 0.3 and np.mean(bad > 5.0) > 0.2
    assert most_k_hat(1000) == pytest.approx(2.0 / 3.0) and most_k_hat(10**4) == 0.7


def test_the_chunks_change_no_number():
    _, x = MODEL.simulate(KEY, THETA, N)
    params, batch = scaled(0.7, x), vj.Batch(x[:7], jnp.arange(7))
    whole = diagnostics.log_evidence(KEY, MODEL, GUIDE, params, batch, num_samples=100)
    for size in (1, 3):
        parts = diagnostics.log_evidence(
            KEY, MODEL, GUIDE, params, batch, num_samples=100, chunk_size=size
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), parts, whole)
    alone = vj.Batch(x[5:6], jnp.array([5]))
    one = diagnostics.log_evidence(KEY, MODEL, GUIDE, params, alone, num_samples=100)
    np.testing.assert_allclose(one.log_evidence, whole.log_evidence[5:6], rtol=1e-5)


NOISE = np.random.default_rng(3).normal(size=1000)
NOTHING = -np.inf


@pytest.mark.parametrize(
    ("log_w", "k_hat", "reliable"),
    [
        (np.full(1000, -20.0), -np.inf, True),  # q is the posterior,
        (-600.0 + 1e-4 * NOISE, -np.inf, True),  # but for rounding
        (np.where(NOISE > 0.0, 0.0, NOTHING), -np.inf, True),
        (np.full(1000, NOTHING), np.nan, False),
        (np.where(np.arange(1000) == 3, 0.0, NOTHING), np.inf, False),
        (np.where(np.arange(1000) < 50, NOISE, NOTHING), np.inf, False),
        (np.append(NOISE, np.nan), np.nan, False),
        (np.append(NOISE, np.inf), np.nan, False),
        (NOISE[:24], np.nan, False),
        (NOISE[:2], np.nan, False),
    ],
)
def test_degenerate_weights_are_told(log_w, k_hat, reliable):
    found = evidence_of(log_w.astype(np.float32))
    np.testing.assert_equal(float(found.k_hat), k_hat)
    assert bool(found.reliable) == reliable
    both = found.smoothed, found.log_evidence
    np.testing.assert_equal(*map(np.asarray, both))  # nothing was smoothed


def test_some_weights_of_zero_do_no_harm():
    log_w = np.where(np.arange(1000) % 2, NOISE, NOTHING).astype(np.float32)
    found = evidence_of(log_w)
    assert bool(found.reliable) and found.elbo == NOTHING
    assert float(found.log_evidence) == pytest.approx(np.log(np.mean(np.exp(log_w))), rel=1e-5)


def moments(scale, order):
    """E_q[w^order] at log p(x) = 0, the posterior N(0, 1) and q = N(0, scale^2), by quadrature."""
    z = np.linspace(-40.0, 40.0, 80_001)
    log_q, log_p = stats.norm.logpdf(z, scale=scale), stats.norm.logpdf(z)
    return integrate.trapezoid(np.exp(order * log_p + (1.0 - order) * log_q), z)


def test_brackets_are_ordered_and_each_is_what_it_says():
    """One datum N times, so that there are N independent repetitions."""
    scale, order = 4.0, 2.0
    x = jnp.full((N, 1), 0.7)
    log_p = float(MODEL.log_evidence(THETA, x[0]))
    kl = 0.5 * (scale**2 - 1.0) - np.log(scale)
    above = log_p + np.log(moments(scale, order)) / order
    batch, params = vj.Batch(x, jnp.arange(N)), scaled(scale, x)
    means = []
    for size, block in ((2, 1), (40, 2), (400, 2)):
        seen = diagnostics.brackets(
            KEY, MODEL, GUIDE, params, batch, num_samples=size, block=block, order=order
        )
        values = np.stack([seen.elbo.value, seen.iwae.value, seen.log_evidence.value])
        values = np.concatenate([values, seen.cubo.value[None]])
        assert np.all(np.diff(values, axis=0) >= -1e-5)  # whatever the weights
        means.append((values.mean(axis=1), values.std(axis=1, ddof=1) / N**0.5))
    (few, few_error), _, (many, error) = means
    assert abs(many[0] - (log_p - kl)) < 5.0 * error[0]
    assert np.all(many[1:3] < log_p + 5.0 * error[1:3]) and many[1] > many[0] + 5.0 * error[0]
    # The error bars are those of repetitions
    for bound, exact in ((seen.elbo, log_p - kl), (seen.log_evidence, log_p)):
        z = (np.asarray(bound.value) - exact) / np.asarray(bound.standard_error)
        assert abs(np.mean(z**2) - 1.0) < 5.0 * (2.0 / N) ** 0.5
    # CUBO from samples: below what it estimates, for few of them below log p(x) itself
    assert few[3] < log_p - 5.0 * few_error[3] < log_p < above
    assert np.all(np.diff([mean[3] for mean, _ in means]) > 0.0)
    variance = moments(scale, 2.0 * order) - moments(scale, order) ** 2
    bias = variance / (2.0 * order * 400 * moments(scale, order) ** 2)
    assert abs(many[3] - (above - bias)) < 5.0 * error[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_samples": 10, "block": 4}, "multiple of block"),
        ({"num_samples": 10, "block": 10}, "at least twice"),
        ({"order": 1.0}, "order above 1"),
        ({"order": float("nan")}, "order above 1"),
    ],
)
def test_brackets_without_a_meaning_are_refused(settings, message):
    x = jnp.zeros((2, 1))
    batch = vj.Batch(x, jnp.arange(2))
    with pytest.raises(ValueError, match=message):
        diagnostics.brackets(KEY, MODEL, GUIDE, scaled(1.0, x), batch, **settings)
