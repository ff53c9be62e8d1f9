"""A fit finds what is known: the exact posterior, the maximum of the evidence, the best mean-field
normal.

Distances are in nats: a parameter that is wrong by one posterior standard error costs half a nat.
Where q contains the posterior, sticking-the-landing has no noise there and the fit comes within
1e-4 nats; elsewhere within a hundredth.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from scipy import linalg, stats

import vijax as vj
from vijax import families, guides, models
from vijax.rules import closed_form_kl, doubly_reparameterized, enumerated, pathwise

pytestmark = pytest.mark.usefixtures("x64")

NEAR, SHARP = 0.01, 1e-4  # nats


def decaying_adam(rate, num_steps, *, last=1e-5):
    return optax.adam(optax.exponential_decay(rate, num_steps, last))


def fitted(estimator, data, *, rate, num_steps, params=None, last=1e-5, key=0):
    optimizer = decaying_adam(rate, num_steps, last=last)
    params = estimator.init_params(jax.random.key(key)) if params is None else params
    return vj.fit(
        jax.random.key(key + 1),
        vj.descent(estimator, optimizer),
        params,
        data,
        num_steps=num_steps,
        record_every=num_steps,
    )


def fit_conjugate_normal(model, x):
    """A table of phi_i and learned theta. Theta's gradient is exact given phi, phi's is noiseless
    at the posterior.
    """
    guide = guides.per_datapoint(families.diag_normal(2), len(x))
    theta, phi = (
        vj.estimator(model, guide, rules=rule, num_samples=1, num_data=len(x))
        for rule in (closed_form_kl(pathwise()), doubly_reparameterized())
    )
    return fitted(vj.split(theta=theta, phi=phi), x, rate=0.1, num_steps=1500, last=1e-4).params


def conjugate_data():
    return np.random.default_rng(0).normal(size=(12, 2)) * np.array([1.5, 2.0]) + np.array(
        [1.0, -2.0]
    )


def assert_conjugate_optimum(params, x, noise_scale):
    """Theta is the evidence's maximum, every phi_i is the posterior."""
    noise = noise_scale**2 * np.eye(2)
    theta = jax.tree.map(np.asarray, params.theta)
    variance = np.exp(2.0 * theta["log_scale"])
    marginal = stats.multivariate_normal(theta["loc"], np.diag(variance) + noise)
    largest = stats.multivariate_normal(x.mean(axis=0), np.diag(x.var(axis=0))).logpdf(x).sum()
    lost = largest - marginal.logpdf(x).sum()
    assert 0.0 <= lost < SHARP, f"theta is {lost} nats below the largest evidence"
    gap = 0.0
    for row, loc, log_scale in zip(
        x, np.asarray(params.phi["z"]["loc"]), np.asarray(params.phi["z"]["log_scale"]), strict=True
    ):
        _, mean, cov = oracles.linear_gaussian(
            row, np.eye(2), np.zeros(2), noise, theta["loc"], np.diag(variance)
        )
        gap += oracles.kl_normal(loc, np.diag(np.exp(2.0 * log_scale)), mean, cov)
    assert gap < SHARP, f"{gap} nats between guide and posterior"


def test_conjugate_normal_reaches_posterior_and_largest_evidence():
    x = conjugate_data()
    assert_conjugate_optimum(
        fit_conjugate_normal(models.conjugate_normal(2, noise_scale=0.8), x), x, 0.8
    )


def test_check_catches_a_noise_that_is_two_per_cent_off():
    x = conjugate_data()
    with pytest.raises(AssertionError, match="nats"):
        assert_conjugate_optimum(
            fit_conjugate_normal(models.conjugate_normal(2, noise_scale=0.816), x), x, 0.8
        )


def fit_linear_regression(model, x):
    guide = guides.shared(families.full_normal(3))
    estimator = vj.estimator(
        model, guide, rules=doubly_reparameterized(), num_samples=8, num_data=9
    )
    return fitted(estimator, x, rate=0.1, num_steps=2000, last=1e-2).params.phi["w"]


def regression_data():
    rng = np.random.default_rng(1)
    return {"features": rng.normal(size=(9, 3)), "label": rng.normal(size=9)}


def assert_regression_posterior(lam, x):
    _, loc, cov = oracles.linear_gaussian(
        x["label"], x["features"], np.zeros(9), 0.25 * np.eye(9), np.zeros(3), 1.44 * np.eye(3)
    )
    factor = np.asarray(families.cholesky(lam))
    gap = oracles.kl_normal(np.asarray(lam["loc"]), factor @ factor.T, loc, cov)
    assert gap < SHARP, f"{gap} nats from the posterior"


def test_linear_regression_reaches_the_posterior():
    x = regression_data()
    model = models.linear_regression(3, noise_scale=0.5, prior_scale=1.2)
    assert_regression_posterior(fit_linear_regression(model, x), x)


def test_check_catches_a_forgotten_prior():
    x = regression_data()
    model = models.linear_regression(3, noise_scale=0.5, prior_scale=1.2)
    with pytest.raises(AssertionError, match="posterior"):
        assert_regression_posterior(
            fit_linear_regression(model._replace(log_prior=lambda theta, w: jnp.zeros(())), x), x
        )


def test_pca_reaches_the_eigenvalue_solution():
    """The encoder is linear, as the exact posterior is; theta's gradient keeps its sampling noise,
    averaged by decay.
    """
    rng = np.random.default_rng(2)
    x = (
        rng.normal(size=(60, 2)) @ rng.normal(size=(2, 5)) * 1.5
        + rng.normal(size=5)
        + 0.5 * rng.normal(size=(60, 5))
    )
    model, family = models.probabilistic_pca(5, 2), families.full_normal(2)
    kl = families.need(family, families.Kl).value
    encoder = (
        lambda key: family.init(key) | {"matrix": jnp.zeros((2, 5))},
        lambda phi, row: {
            "loc": phi["loc"] + phi["matrix"] @ row,
            "log_scale": phi["log_scale"],
            "lower": phi["lower"],
        },
    )
    estimator = vj.estimator(
        model,
        guides.amortized(family, encoder),
        rules=doubly_reparameterized(),
        num_samples=8,
        num_data=60,
    )
    params = fitted(estimator, x, rate=0.1, num_steps=2000, last=1e-3).params
    mean, covariance, noise, largest = oracles.pca_maximum(x, 2)
    theta = params.theta
    evidence = jnp.sum(jax.jit(jax.vmap(model.log_evidence, (None, 0)))(theta, x))
    assert largest - NEAR < evidence < largest + 1e-9, f"evidence {evidence}, its maximum {largest}"
    # A hundredth of a nat over 60 data is a covariance within about sqrt(2 NEAR / 60) = 2 % in
    # every direction.
    ours = theta["weights"] @ theta["weights"].T + jnp.exp(2.0 * theta["log_noise"]) * jnp.eye(5)
    ratio = linalg.eigh(ours, covariance, eigvals_only=True)
    assert np.all(np.abs(ratio - 1.0) < 0.03), ratio

    @jax.jit
    def gap_of(row):
        return kl(encoder[1](params.phi["z"], row), model.posterior(theta, row))

    gap = sum(gap_of(row) for row in x)
    assert 0.0 <= gap < NEAR, f"{gap} nats between guide and posterior"


def mixture_problem():
    rng = np.random.default_rng(3)
    centres = np.array([[-2.0, 0.0], [2.0, 1.0], [0.5, -2.5]])
    x = centres[rng.integers(3, size=60)] + rng.normal(size=(60, 2)) * np.array([0.7, 1.0])
    start = {"logits": np.zeros(3), "loc": 0.5 * centres, "log_scale": np.zeros((3, 2))}
    model, guide = models.gaussian_mixture(3, 2), guides.per_datapoint(families.categorical(3), 60)
    return x, start, model, vj.estimator(model, guide, rules=enumerated(), num_data=60)


def test_mixture_reaches_the_maximum_that_em_reaches():
    x, theta, model, estimator = mixture_problem()
    params = estimator.init_params(jax.random.key(0))._replace(
        theta=jax.tree.map(jnp.asarray, theta)
    )
    params = fitted(estimator, x, rate=0.1, num_steps=2500, params=params, last=0.1).params
    for _ in range(500):
        theta = oracles.mixture_em_step(x, theta)
    largest = oracles.mixture_log_evidence(x, theta).sum()
    evidence = oracles.mixture_log_evidence(x, jax.tree.map(np.asarray, params.theta)).sum()
    assert abs(evidence - largest) < SHARP, f"evidence {evidence}, EM's {largest}"
    np.testing.assert_allclose(params.theta["loc"], theta["loc"], rtol=0, atol=0.01)
    joint = oracles.mixture_log_joint(x, **theta)
    np.testing.assert_allclose(
        jax.nn.softmax(params.phi["z"]["logits"]),
        np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None]),
        rtol=0,
        atol=0.01,
    )


def test_hierarchical_normal_reaches_the_best_mean_field():
    """Global w and a table of z_i; theta is held by giving it an optimiser of its own."""
    x = np.random.default_rng(4).normal(size=4) * 1.5 + 1.0
    model = models.hierarchical_normal(1, prior_scale=2.0, noise_scale=0.8)
    guide = guides.hierarchical(
        w=guides.shared(families.diag_normal(1)), z=guides.per_datapoint(families.diag_normal(1), 4)
    )
    estimator = vj.estimator(
        model, guide, rules=doubly_reparameterized(), num_samples=8, num_data=4
    )
    steps = 800
    optimizer = optax.partition(
        {"fixed": optax.set_to_zero(), "free": decaying_adam(0.1, steps, last=1e-2)},
        vj.Params("fixed", "free", "free"),
    )
    by_row = vj.rowwise.adam(optax.exponential_decay(0.1, steps, 1e-2))
    result = vj.fit(
        jax.random.key(1),
        vj.descent(estimator, optimizer, rows=by_row),
        estimator.init_params(jax.random.key(0)),
        x[:, None],
        num_steps=steps,
    )
    assert result.params.theta["log_scale"] == 0.0
    _, loc, cov = oracles.hierarchical_normal(x, 2.0, 1.0, 0.8)
    w, z = result.params.phi["w"], result.params.phi["z"]
    ours = np.concatenate([w["loc"], z["loc"][:, 0]])
    scale = np.exp(np.concatenate([w["log_scale"], z["log_scale"][:, 0]]))
    least = oracles.kl_normal(loc, np.diag(oracles.mean_field_variance(cov)), loc, cov)
    gap = oracles.kl_normal(ours, np.diag(scale**2), loc, cov)
    assert least > 0.2 and 0.0 < gap - least < NEAR, (
        f"KL to the joint posterior {gap}, least possible {least}"
    )
    # The exact marginals are wider, and a check on the KL tells them from the optimum.
    assert oracles.kl_normal(loc, np.diag(np.diag(cov)), loc, cov) - least > 5 * NEAR


def test_logistic_regression_reaches_the_best_mean_field():
    rng = np.random.default_rng(5)
    features = rng.normal(size=(30, 3))
    label = (rng.random(30) < 1.0 / (1.0 + np.exp(-features @ np.array([1.5, -1.0, 0.0])))).astype(
        float
    )
    loc, scale, largest = oracles.logistic_mean_field_maximum(features, label, 1.5)
    model = models.logistic_regression(3, prior_scale=1.5)
    estimator = vj.estimator(
        model,
        guides.shared(families.diag_normal(3)),
        rules=closed_form_kl(pathwise()),
        num_samples=8,
        num_data=30,
    )
    lam = fitted(
        estimator, {"features": features, "label": label}, rate=0.05, num_steps=1000, last=1e-2
    ).params.phi["w"]
    ours = oracles.logistic_mean_field_bound(
        features, label, 1.5, np.asarray(lam["loc"]), np.exp(lam["log_scale"])
    )
    assert largest - NEAR < ours < largest + 1e-6, f"bound {ours}, its maximum {largest}"
    # The check has teeth: means a standard error off cost half a nat each.
    assert (
        oracles.logistic_mean_field_bound(features, label, 1.5, loc + 0.2 * scale, scale)
        < largest - NEAR
    )


def test_eight_schools_bound_is_below_and_near_the_evidence():
    model, data = models.eight_schools(), models.eight_schools_data()
    estimator = vj.estimator(
        model,
        guides.shared(families.full_normal(10)),
        rules=doubly_reparameterized(),
        num_samples=10,
        num_data=1,
    )
    lam = fitted(estimator, data, rate=0.05, num_steps=1000, last=1e-2).params.phi["w"]
    family = families.full_normal(10)
    datum = jax.tree.map(lambda leaf: leaf[0], data)

    @jax.jit
    def log_weights(key):
        def one(sample):
            return (
                model.log_prior((), sample.z)
                + model.log_local((), sample.z, None, datum)
                - sample.log_q
            )

        return vj.rules.evaluate(one, vj.rules.draw(key, vj.Q(family, lam), 20_000))[0]

    log_w = np.asarray(log_weights(jax.random.key(7)))
    exact = oracles.eight_schools_log_evidence(datum["effect"], datum["standard_error"], 5.0, 5.0)
    standard_error = log_w.std(ddof=1) / len(log_w) ** 0.5
    assert exact - 0.5 < log_w.mean() < exact + 5.0 * standard_error
    weights = np.exp(log_w - exact)
    assert abs(weights.mean() - 1.0) < 5.0 * weights.std(ddof=1) / len(weights) ** 0.5, (
        "the evidence is not the oracle's"
    )
    assert weights.std(ddof=1) / len(weights) ** 0.5 < 0.02, "too few effective samples to tell"


def test_mixed_rules_fit_a_mixture_of_factor_analyzers_below_its_evidence():
    model = models.mixture_of_factor_analyzers(2, 3, 1)
    theta = model.init(jax.random.key(0)) | {
        "weights": jax.random.normal(jax.random.key(1), (2, 3, 1))
    }
    _, x = model.simulate(jax.random.key(2), theta, 10)
    guide = guides.per_datapoint(
        families.product(c=families.categorical(2), z=families.diag_normal(1)), 10
    )
    rules = {"c": enumerated(), "z": doubly_reparameterized()}
    estimator = vj.estimator(model, guide, rules=rules, num_samples=4, num_data=10)
    params, steps = estimator.init_params(jax.random.key(3)), 400
    optimizer = decaying_adam(0.1, steps, last=1e-4)
    result = vj.fit(
        jax.random.key(4),
        vj.descent(estimator, optimizer),
        params,
        x,
        num_steps=steps,
        record_every=1,
    )
    # The last hundred steps move by less than 1e-3: their losses are draws of one bound, with fresh
    # noise each.
    start, after, params = -result.history.loss[0], -result.history.loss[-100:], result.params
    evidence = sum(
        oracles.factor_mixture_log_evidence(row, **jax.tree.map(np.asarray, params.theta))
        for row in np.asarray(x)
    )
    standard_error = after.std(ddof=1) / 10.0
    assert start + 10.0 * after.std(ddof=1) < after.mean() < evidence + 5.0 * standard_error
