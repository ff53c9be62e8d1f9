"""`vijax.testing`: each check passes what is right, and names the fault that was planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import compiled
from scipy import stats

import vijax as vj
from vijax import densities, families, models, rules, supports, testing
from vijax.families import Density, Entropy, Kl, Moments, Reparameterized, UniformNoise, need
from vijax.objectives import elbo
from vijax.testing import TOYS, check_estimator, check_family, check_model, check_rule
from vijax.testing.coverage import cover

NUM_DRAWS = 4000


def gumbel(**changed):
    """A user's own family: Gumbel(loc, exp(log_scale)) on the real line."""

    def log_prob(lam, z):
        white = (z - lam["loc"]) * jnp.exp(-lam["log_scale"])
        return -white - jnp.exp(-white) - lam["log_scale"]

    def sample(key, lam):
        return lam["loc"] + jnp.exp(lam["log_scale"]) * jax.random.gumbel(key)

    settings = {
        "init": lambda key: {"loc": jnp.zeros(()), "log_scale": jnp.zeros(())},
        "support": supports.real(),
        "log_prob": log_prob,
        "sample": sample,
        "traits": [Reparameterized(), Entropy(lambda lam: lam["log_scale"] + np.euler_gamma + 1.0)],
    }
    return families.family("gumbel", **settings | changed)


def log_prob(lam, z):
    return gumbel().log_prob(lam, z)


def uniform(support):
    """Uniform on [0, exp(h)]."""
    return families.family(
        "uniform",
        init=lambda key: {"h": jnp.zeros(())},
        sample=lambda key, lam: jnp.exp(lam["h"]) * jax.random.uniform(key),
        log_prob=lambda lam, z: jnp.where(z < jnp.exp(lam["h"]), -lam["h"], -jnp.inf),
        support=support,
        traits=[Reparameterized()],
    )


def stopped(key, lam):
    return gumbel().transport(jax.lax.stop_gradient(lam), key)[0]


def wide(key, lam):
    return lam["loc"] + jnp.exp(1.1 * lam["log_scale"] + 0.1) * jax.random.gumbel(key)


NORMAL = families.diag_normal(2)


def with_only(trait):
    return NORMAL._replace(traits=families.traits_of(Density(), trait))


FAULTY_FAMILIES = {
    "a wrong normaliser": (
        gumbel(log_prob=lambda lam, z: log_prob(lam, z) + 0.05),
        "sums to 1.*normaliser is wrong",
    ),
    "a normaliser that is wrong in lam": (
        gumbel(log_prob=lambda lam, z: log_prob(lam, z) + 0.1 * lam["log_scale"]),
        r"dlog q.*log_scale.*off by 0\.1",
    ),
    "a sampler of another law": (gumbel(sample=wide), "dlog q / dlam.*log_scale"),
    "a path that is cut": (gumbel(sample=stopped), "gradient through the sampler"),
    "a wrong entropy": (
        gumbel(traits=[Entropy(lambda lam: lam["log_scale"] + np.euler_gamma)]),
        r"Entropy.value.*off by (1|0\.9)",
    ),
    "a wrong support": (gumbel(support=supports.positive()), "draws lie in the stated support"),
    "a support that moves": (uniform(supports.positive()), r"dlog q.*\['h'\].*supports.moving"),
    "a shape that is no draw's": (gumbel(support=supports.real(1)), "one sample of one datum"),
    "whole numbers": (gumbel(sample=lambda key, lam: jax.random.poisson(key, 1.0)), "draw floats"),
    "a wrong KL": (with_only(Kl(lambda a, b: 0.5 * need(NORMAL, Kl).value(a, b))), "Kl.value is"),
    "a standard deviation for a variance": (
        with_only(Moments(lambda lam: lam["loc"], lambda lam: jnp.exp(lam["log_scale"]))),
        "Moments.variance is",
    ),
    "uniform numbers of another law": (
        with_only(UniformNoise(2, lambda u: jax.scipy.stats.norm.ppf(u) * 1.1)),
        "UniformNoise makes the same law",
    ),
    "host randomness": (
        gumbel(sample=lambda key, lam: lam["loc"] + np.random.default_rng().gumbel()),
        "one sample against vmap",
    ),
}


def test_a_family_of_ones_own_passes():
    seen = check_family(gumbel(), num_draws=NUM_DRAWS)
    assert {"mass", "score", "sampler", "reparameterized", "entropy"} <= set(seen)
    assert max(seen.values()) < 5.0
    moving = check_family(uniform(supports.moving()), num_draws=NUM_DRAWS)
    assert set(moving) == {"support", "log_q"}  # no expectation under it has a derivative here


@pytest.mark.parametrize("name", FAULTY_FAMILIES)
def test_a_fault_of_a_family_is_named(name):
    family, match = FAULTY_FAMILIES[name]
    with pytest.raises(AssertionError, match=match):
        check_family(family, num_draws=NUM_DRAWS)


def test_points_cover_any_support(x64):
    """E[q / density] is the mass of q, from draws alone: all kinds of parts in one z."""
    random, num = np.random.default_rng(0), 20_000
    laws = {
        "angle": (supports.circle(1), stats.vonmises(1.5, 0.4)),
        "bits": (supports.binary(2), stats.bernoulli(0.3)),
        "count": (supports.counts(1), stats.poisson(2.0)),
        "part": (supports.interval(0.0, 1.0, 1), stats.beta(0.8, 2.0)),
        "rate": (supports.positive(1), stats.gamma(1.5)),
        "real": (supports.real(2), stats.norm(3.0, 0.2)),
    }
    support = {name: part for name, (part, _) in laws.items()}
    draws = {name: law.rvs((500, *part.shape), random) for name, (part, law) in laws.items()}
    support["class"] = supports.one_hot(3)
    draws["class"] = np.eye(3)[random.integers(3, size=500)]
    wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), draws)
    points, log_density = compiled(lambda z: cover(jax.random.key(0), support, z, num), wide)
    log_q = np.log(1.0 / 3.0)
    for name, (_, law) in laws.items():
        log_pdf = getattr(law, "logpmf" if name in ("bits", "count") else "logpdf")
        log_q = log_q + log_pdf(points[name]).sum(axis=1)
    weights = np.exp(log_q - log_density)
    testing.assert_unbiased(weights, 1.0)
    with pytest.raises(AssertionError, match="biased"):
        testing.assert_unbiased(1.1 * weights, 1.0)


def changed_score(change, **requires):
    """The score rule with its gradient changed."""
    right = rules.score()

    def surrogate(key, q, integrand, setting):
        value, aux = right.surrogate(key, q, integrand, setting)
        return change(value), aux

    needs = right.requires._replace(**requires)
    return rules.rule("mine()", needs, surrogate)


SMALL = {name: TOYS[name] for name in ("bits", "line with a kink")}
LINE = {"line with a kink": TOYS["line with a kink"]}


def test_a_rule_that_is_right_passes():
    seen = check_rule(rules.pathwise(), SMALL, num_draws=NUM_DRAWS)
    assert str(seen["bits"]).startswith("refused: pathwise() on bernoulli(3)")
    compared = {name: z for name, z in seen.items() if isinstance(z, float)}
    assert len(compared) == 6 and max(compared.values()) < 5.0
    own = check_rule(rules.pathwise(), {"own": gumbel()}, elbo, num_draws=NUM_DRAWS)
    assert sum(isinstance(z, float) for z in own.values()) == 5  # against a measured answer


def test_a_fault_of_a_rule_is_named():
    def shrunk(value):
        return 0.9 * value + 0.1 * jax.lax.stop_gradient(value)

    with pytest.raises(AssertionError, match=r"mine\(\) on bits.*elbo.*biased.*logits.*unbiased="):
        check_rule(changed_score(shrunk), SMALL, elbo)
    told = check_rule(changed_score(shrunk, unbiased=False), {"bits": TOYS["bits"]}, elbo)
    assert list(told.values()) == ["finite; it says that it is biased"]
    with pytest.raises(AssertionError, match="biased: "):  # the value alone
        check_rule(changed_score(lambda value: value + 0.1), SMALL, elbo)
    with pytest.raises(AssertionError, match="is not finite"):
        check_rule(changed_score(lambda value: value * jnp.inf), SMALL, elbo)
    with pytest.raises(AssertionError, match="legal on none of"):
        check_rule(rules.disarm(), LINE)


def path_derivative():
    """Sticking the landing: right for a bound, whose slope in log q is -1, and the ELBO alone."""
    family_rule = rules.pathwise()

    def surrogate(key, q, integrand, setting):
        drawn = rules.draw(key, q, setting.num_samples)
        log_q = families.log_probs(q.family, jax.lax.stop_gradient(q.lam), drawn.z)
        log_w, aux = rules.evaluate(integrand, drawn._replace(log_q=log_q))
        return setting.objective.value(log_w), rules.no_aux(aux)

    needs = family_rule.requires._replace(needs=(Density, Reparameterized), linear=True)
    return rules.rule("path_derivative()", needs, surrogate)


def test_a_rule_for_one_slope_is_found_out():
    with pytest.raises(AssertionError, match=r"elbo of 0\.2 \(log p - log q\)\^2: biased"):
        check_rule(path_derivative(), LINE, elbo, num_draws=NUM_DRAWS)


def regression(simulated_scale=0.5, **changed):
    """Z ~ Normal(0, 1), x ~ Normal(slope z, 0.5), conjugate."""

    def log_joint(theta, z, x):
        return densities.normal(z, 0.0, 0.0) + densities.normal(x, theta * z, jnp.log(0.5))

    def simulate(key, theta, num_data):
        key_z, key_x = jax.random.split(key)
        z = jax.random.normal(key_z, (num_data,))
        return z, theta * z + simulated_scale * jax.random.normal(key_x, (num_data,))

    settings = {
        "simulate": simulate,
        "log_evidence": lambda theta, x: densities.normal(x, 0.0, 0.5 * jnp.log(theta**2 + 0.25)),
        "posterior": lambda theta, x: {
            "loc": (x * theta / (theta**2 + 0.25))[None],
            "log_scale": 0.5 * jnp.log(0.25 / (theta**2 + 0.25))[None],
        },
    }
    log_joint = changed.pop("log_joint", log_joint)
    return models.latent_model(lambda key: jnp.zeros(()), log_joint, **settings | changed)


def scalar_normal():
    """Of one number, lam with leaves [1]."""
    one = families.diag_normal(1)
    return families.family(
        "scalar",
        init=one.init,
        support=supports.real(),
        noise=one.noise,
        transport=lambda lam, noise: (
            one.transport(lam, noise)[0][0],
            one.transport(lam, noise)[1],
        ),
        log_prob=lambda lam, z: one.log_prob(lam, z[None]),
    )


OF_Z = {"z": scalar_normal()}
THETA = np.array(0.8)
FAULTY_MODELS = {
    "simulate with another noise": (
        regression(simulated_scale=0.55),
        "simulate and the log-density",
    ),
    "a wrong evidence": (
        regression(log_evidence=lambda theta, x: densities.normal(x, 0.0, jnp.log(theta + 0.5))),
        "log_evidence is not the log of the integral",
    ),
    "a wrong posterior": (
        regression(posterior=lambda theta, x: {"loc": x[None], "log_scale": jnp.zeros(1)}),
        "the same at every z if q is the exact posterior",
    ),
    "a datum that is not read": (
        regression(log_joint=lambda theta, z, x: densities.normal(z, theta, 0.0)),
        "does not read its x",
    ),
    "a vector": (
        regression(log_joint=lambda theta, z, x: densities.normal(x, z * jnp.ones(3), 0.0)),
        "no number of one datum.*jnp.sum",
    ),
    "an infinite gradient": (
        regression(log_joint=lambda theta, z, x: densities.normal(z, x, 0.0) + jnp.sqrt(0.0 * z)),
        "gradient of log_local.* is not finite",
    ),
}


def test_a_model_of_ones_own_passes():
    seen = check_model(regression(), THETA, families=OF_Z)
    assert max(seen.values()) < 5.0 and seen["evidence"] == 0.0
    bare = regression(simulate=None, log_evidence=None, posterior=None)
    assert check_model(bare, THETA, np.array([0.3, -1.0]), latents={"z": np.array(0.2)}) == {}
    with pytest.raises(AssertionError, match="give x"):
        check_model(bare, THETA)


@pytest.mark.parametrize("name", FAULTY_MODELS)
def test_a_fault_of_a_model_is_named(name):
    model, match = FAULTY_MODELS[name]
    with pytest.raises(AssertionError, match=match):
        check_model(model, THETA, families=OF_Z)


def test_simulated_bits_have_their_conditional_probabilities():
    """And the evidence is that of draws from the stated prior."""
    net = models.sigmoid_belief_net(3, (2,))
    random = np.random.default_rng(1)
    theta = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape), jax.eval_shape(net.init, jax.random.key(0))
    )

    def evidence(theta, x):
        bits = jnp.stack(jnp.meshgrid(*[jnp.arange(2.0)] * 2), axis=-1).reshape(-1, 2)
        return jax.nn.logsumexp(jax.vmap(lambda z: net.log_local(theta, None, z, x))(bits))

    right = net._replace(log_evidence=evidence)
    assert max(check_model(right, theta).values()) < 5.0
    shifted = jax.tree.map(lambda leaf: leaf + 0.3, theta)
    other = net._replace(simulate=lambda key, theta, n: net.simulate(key, shifted, n))
    with pytest.raises(AssertionError, match="identities of the joint density"):
        check_model(other, theta)
    low = net._replace(log_evidence=lambda theta, x: evidence(theta, x) - 0.05)
    with pytest.raises(AssertionError, match="importance sampling from the prior"):
        check_model(low, theta)


X = jnp.array([[0.3, -1.0], [1.0, 2.0], [0.4, -0.2]])
MODEL, GUIDE = models.conjugate_normal(2), vj.guides.per_datapoint(families.diag_normal(2), 3)
WHOLE = vj.Batch(X, jnp.arange(3))
EST = vj.estimator(MODEL, GUIDE, rules=rules.pathwise(), num_samples=2, num_data=3)


def place():
    return jax.tree.map(lambda leaf: leaf + 0.2, EST.init_params(jax.random.key(0)))


def changing(change):
    """EST with its estimate changed."""

    def estimate(key, params, state, batch):
        result, state = EST.estimate(key, params, state, batch)
        return change(result, batch), state

    return EST._replace(estimate=estimate)


def grads(result, factor):
    return result._replace(grads=jax.tree.map(lambda leaf: factor * leaf, result.grads))


def by_slot(key, params, state, batch):
    return EST.estimate(key, params, state, batch._replace(index=jnp.arange(len(batch.index))))


FAULTY_ESTIMATORS = {
    "N / B left out": (
        changing(lambda r, batch: jax.tree.map(lambda leaf: leaf * len(batch.index) / 3, r)),
        "do not average.*N / B is missing",
    ),
    "N / B twice": (
        changing(lambda r, batch: grads(r, 3 / len(batch.index))),
        "do not average.*N / B is missing or applied twice",
    ),
    "noise by slot": (EST._replace(estimate=by_slot), "keyed by the slot"),
    "a gradient that goes up": (changing(lambda r, batch: grads(r, -1.0)), "slope of the mean"),
    "a gradient too small": (changing(lambda r, batch: grads(r, 0.9)), "slope of the mean loss"),
    "rows beyond N": (EST._replace(num_data=2), "has row 2, but the estimator's num_data is 2"),
}


@pytest.fixture(scope="module")
def conjugate_gradient():
    """Exact, by the closed-form ELBO of a normal q."""

    def loss(params):
        lam, theta = params.phi["z"], params.theta
        variance, prior = jnp.exp(2.0 * lam["log_scale"]), jnp.exp(-2.0 * theta["log_scale"])[None]
        likelihood = -0.5 * (jnp.square(X - lam["loc"]) + variance)
        square = jnp.square(lam["loc"] - theta["loc"][None]) + variance
        kl = 0.5 * square * prior - lam["log_scale"] + theta["log_scale"][None]
        return jnp.sum(kl - likelihood)

    return jax.grad(loss)(place())


def test_an_estimator_of_ones_own_passes(conjugate_gradient):
    assert check_estimator(EST, place(), WHOLE)["slope"] < 5.0
    score = vj.estimator(MODEL, GUIDE, rules=rules.score(), num_samples=2, num_data=3)
    settings = {"reference": EST, "minibatches": False}
    assert check_estimator(score, place(), WHOLE, **settings)["gradient"] < 5.0
    exact = check_estimator(EST, place(), WHOLE, conjugate_gradient, minibatches=False)
    assert set(exact) == {"gradient"}


@pytest.mark.parametrize("name", FAULTY_ESTIMATORS)
def test_a_fault_of_an_estimator_is_named(name):
    estimator, match = FAULTY_ESTIMATORS[name]
    with pytest.raises(AssertionError, match=match):
        check_estimator(estimator, place(), WHOLE, num_draws=1000, minibatches="slope" not in match)


def test_a_biased_gradient_is_found_beside_the_exact_one_and_a_reference(conjugate_gradient):
    shrunk = changing(lambda r, batch: grads(r, 0.8))
    for known in ({"exact": conjugate_gradient}, {"reference": EST}):
        with pytest.raises(AssertionError, match="biased.*gradient is not that of the bound"):
            check_estimator(shrunk, place(), WHOLE, minibatches=False, **known)


def test_a_figure_without_spread_must_be_exact():
    constant = np.full((10, 2), 0.3)
    testing.assert_unbiased(constant, np.full(2, 0.3))
    with pytest.raises(AssertionError, match=r"off by 0\.001"):
        testing.assert_unbiased(constant, np.full(2, 0.301))
    with pytest.raises(AssertionError, match="not finite"):
        testing.assert_unbiased(np.array([[0.0], [np.nan]]), np.zeros(1))


def test_sufficient_statistics_are_checked():
    """An M-step a tenth off, and statistics of another function, were both accepted."""
    right = models.gaussian_mixture(2, 1)
    theta = {
        "logits": np.array([0.3, -0.2]),
        "loc": np.array([[-1.0], [1.5]]),
        "log_scale": np.array([[0.1], [-0.3]]),
    }
    trait = right.traits.get(models.SufficientStatistics)
    assert check_model(right, theta)["statistics"] < 5.0

    def off(theta, mean):
        best = trait.maximize(theta, mean)
        return best | {"loc": 1.1 * best["loc"]}

    def shifted(q, x):
        return trait.statistics(q, x + 0.2)

    for wrong, words in (
        (trait._replace(maximize=off), "the same theta"),
        (trait._replace(statistics=shifted), "sufficient statistics"),
    ):
        with pytest.raises(AssertionError, match=words):
            check_model(right._replace(traits=families.traits_of(wrong)), theta)
