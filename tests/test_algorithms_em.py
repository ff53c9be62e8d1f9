"""EM as an algorithm: exact, incremental, online, by gradients and inside a family, each against
numpy's steps, the evidence and the known maxima.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from checks import assert_unbiased
from fit_problems import assert_same
from model_fixtures import FACTORS
from registry import MODELS
from scipy import special
from test_fits import mixture_problem

import vijax as vj
from vijax import algorithms, families, guides, models
from vijax.algorithms import em, natural_ascent
from vijax.models.probabilistic_pca import posterior_moments

pytestmark = pytest.mark.usefixtures("x64")

N, KEY = 60, jax.random.key(7)
ROWS = guides.per_datapoint(families.categorical(3), N)


@functools.cache
def problem():
    """(x, theta, model, the enumerated ELBO, which has no noise)."""
    x, theta, model, estimator = mixture_problem()
    return jnp.asarray(x), jax.tree.map(jnp.asarray, theta), model, estimator


def start(theta, guide=ROWS):
    return vj.Params(theta, guide.init(jax.random.key(1)), ())


@functools.partial(jax.jit, static_argnums=0)
def log_evidence(model, theta, x):
    return jnp.sum(jax.vmap(model.log_evidence, (None, 0))(theta, x))


slope_of = jax.jit(jax.grad(log_evidence, argnums=1), static_argnums=0)


def bound(params):
    """The ELBO on all data at these parameters."""
    x, _, _, estimator = problem()
    whole = params._replace(control={"z": ()})
    return -estimator.estimate(KEY, whole, {"z": ()}, vj.Batch(x, jnp.arange(N)))[0].loss


def run(algorithm, params, x, num_steps, *, index=None, watch=None):
    """[T] losses and what `watch` says of the params after every step; batches [T, B] of rows."""
    index = jnp.tile(jnp.arange(len(x)), (num_steps, 1)) if index is None else index

    def step(state, turn):
        number, rows = turn
        batch = vj.Batch(x[rows], rows)
        state, info = algorithm.step(jax.random.fold_in(KEY, number), state, batch)
        seen = () if watch is None else watch(algorithm.params(state))
        return state, (info.loss, info.finite, seen)

    turns = (jnp.arange(num_steps), index)
    state, (loss, finite, seen) = jax.jit(
        lambda params: jax.lax.scan(step, algorithm.init(KEY, params), turns)
    )(params)
    assert np.all(finite)
    return state, np.asarray(loss), jax.tree.map(np.asarray, seen)


def epochs(num_epochs, batch_size):
    """[T, B] rows, every epoch a permutation."""
    orders = [np.random.default_rng(seed).permutation(N) for seed in range(num_epochs)]
    return jnp.asarray(np.concatenate(orders).reshape(-1, batch_size))


def test_em_takes_numpys_steps_and_its_loss_is_the_log_likelihood():
    x, theta, model, _ = problem()
    algorithm = em(model, ROWS, num_data=N)
    fitted = vj.fit(KEY, algorithm, start(theta), x, num_steps=30, record_every=1)
    evidences, now = [], jax.tree.map(np.asarray, theta)
    for _ in range(30):
        evidences.append(oracles.mixture_log_evidence(np.asarray(x), now).sum())
        before, now = now, oracles.mixture_em_step(np.asarray(x), now)
    np.testing.assert_allclose(-fitted.history.loss, evidences, rtol=0, atol=1e-10)
    assert np.all(np.diff(-fitted.history.loss) > 0.0), "the log-likelihood fell"
    for name in now:
        np.testing.assert_allclose(fitted.params.theta[name], now[name], rtol=0, atol=1e-9)
    rows = special.softmax(fitted.params.phi["z"]["logits"], axis=1)
    joint = oracles.mixture_log_joint(np.asarray(x), **before)
    np.testing.assert_allclose(rows, special.softmax(joint, axis=1), atol=1e-10)


def test_em_is_ascent_of_the_elbo_with_q_the_posterior():
    """By equal numbers: bound and evidence, their gradients in theta; a planted other q is seen."""
    x, theta, model, estimator = problem()
    state, loss, _ = run(em(model, ROWS, num_data=N), start(theta), x, 1)
    evidence, slope = log_evidence(model, theta, x), slope_of(model, theta, x)
    assert abs(loss[0] + evidence) < 1e-10

    @jax.jit
    def grads(theta, phi):
        params = vj.Params(theta, phi, {"z": ()})
        batch = vj.Batch(x, jnp.arange(N))
        return estimator.estimate(KEY, params, {"z": ()}, batch)[0].grads

    at = grads(theta, state.params.phi)
    for name in theta:
        np.testing.assert_allclose(-at.theta[name], slope[name], rtol=0, atol=1e-10)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(at.phi)) < 1e-10
    best = grads(state.params.theta, state.params.phi).theta  # after the M-step
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(best)) < 1e-10
    other = grads(theta, jax.tree.map(lambda leaf: 0.9 * leaf, state.params.phi))
    assert np.abs(other.theta["loc"] + slope["loc"]).max() > 0.01


def test_a_posterior_that_is_not_stated_is_summed():
    x, theta, model, _ = problem()
    stated, _, _ = run(em(model, ROWS, num_data=N), start(theta), x, 3)
    summed = em(model._replace(posterior=None), ROWS, num_data=N)
    found, _, _ = run(summed, start(theta), x, 3)
    for mine, known in zip(*map(jax.tree.leaves, (found.params, stated.params)), strict=True):
        np.testing.assert_allclose(mine, known, rtol=0, atol=1e-12)


def pca_data():
    rng = np.random.default_rng(2)
    return rng.normal(size=(40, 2)) @ rng.normal(size=(2, 4)) * 1.5 + rng.normal(size=(40, 4))


def assert_pca_maximum(theta, x, tolerance):
    mean, covariance, noise, largest = oracles.pca_maximum(x, 2)
    weights, variance = np.asarray(theta["weights"]), np.exp(2.0 * theta["log_noise"])
    np.testing.assert_allclose(theta["bias"], mean, atol=tolerance)
    np.testing.assert_allclose(weights @ weights.T + variance * np.eye(4), covariance, atol=0.1)
    lost = largest - log_evidence(models.probabilistic_pca(4, 2), theta, x)
    assert -1e-9 < lost < tolerance, f"{lost} nats below the largest evidence"


def test_em_reaches_the_eigenvalue_solution_of_pca():
    x, model = jnp.asarray(pca_data()), models.probabilistic_pca(4, 2)
    guide = guides.per_datapoint(families.full_normal(2), 40)
    theta = model.init(jax.random.key(0))
    watch = lambda params: log_evidence(model, params.theta, x)  # noqa: E731
    state, loss, after = run(
        em(model, guide, num_data=40), start(theta, guide), x, 300, watch=watch
    )
    before = np.concatenate([[log_evidence(model, theta, x)], after[:-1]])
    np.testing.assert_allclose(-loss, before, rtol=0, atol=1e-10)
    assert np.all(np.diff(-loss) > -1e-10) and -loss[50] > -loss[0]
    assert_pca_maximum(state.params.theta, pca_data(), 1e-6)


def test_variational_em_inside_a_family_without_the_posterior():
    """Diagonal normals: the bound never falls, and W turns until they are no restriction."""
    x, model = jnp.asarray(pca_data()), models.probabilistic_pca(4, 2)
    family = families.diag_normal(2)
    guide = guides.per_datapoint(family, 40)
    inside = em(model, guide, num_data=40, e_step=natural_ascent(family, rate=0.7, num_steps=3))

    def watch(params):
        """The bound of the M-step's data: log p(x) less KL(q || posterior)."""
        exact = jax.vmap(model.posterior, (None, 0))(params.theta, x)
        rows, wide = params.phi["z"], families.need(families.full_normal(2), families.Kl).value
        full = rows | {"lower": jnp.zeros((40, 2, 2))}
        return log_evidence(model, params.theta, x) - jnp.sum(jax.vmap(wide)(full, exact))

    state, _, bounds = run(inside, start(model.init(jax.random.key(0)), guide), x, 600, watch=watch)
    assert np.all(np.diff(bounds) > -1e-9) and bounds[-1] > bounds[0] + 1.0
    assert_pca_maximum(state.params.theta, pca_data(), 1e-4)
    with pytest.raises(ValueError, match="E-step gives lam of shapes.*natural_ascent"):
        run(em(model, guide, num_data=40), start(model.init(KEY), guide), x, 1)


def test_a_natural_step_of_rate_one_is_the_exact_e_step():
    x, theta, model, _ = problem()
    family = families.categorical(3)
    stepped = em(model, ROWS, num_data=N, e_step=natural_ascent(family))
    exact, loss, _ = run(em(model, ROWS, num_data=N), start(theta), x, 3)
    found, mine, _ = run(stepped, start(theta), x, 3)
    np.testing.assert_allclose(mine, loss, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        jax.nn.softmax(found.params.phi["z"]["logits"]),
        jax.nn.softmax(exact.params.phi["z"]["logits"]),
        atol=1e-9,
    )
    semi = guides.semi_amortized(ROWS, 2, 0.5, rule=vj.rules.enumerated()).refine
    _, partial, _ = run(em(model, ROWS, num_data=N, e_step=semi), start(theta), x, 30)
    assert loss[0] < partial[0] and np.all(np.diff(partial) < 1e-9), "a partial E-step went down"


def posterior_of_factors(theta, x):
    """Of a mixture of factor analysers, as a chain c, z | c."""

    def given(weights, bias):
        factor, loc = posterior_moments(weights, theta["log_noise"], x - bias)
        return families.from_covariance(loc, jnp.linalg.inv(factor @ factor.T))

    joint = [
        models.probabilistic_pca(3, 1).log_evidence(
            {"weights": weights, "bias": bias, "log_noise": theta["log_noise"]}, x
        )
        for weights, bias in zip(theta["weights"], theta["bias"], strict=True)
    ]
    logits = jax.nn.log_softmax(theta["logits"]) + jnp.stack(joint)
    return {"c": {"logits": logits}, "z": jax.vmap(given)(theta["weights"], theta["bias"])}


def test_em_of_a_mixture_of_factor_analyzers():
    """The posterior is a chain: the loss is the evidence, which ends at a stationary point."""
    normal = families.full_normal(1)
    each = lambda key: jax.vmap(normal.init)(jax.random.split(key, 2))  # noqa: E731
    pick = lambda lam, c: jax.tree.map(lambda leaf: jnp.tensordot(c, leaf, 1), lam)  # noqa: E731
    family = families.chain(("c", families.categorical(2)), ("z", normal), pick, each)
    model = MODELS["mixture_of_factor_analyzers"].model._replace(posterior=posterior_of_factors)
    theta = jax.tree.map(jnp.asarray, FACTORS)
    x = jax.jit(model.simulate, static_argnums=2)(jax.random.key(3), theta, 30)[1]
    guide = guides.per_datapoint(family, 30)
    watch = lambda params: log_evidence(model, params.theta, x)  # noqa: E731
    state, loss, after = run(
        em(model, guide, num_data=30), start(theta, guide), x, 400, watch=watch
    )
    assert abs(loss[0] + log_evidence(model, theta, x)) < 1e-10
    np.testing.assert_allclose(-loss[1:], after[:-1], rtol=0, atol=1e-10)
    assert np.all(np.diff(-loss) > -1e-10) and after[-1] > after[0]
    slope = slope_of(model, state.params.theta, x)
    first = slope_of(model, theta, x)
    norm = lambda tree: max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert norm(slope) < 1e-3 * norm(first)


def test_variational_em_of_a_product_of_a_class_and_a_normal():
    """Natural steps block by block; the bound, of one draw per datum, is below the evidence that
    they raise.
    """
    family = families.product(c=families.categorical(2), z=families.full_normal(1))
    model, guide = MODELS["mixture_of_factor_analyzers"].model, guides.per_datapoint(family, 30)
    theta = jax.tree.map(jnp.asarray, FACTORS)
    x = jax.jit(model.simulate, static_argnums=2)(jax.random.key(3), theta, 30)[1]
    inside = em(model, guide, num_data=30, e_step=natural_ascent(family, rate=0.5, num_steps=4))
    watch = lambda params: log_evidence(model, params.theta, x)  # noqa: E731
    first = jax.tree.map(lambda leaf: 0.5 * leaf, theta)
    _, loss, after = run(inside, start(first, guide), x, 40, watch=watch)
    assert after[-1] > log_evidence(model, first, x) + 5.0
    gaps = after[20:-1] + loss[21:]  # of settled steps: KL(q || posterior) on average
    assert gaps.mean() > -5.0 * gaps.std(ddof=1) / len(gaps) ** 0.5


STATED = [n for n in MODELS if MODELS[n].model.traits.get(models.SufficientStatistics)]


@pytest.mark.parametrize("name", STATED)
def test_the_statistics_that_theta_expects_give_it_back(name):
    model, theta = MODELS[name].model, jax.tree.map(jnp.asarray, MODELS[name].theta)
    known = model.traits.get(models.SufficientStatistics)
    round_trip = jax.jit(lambda theta, other: known.maximize(other, known.expected(theta)))
    again = round_trip(theta, jax.tree.map(jnp.zeros_like, theta))
    centred = lambda t: {n: t[n] - (t[n].mean() if n == "logits" else 0.0) for n in t}  # noqa: E731
    for leaf in theta:
        np.testing.assert_allclose(centred(again)[leaf], centred(theta)[leaf], atol=1e-12)


@pytest.mark.parametrize("name", [name for name in STATED if MODELS[name].model.posterior])
def test_the_expected_statistics_are_those_of_simulated_data(name):
    model, theta = MODELS[name].model, jax.tree.map(jnp.asarray, MODELS[name].theta)
    known = model.traits.get(models.SufficientStatistics)
    pca = name == "probabilistic_pca"
    family = families.full_normal(2) if pca else model.priors["z"].family

    def statistics(x):
        return known.statistics(vj.Q(family, model.posterior(theta, x)), x)

    _, x = jax.jit(model.simulate, static_argnums=2)(jax.random.key(4), theta, 4000)
    draws, expected = jax.jit(jax.vmap(statistics))(x), known.expected(theta)
    assert_unbiased(draws, expected)
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(draws, jax.tree.map(lambda leaf: 1.2 * leaf + 0.2, expected))


def test_incremental_em_never_lowers_the_bound_and_ends_where_em_does():
    """From the second epoch on the total is that of the rows; a batch of one datum will do."""
    x, theta, model, _ = problem()
    known = model.traits.get(models.SufficientStatistics)
    for size in (1, 20):
        algorithm, index = em(model, ROWS, num_data=N), epochs(30, size)
        state, _, bounds = run(algorithm, start(theta), x, len(index), index=index, watch=bound)
        assert np.all(np.diff(bounds[N // size :]) > -1e-9), "the bound on all data fell"
        each = jax.vmap(lambda lam, x: known.statistics(vj.Q(families.categorical(3), lam), x))
        whole = jax.tree.map(lambda leaf: leaf.mean(axis=0), each(state.params.phi["z"], x))
        for name, value in whole.items():
            np.testing.assert_allclose(state.shared.mean[name], value, atol=1e-12)
        assert np.all(state.seen)
    full, loss, _ = run(em(model, ROWS, num_data=N), start(theta), x, 200)
    assert abs(bounds[-1] + loss[-1]) < 0.01


def test_online_em_is_the_published_recursion():
    """Cappe and Moulines 2009, eq. 11, by numpy; with or without a table; rate 1 is EM itself."""
    x, theta, model, _ = problem()
    rate = lambda t: (t + 2.0) ** -0.6  # noqa: E731
    index = epochs(2, 20)
    state, _, _ = run(em(model, ROWS, num_data=N, rate=rate), start(theta), x, 6, index=index)
    now = jax.tree.map(np.asarray, theta)
    share = special.softmax(now["logits"])[:, None]
    square = now["loc"] ** 2 + np.exp(2.0 * now["log_scale"])
    mean = np.stack([share * np.ones(2), share * now["loc"], share * square])
    for t, rows in enumerate(np.asarray(index)):
        data = np.asarray(x)[rows]
        weight = special.softmax(oracles.mixture_log_joint(data, **now), axis=1)
        powers = np.stack([np.ones_like(data), data, data**2])
        fresh = np.einsum("nc,knp->kcp", weight, powers) / len(data)
        mean = mean + rate(t) * (fresh - mean)
        loc = mean[1] / mean[0]
        spread = 0.5 * np.log(mean[2] / mean[0] - loc**2)
        now = {"logits": np.log(mean[0, :, 0]), "loc": loc, "log_scale": spread}
    for name in now:
        np.testing.assert_allclose(state.params.theta[name], now[name], atol=1e-10)

    family = families.categorical(3)
    bare = guides.amortized(family, (family.init, lambda phi, x: phi))
    free, _, _ = run(em(model, bare, num_data=N, rate=rate), start(theta, bare), x, 6, index=index)
    assert_same(free.params.theta, state.params.theta)
    assert_same(free.params.phi, bare.init(jax.random.key(1)))
    whole, loss, _ = run(em(model, bare, num_data=N, rate=1.0), start(theta, bare), x, 4)
    exact, known, _ = run(em(model, ROWS, num_data=N), start(theta), x, 4)
    np.testing.assert_allclose(loss, known, atol=1e-12)
    np.testing.assert_allclose(whole.params.theta["loc"], exact.params.theta["loc"], atol=1e-12)


def test_a_gradient_m_step_after_an_exact_e_step_follows_the_evidence():
    x, theta, model, estimator = problem()
    plain, size = model._replace(traits=vj.types.Traits()), 1e-3
    algorithm = em(plain, ROWS, num_data=N, optimizer=optax.sgd(size))
    state, loss, _ = run(algorithm, start(theta), x, 1)
    slope = slope_of(model, theta, x)
    for name in theta:
        np.testing.assert_allclose(
            state.params.theta[name], theta[name] + size * slope[name], atol=1e-12
        )
    many = em(plain, ROWS, num_data=N, optimizer=optax.sgd(size), m_steps=20)
    _, losses, _ = run(many, start(theta), x, 20)
    exact, known, _ = run(em(model, ROWS, num_data=N), start(theta), x, 20)
    assert np.all(np.diff(losses) < 0.0) and abs(losses[0] + log_evidence(model, theta, x)) < 1e-10
    assert known[1] < losses[1] < loss[0], "20 small steps go part of the way of the closed form"


def test_a_component_without_data_stays_where_it_is():
    x, theta, model, _ = problem()
    far = theta | {"loc": theta["loc"].at[2].set(1e4)}
    state, loss, _ = run(em(model, ROWS, num_data=N), start(far), x, 3)
    assert_same(state.params.theta["loc"][2], far["loc"][2])
    assert_same(state.params.theta["log_scale"][2], far["log_scale"][2])
    two = oracles.mixture_em_step(
        np.asarray(x), {n: np.asarray(leaf)[:2] for n, leaf in theta.items()}
    )
    first, _, _ = run(em(model, ROWS, num_data=N), start(far), x, 1)
    np.testing.assert_allclose(first.params.theta["loc"][:2], two["loc"], atol=1e-10)


def test_bad_data_raise_and_leave_the_state_alone():
    x, theta, model, _ = problem()
    algorithm = em(model, ROWS, num_data=N)
    bad = x.at[7, 1].set(jnp.nan)
    with pytest.raises(vj.NonFiniteError) as caught:
        vj.fit(KEY, algorithm, start(theta), bad, num_steps=3)
    assert_same(caught.value.result.params, start(theta))
    settings = {"num_steps": 3, "batch_size": 20, "skip_nonfinite": True}
    skipped = vj.fit(KEY, algorithm, start(theta), bad, **settings)
    assert skipped.num_skipped == 1 and np.all(np.isfinite(skipped.params.theta["loc"]))
    assert not skipped.state.seen[7]


def test_a_resumed_run_has_the_same_bits():
    x, theta, model, _ = problem()
    algorithm, settings = em(model, ROWS, num_data=N), {"batch_size": 20, "record_every": 1}
    whole = vj.fit(KEY, algorithm, start(theta), x, num_steps=8, **settings)
    half = vj.fit(KEY, algorithm, start(theta), x, num_steps=5, **settings)
    both = vj.fit(KEY, algorithm, None, x, num_steps=3, resume=half, **settings)
    assert_same(both.params, whole.params)
    assert_same(both.history.loss, whole.history.loss)


def step_to_something_else():
    """A theta of other leaves."""
    x, theta, model, _ = problem()
    trait = model.traits.get(models.SufficientStatistics)
    wrong = trait._replace(maximize=lambda theta, mean: {"loc": theta["loc"]})
    algorithm = em(model._replace(traits=families.traits_of(wrong)), ROWS, num_data=N)
    vj.fit(KEY, algorithm, start(theta), x, num_steps=1)


NORMAL = guides.per_datapoint(families.diag_normal(2), 4)
BITS = families.bernoulli(2)
ENCODER = guides.amortized(families.categorical(3), (lambda key: (), lambda phi, x: jnp.zeros(3)))
MIXTURE = models.gaussian_mixture(3, 2)
REFUSED = {
    "a global latent": (
        lambda: em(MODELS["logistic_regression"].model, NORMAL, num_data=4),
        "local latents z alone.*algorithms.cavi",
    ),
    "no posterior": (
        lambda: em(MODELS["vae"].model, NORMAL, num_data=4, optimizer=optax.sgd(0.1)),
        "posterior is not known.*natural_ascent",
    ),
    "a family without it": (
        lambda: em(
            models.sigmoid_belief_net(3, (2,)),
            guides.per_datapoint(BITS, 4),
            num_data=4,
            optimizer=optax.sgd(0.1),
        ),
        r"bernoulli\(2\) is no categorical",
    ),
    "no M-step": (
        lambda: em(
            models.sigmoid_belief_net(3, (2,)),
            guides.per_datapoint(BITS, 4),
            num_data=4,
            e_step=natural_ascent(BITS),
        ),
        "M-step is not known in closed form.*optimizer=",
    ),
    "a rate too large": (
        lambda: em(MIXTURE, ROWS, num_data=N, rate=1.5),
        r"em\(rate=1.5\).*\(0, 1\]",
    ),
    "two rates": (
        lambda: em(MIXTURE, ROWS, num_data=N, rate=0.5, optimizer=optax.sgd(0.1)),
        "Leave out one of rate and optimizer",
    ),
    "no table and no rate": (
        lambda: em(MIXTURE, ENCODER, num_data=N),
        "does not keep. Write guides.per_datapoint.*or give a rate",
    ),
    "no steps": (
        lambda: em(MIXTURE, ROWS, num_data=N, optimizer=optax.sgd(0.1), m_steps=0),
        "m_steps=0.*at least 1",
    ),
    "steps of no optimizer": (
        lambda: em(MIXTURE, ROWS, num_data=N, m_steps=3),
        "m_steps=3.*ends at the maximum at once",
    ),
    "phi without rows": (
        lambda: em(MIXTURE, ROWS, num_data=N).init(KEY, vj.Params(MIXTURE.init(KEY), (), ())),
        r"an entry for each of \['z'\]: start at vijax.Params",
    ),
    "an M-step to something else": (step_to_something_else, "maximize makes it, has shapes"),
    "a refined guide": (
        lambda: em(
            MIXTURE, guides.semi_amortized(ROWS, 2, 0.1, rule=vj.rules.enumerated()), num_data=N
        ),
        "em moves q's own parameters",
    ),
    "rows of another size": (lambda: em(MIXTURE, ROWS, num_data=N + 1), "60 rows, but num_data=61"),
    "a rate of no step": (lambda: natural_ascent(BITS, rate=0.0), r"rate lies in \(0, 1\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        build()


def test_one_algorithm_for_equal_arguments():
    assert em(MIXTURE, ROWS, num_data=N) is em(MIXTURE, ROWS, num_data=N)
    assert algorithms.em is em
