"""Algorithms that are no descent run in the same loop: natural gradients, batch and match, Stein
variational gradients, averages; each ends where it must.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_problems import ADAM, DATA, GLOBAL, KEY, LOCAL, START, D, N, assert_same, global_model

import vijax as vj
from vijax import algorithms, families, guides, models, rules

FULL = guides.shared(families.full_normal(D))
PRECISION = N + 1.0  # of the posterior of w; its mean is sum x / (N + 1)


def exact_estimator(guide, *, model=None, num_data=N):
    """An ELBO gradient without noise for a normal q and a quadratic log-joint."""
    model = global_model() if model is None else model
    return vj.estimator(model, guide, rules=rules.quadratic_control(), num_data=num_data)


@pytest.mark.parametrize("make", [families.diag_normal, families.full_normal])
def test_one_natural_step_ends_at_a_conjugate_posterior(make, x64):
    guide = guides.shared(make(D))
    estimator = exact_estimator(guide)
    params = estimator.init_params(jax.random.key(0))
    start = jax.tree.map(lambda leaf: leaf + 0.7, params.phi)
    algorithm = algorithms.natural_gradient(estimator, guide, 1.0)
    data = np.asarray(DATA, np.float64)
    lam = vj.fit(KEY, algorithm, params._replace(phi=start), data, num_steps=1).params.phi["w"]
    family = guide.families["w"]
    np.testing.assert_allclose(families.mean(family, lam), data.sum(axis=0) / PRECISION, atol=1e-10)
    covariance = families.need(family, families.NormalMoments).covariance(lam)
    np.testing.assert_allclose(covariance, np.eye(D) / PRECISION, atol=1e-10)
    half = algorithms.natural_gradient(estimator, guide, 0.5)
    short = vj.fit(KEY, half, params._replace(phi=start), data, num_steps=1).params.phi["w"]
    assert not np.allclose(families.mean(family, short), families.mean(family, lam), atol=1e-3)


def test_one_natural_step_moves_the_rows_of_its_batch_to_their_posteriors(x64):
    model = models.conjugate_normal(D, noise_scale=0.8)
    guide = guides.per_datapoint(families.diag_normal(D), N)
    estimator = exact_estimator(guide, model=model)
    params, data = estimator.init_params(jax.random.key(0)), np.asarray(DATA, np.float64)
    algorithm = algorithms.natural_gradient(estimator, guide, 1.0)
    result = vj.fit(KEY, algorithm, params, data, num_steps=1, batch_size=5)
    posterior = jax.vmap(model.posterior, (None, 0))(params.theta, data)
    moved = np.any(result.params.phi["z"]["loc"] != params.phi["z"]["loc"], axis=1)
    assert moved.sum() == 5
    for name in ("loc", "log_scale"):
        rows = result.params.phi["z"][name]
        np.testing.assert_allclose(rows[moved], posterior[name][moved], atol=1e-10)
        assert_same(rows[~moved], params.phi["z"][name][~moved])


def test_natural_gradients_learn_theta_beside_q():
    """Noisy gradients, a small rate, the evidence's maximum of a conjugate model."""
    model = models.conjugate_normal(D)
    guide = guides.per_datapoint(families.diag_normal(D), N)
    estimator = vj.estimator(model, guide, rules=rules.pathwise(), num_samples=4, num_data=N)
    optimizer = optax.adam(optax.exponential_decay(0.05, 1000, 0.01))
    algorithm = algorithms.natural_gradient(estimator, guide, 0.2, optimizer=optimizer)
    params = estimator.init_params(jax.random.key(0))
    theta = vj.fit(KEY, algorithm, params, DATA, num_steps=1000).params.theta
    np.testing.assert_allclose(theta["loc"], jnp.mean(DATA, axis=0), atol=0.05)


def test_noisy_natural_gradients_end_where_exact_ones_do():
    """Minibatches, one sample: the average of the last half is the posterior, mean and scale. A cut
    of the steps on one side would show at any rate.
    """
    num_data = 2000
    x = 0.5 + jax.random.normal(jax.random.key(7), (num_data, 1))
    guide = guides.shared(families.diag_normal(1, init_scale=0.05))
    estimator = vj.estimator(global_model(), guide, rules=rules.pathwise(), num_data=num_data)
    algorithm = algorithms.natural_gradient(estimator, guide, 0.002)
    params = estimator.init_params(KEY)
    lam = vj.fit(
        KEY,
        algorithm,
        params,
        x,
        num_steps=8000,
        batch_size=100,
        record_every=1000,
        averaging=algorithms.since(4000),
    ).params.phi["w"]
    deviation = (num_data + 1.0) ** -0.5
    assert abs(lam["loc"][0] - x.sum() / (num_data + 1.0)) < deviation
    np.testing.assert_allclose(jnp.exp(lam["log_scale"]), deviation, rtol=0.15)


def test_natural_steps_keep_their_digits_at_the_edges():
    """Float32, saturated logits and large shapes: towards the target, not past it."""
    bits, one = families.bernoulli(1), jnp.float32(0.1)
    step = families.need(bits, families.Natural).step
    for logit, target in ((17.0, 16.0), (-20.0, -19.0)):
        p = 1.0 / (1.0 + np.exp(-np.float64(logit)))
        slope = {"logits": jnp.array([p * (1.0 / (1.0 + np.exp(logit))) * (target - logit)])}
        moved = step({"logits": jnp.array([logit])}, slope, one)["logits"][0]
        np.testing.assert_allclose(moved, logit + 0.1 * (target - logit), rtol=1e-3)
    gamma = families.gamma(1)
    step = families.need(gamma, families.Natural).step
    kl = families.need(gamma, families.Kl).value
    for log_shape in (4.0, 5.0, 9.0):
        lam = {"log_shape": jnp.array([log_shape]), "log_rate": jnp.array([0.3])}
        to = {"log_shape": jnp.array([log_shape + 0.05]), "log_rate": jnp.array([0.3])}
        slope = jax.tree.map(jnp.negative, jax.grad(kl)(lam, to))
        moved = step(lam, slope, jnp.float32(1.0))
        np.testing.assert_allclose(moved["log_shape"], to["log_shape"], atol=0.02)


def test_natural_gradients_refuse_what_is_not_lam():
    encoder = (lambda key: jnp.zeros((4, D)), lambda phi, x: phi @ x)
    guide = guides.amortized(families.diag_normal(D), encoder)
    model = models.conjugate_normal(D)
    estimator = vj.estimator(model, guide, rules=rules.pathwise(), num_data=N)
    with pytest.raises(ValueError, match="is not lam .* Use guides.shared"):
        algorithms.natural_gradient(estimator, guide, 0.5)
    with pytest.raises(ValueError, match="rate=1.5"):
        algorithms.natural_gradient(GLOBAL, guides.shared(families.diag_normal(D)), 1.5)
    heavy = guides.shared(families.student_t(D))
    other = vj.estimator(global_model(), heavy, rules=rules.pathwise(), num_data=N)
    with pytest.raises(ValueError, match="no natural-gradient step is known"):
        algorithms.natural_gradient(other, heavy, 0.5)


def test_batch_and_match_finds_a_normal_posterior_in_ten_steps(x64):
    algorithm = algorithms.batch_and_match(
        global_model(), FULL, num_samples=20, num_data=N, rate=1e4
    )
    params = vj.Params((), FULL.init(jax.random.key(0)), ())
    data = np.asarray(DATA, np.float64)
    result = vj.fit(KEY, algorithm, params, data, num_steps=10, record_every=1)
    lam = result.params.phi["w"]
    np.testing.assert_allclose(lam["loc"], data.sum(axis=0) / PRECISION, atol=1e-6)
    factor = families.cholesky(lam)
    np.testing.assert_allclose(factor @ factor.T, np.eye(D) / PRECISION, atol=1e-6)
    evidence = -vj.diagnostics.log_evidence(
        KEY, global_model(), FULL, result.params, vj.Batch(data, jnp.arange(N)), num_samples=10
    ).log_evidence
    np.testing.assert_allclose(result.history.loss[-1], evidence, atol=1e-4)


def test_the_match_solves_its_own_equation(x64):
    """S U S + S = V and the stationary mean, for scores of no normal."""
    random = np.random.default_rng(0)
    lam = FULL.families["w"].init(jax.random.key(1)) | {
        "lower": jnp.array([[0.0, 0.0], [0.7, 0.0]])
    }
    w, scores, weight = random.normal(size=(5, D)), random.normal(size=(5, D)), 3.0
    new = algorithms.match(lam, jnp.asarray(w), jnp.asarray(scores), weight)
    old, factor = families.cholesky(lam), families.cholesky(new)
    share, covariance = weight / (1.0 + weight), factor @ factor.T
    gap, pull = lam["loc"] - w.mean(axis=0), scores.mean(axis=0)
    inner = weight * np.cov(scores.T, bias=True) + share * np.outer(pull, pull)
    spread = old @ old.T + weight * np.cov(w.T, bias=True) + share * np.outer(gap, gap)
    np.testing.assert_allclose(covariance @ inner @ covariance + covariance, spread, atol=1e-10)
    mean = (1.0 - share) * lam["loc"] + share * (covariance @ pull + w.mean(axis=0))
    np.testing.assert_allclose(new["loc"], mean, atol=1e-10)


def test_batch_and_match_works_in_the_space_of_constrained_latents():
    """A positive latent: q in u = log w matches the target's mode and curvature there."""
    space = {"rate": vj.supports.positive()}
    guide = guides.shared(families.over(space, families.full_normal))
    model = vj.models.bayes_model(
        lambda theta, w: -w["rate"], lambda theta, w, x: jnp.log(w["rate"]) - w["rate"] * x
    )
    x = jnp.array([0.5, 1.0, 0.2, 0.7, 0.1])
    algorithm = algorithms.batch_and_match(model, guide, num_samples=50, num_data=5)
    params = vj.Params((), guide.init(KEY), ())
    result = vj.fit(KEY, algorithm, params, x, num_steps=200)
    lam = result.params.phi["w"]
    # The posterior is Gamma(6, 1 + sum x): log w has mean digamma(6) - log(3.5), variance 0.181.
    np.testing.assert_allclose(lam["loc"][0], 1.7061 - np.log(3.5), atol=0.06)
    np.testing.assert_allclose(2.0 * lam["log_scale"][0], np.log(0.1813), atol=0.3)
    draws = vj.draws(KEY, model, guide, result.params, vj.Batch(x, jnp.arange(5)), num_samples=9)
    assert bool(jnp.all(draws.w["rate"] > 0.0))


def test_a_start_that_is_no_lam_is_refused():
    algorithm = algorithms.batch_and_match(global_model(), FULL, num_samples=4, num_data=N)
    with pytest.raises(ValueError, match=r"vijax.Params\(theta, guide.init\(key\), \(\)\)"):
        vj.fit(KEY, algorithm, FULL.init(KEY), DATA, num_steps=2)
    with pytest.raises(ValueError, match="lam of full_normal"):
        other = guides.shared(families.full_normal(D + 1)).init(KEY)
        vj.fit(KEY, algorithm, vj.Params((), other, ()), DATA, num_steps=2)


def test_batch_and_match_refuses_other_families():
    with pytest.raises(ValueError, match="fits a full-covariance normal"):
        algorithms.batch_and_match(
            global_model(), guides.shared(families.diag_normal(D)), num_samples=4, num_data=N
        )
    with pytest.raises(ValueError, match="num_samples=1"):
        algorithms.batch_and_match(global_model(), FULL, num_samples=1, num_data=N)


def test_stein_particles_have_the_posteriors_mean_and_spread():
    algorithm = algorithms.svgd(
        global_model(), FULL, optax.adagrad(0.3), num_particles=60, num_data=N
    )
    params = vj.Params((), FULL.init(jax.random.key(0)), ())
    draws = algorithms.particles(vj.fit(KEY, algorithm, params, DATA, num_steps=600).params)
    w = np.asarray(draws.w)
    assert w.shape == (60, D) and draws.log_w.shape == (60,) and draws.z is None
    deviation = PRECISION**-0.5
    np.testing.assert_allclose(w.mean(axis=0), DATA.sum(axis=0) / PRECISION, atol=0.05 * deviation)
    np.testing.assert_allclose(w.std(axis=0), deviation, rtol=0.15)


def test_the_stein_direction_attracts_by_the_scores_and_repels_by_the_kernel(x64):
    """Liu and Wang 2016, eq. 8, written as a double loop; two particles alone push apart."""
    random = np.random.default_rng(1)
    w, scores = random.normal(size=(6, D)), random.normal(size=(6, D))
    squared = np.square(w[:, None] - w[None]).sum(axis=-1)
    width = np.median(squared[np.triu_indices(6, 1)]) / np.log(6)
    expected = np.zeros_like(w)
    for i in range(6):
        for j in range(6):
            kernel = np.exp(-squared[j, i] / width)
            expected[i] += (kernel * scores[j] - 2.0 / width * (w[j] - w[i]) * kernel) / 6
    ours = algorithms.stein_direction(jnp.asarray(w), jnp.asarray(scores))
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    apart = algorithms.stein_direction(jnp.array([[0.0], [1.0]]), jnp.zeros((2, 1)))
    assert apart[0, 0] < 0.0 < apart[1, 0]


ALGORITHMS = {
    "descent": (vj.descent(GLOBAL, ADAM), START),
    "natural_gradient": (
        algorithms.natural_gradient(GLOBAL, guides.shared(families.diag_normal(D)), 0.1),
        START,
    ),
    "batch_and_match": (
        algorithms.batch_and_match(global_model(), FULL, num_samples=4, num_data=N),
        vj.Params((), FULL.init(jax.random.key(0)), ()),
    ),
    "svgd": (
        algorithms.svgd(global_model(), FULL, ADAM, num_particles=5, num_data=N),
        vj.Params((), FULL.init(jax.random.key(0)), ()),
    ),
    "averaged": (algorithms.averaged(vj.descent(GLOBAL, ADAM), algorithms.since(3)), START),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_the_same_history_resume_and_chunks(name):
    algorithm, params = ALGORITHMS[name]
    settings = {"record_every": 2, "batch_size": 4}
    whole = vj.fit(KEY, algorithm, params, DATA, num_steps=11, chunk_size=4, **settings)
    np.testing.assert_array_equal(whole.history.step, np.arange(0, 11, 2))
    assert np.all(np.isfinite(whole.history.loss))
    part = vj.fit(KEY, algorithm, params, DATA, num_steps=5, chunk_size=4, **settings)
    rest = vj.fit(KEY, algorithm, None, DATA, num_steps=6, chunk_size=4, resume=part, **settings)
    assert_same((whole.carry, whole.history), (rest.carry, rest.history))
    step = jax.jit(algorithm.step)  # and in a loop of one's own
    state, info = step(KEY, part.state, vj.Batch(DATA, jnp.arange(N)))
    assert jax.tree.structure(state) == jax.tree.structure(part.state)
    assert bool(info.finite) and info.loss.shape == ()


def test_averages_of_iterates():
    """The mean of the last iterates, and the exponential one, against iterates kept by hand."""
    iterates = []
    vj.fit(
        KEY,
        vj.descent(GLOBAL, ADAM),
        START,
        DATA,
        num_steps=12,
        record_every=1,
        chunk_size=1,
        callbacks=[lambda progress: iterates.append(progress.params.phi["w"]["loc"])],
    )
    run = {"num_steps": 12, "record_every": 1, "chunk_size": 1}
    algorithm = vj.descent(GLOBAL, ADAM)
    last = vj.fit(KEY, algorithm, START, DATA, averaging=algorithms.since(6), **run)
    np.testing.assert_allclose(last.params.phi["w"]["loc"], np.mean(iterates[6:], 0), rtol=1e-5)
    decayed = vj.fit(KEY, algorithm, START, DATA, averaging=algorithms.exponential(0.5), **run)
    mean = iterates[0]
    for iterate in iterates[1:]:
        mean = 0.5 * mean + 0.5 * iterate
    np.testing.assert_allclose(decayed.params.phi["w"]["loc"], mean, rtol=1e-5)
    # The iterates themselves are not moved by being averaged.
    inner = last.state.inner.params.phi["w"]["loc"]
    np.testing.assert_allclose(inner, iterates[-1], rtol=1e-6)


def test_a_table_is_averaged_too():
    algorithm = vj.descent(LOCAL, ADAM)
    params = LOCAL.init_params(jax.random.key(0))
    averaging = algorithms.since(0)
    one = vj.fit(KEY, algorithm, params, DATA, num_steps=1, averaging=averaging)
    plain = vj.fit(KEY, algorithm, params, DATA, num_steps=1)
    np.testing.assert_allclose(one.params.phi["z"]["loc"], plain.params.phi["z"]["loc"], rtol=1e-6)
