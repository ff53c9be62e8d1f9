"""Approximation and amortization gap against exact numbers on probabilistic PCA, for tables,
encoders and refined guides, families of growing richness, and a discrete family by enumeration.
"""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import vijax as vj
from vijax import diagnostics, families, guides, models, rules

KEY = jax.random.key(7)
N, P, D = 12, 5, 2
MODEL = models.probabilistic_pca(P, D)
THETA = {
    "weights": jax.random.normal(jax.random.key(1), (P, D)),
    "bias": jnp.zeros(P),
    "log_noise": jnp.array(-0.4),
}
_, X = MODEL.simulate(KEY, THETA, N)
BATCH = vj.Batch(X, jnp.arange(N))
PRECISION = np.eye(D) + np.exp(0.8) * np.asarray(THETA["weights"].T @ THETA["weights"], np.float64)
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = np.asarray(X, np.float64) @ np.asarray(THETA["weights"]) * np.exp(0.8) @ COVARIANCE
TABLE = guides.per_datapoint(families.diag_normal(D), N)
SETTINGS = {"steps": 300, "num_samples": 500, "chunk_size": N}


def best(shift=0.0, log_scale=0.0):
    """[N] the best diagonal normals, which have the posterior's means and the diagonal of its
    precision, moved.
    """
    scale = -0.5 * np.log(np.diag(PRECISION)) + log_scale
    lam = {"loc": MEAN + shift, "log_scale": np.broadcast_to(scale, (N, D))}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), lam)


def kl(lam):
    """[N] KL(q || posterior), by numpy."""
    loc, variance = np.asarray(lam["loc"], np.float64), np.exp(2.0 * np.asarray(lam["log_scale"]))
    return np.array(
        [
            oracles.kl_normal(m, np.diag(v), mean, COVARIANCE)
            for m, v, mean in zip(loc, variance, MEAN, strict=True)
        ]
    )


def gaps(guide, phi, model=MODEL, **settings):
    params = vj.Params(THETA, phi, ())
    return diagnostics.inference_gap(KEY, model, guide, params, BATCH, **(SETTINGS | settings))


def away(estimated, exact):
    """Largest z-score; 1e-5 nats are rounding."""
    value, error = (np.asarray(leaf, np.float64) for leaf in estimated)
    assert value.shape == error.shape == (N,)
    return np.max((np.abs(value - exact) - 1e-5) / np.maximum(error, 1e-12))


def test_the_family_that_holds_the_posterior_has_no_approximation_gap():
    guide = guides.per_datapoint(families.full_normal(D), N)
    phi = guide.init(KEY)
    seen = gaps(guide, phi)
    assert away(seen.approximation, 0.0) < 5.0
    assert np.max(seen.approximation.standard_error) < 0.01
    q = jax.vmap(lambda lam: lam["loc"])(phi["z"])
    apart = np.array(
        [
            oracles.kl_normal(np.asarray(m, np.float64), np.eye(D), mean, COVARIANCE)
            for m, mean in zip(q, MEAN, strict=True)
        ]
    )
    start = families.cholesky(jax.tree.map(lambda leaf: leaf[0], phi["z"]))
    np.testing.assert_allclose(start, np.eye(D), atol=1e-6)
    assert away(seen.amortization, apart) < 5.0


def test_a_table_of_diagonal_normals_at_its_optimum_and_away_from_it():
    """Approximation gap: KL(best diagonal || posterior), whatever the rows. Amortization gap: 0 at
    the optimum, elsewhere the difference of the exact bounds.
    """
    exact = kl(best())
    assert np.min(exact) > 0.1
    for rows in (best(), best(0.4, 0.3), best(-0.3, -0.5)):
        seen = gaps(TABLE, {"z": rows})
        assert away(seen.approximation, exact) < 5.0
        assert away(seen.amortization, kl(rows) - exact) < 5.0
        assert away(seen.bound, np.asarray(seen.evidence.log_evidence) - kl(rows)) < 5.0
        parts = seen.bound.value + seen.amortization.value + seen.approximation.value
        np.testing.assert_allclose(parts, seen.evidence.log_evidence, rtol=1e-5)
        mean = diagnostics.averaged(seen.approximation)
        assert abs(mean.value - exact.mean()) < 5.0 * mean.sampling_error < 0.06
    at_optimum = gaps(TABLE, {"z": best()}).amortization
    mean = diagnostics.averaged(at_optimum)
    assert abs(mean.value) < 5.0 * mean.sampling_error < 5e-3
    # One set of noise: the difference is known far better than either bound
    assert np.mean(at_optimum.standard_error) < 0.2 * np.mean(seen.best.standard_error)


def encoder():
    """The best encoder, a linear one, as weights."""
    weights = np.asarray(THETA["weights"]) * np.exp(0.8) @ COVARIANCE
    return {"weights": jnp.asarray(weights, jnp.float32), "log_scale": best()["log_scale"][0]}


def encode(phi, x):
    return {"loc": x @ phi["weights"], "log_scale": phi["log_scale"]}


def test_a_perturbed_encoder_and_its_refinement():
    """The amortization gap is the exact difference of the bounds; refined guides are judged
    refined, and theirs is smaller, while the approximation gap is the same.
    """
    plain = guides.amortized(families.diag_normal(D), ((lambda key: encoder()), encode))
    off = jax.tree.map(lambda leaf: leaf + 0.1, encoder())
    lam = jax.vmap(encode, (None, 0))(off, X)
    seen = gaps(plain, {"z": off})
    assert away(seen.amortization, kl(lam) - kl(best())) < 5.0
    step = rules.doubly_reparameterized()
    refined = guides.semi_amortized(plain, 5, 0.05, rule=step, through=False, num_samples=4)
    after = gaps(refined, {"z": off})
    assert away(after.approximation, kl(best())) < 5.0
    less = diagnostics.averaged(after.amortization).value
    assert 0.0 < less < 0.5 * diagnostics.averaged(seen.amortization).value


def test_the_evidence_is_estimated_where_nobody_knows_it():
    """By importance samples from the best q, or as one likes; never below the best bound."""
    unknown = MODEL._replace(log_evidence=None)
    seen = gaps(TABLE, {"z": best(0.4)}, unknown)
    assert away(seen.approximation, kl(best())) < 5.0 and np.all(seen.approximation.value > 0.0)
    assert seen.evidence.reliable.shape == (N,)

    def many_samples(key, batch):
        params = vj.Params(THETA, {"z": best()}, ())
        return diagnostics.log_evidence(key, MODEL, TABLE, params, batch, num_samples=4000)

    sure = gaps(TABLE, {"z": best(0.4)}, unknown, evidence=many_samples)
    assert away(sure.approximation, kl(best())) < 5.0
    assert np.median(sure.evidence.standard_error) < np.median(seen.evidence.standard_error)


def test_a_discrete_family_is_searched_by_enumeration():
    model = models.gaussian_mixture(3, P)
    theta = model.init(KEY)
    guide = guides.per_datapoint(families.categorical(3), N)
    params = vj.Params(theta, {"z": {"logits": jnp.zeros((N, 3))}}, ())
    seen = diagnostics.inference_gap(
        KEY, model, guide, params, BATCH, rule=rules.enumerated(), rate=0.3, **SETTINGS
    )
    posterior = jax.nn.log_softmax(jax.vmap(model.posterior, (None, 0))(theta, X)["logits"])
    apart = np.asarray(-np.log(3.0) - posterior.mean(axis=1))  # KL(uniform || posterior)
    assert np.min(apart) > 0.05 and away(seen.amortization, apart) < 5.0
    assert away(seen.approximation, 0.0) < 5.0 and abs(np.mean(seen.approximation.value)) < 2e-3
    with pytest.raises(ValueError, match="differentiable sampler"):
        diagnostics.inference_gap(KEY, model, guide, params, BATCH, **SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"rate": 0.0}, "positive rate"),
        ({"num_samples": 1}, "at least 2 samples"),
        ({"rule": rules.score(vj.baselines.moving_average())}, "learns or remembers"),
    ],
)
def test_gaps_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        gaps(TABLE, {"z": best()}, **settings)


def test_a_global_latent_has_nothing_to_amortize():
    model = models.linear_regression(2)
    guide = guides.shared(families.full_normal(2))
    _, x = model.simulate(KEY, (), 5)
    with pytest.raises(ValueError, match="for a local latent alone"):
        diagnostics.inference_gap(
            KEY, model, guide, vj.Params((), guide.init(KEY), ()), vj.Batch(x, jnp.arange(5))
        )
