"""Rules for continuous (and count) latents: against quadrature, variances in closed form,
identities between them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from scipy import stats

import vijax as vj
from vijax import families, rules
from vijax.baselines import none
from vijax.families import FiniteSupport, WeakDerivative, log_probs, need
from vijax.noise import Noise
from vijax.objectives import elbo, iwae
from vijax.testing.averages import in_float

pytestmark = pytest.mark.usefixtures("x64")

NORMAL = families.diag_normal(2)
LAM = {"loc": np.array([0.4, -0.7]), "log_scale": np.array([0.3, -0.5])}
BLOCKS = families.product(a=families.diag_normal(1), b=families.diag_normal(1))
BLOCK_LAM = {"a": {k: v[:1] for k, v in LAM.items()}, "b": {k: v[1:] for k, v in LAM.items()}}
THETA = np.array([0.8, -0.3])


def target(theta, z):
    """A log-joint of two numbers, neither quadratic nor separable."""
    return (
        -0.5 * jnp.sum(jnp.square(z - theta))
        + theta[0] * jnp.sin(z[0] * z[1])
        + jnp.cos(z[1] + theta[1])
    )


class Critic(linen.Module):
    @linen.compact
    def __call__(self, z):
        return linen.Dense(1)(jnp.tanh(linen.Dense(4)(z)))[0]


def cut(z):
    """The two blocks as one vector."""
    return jnp.concatenate([z["a"], z["b"]]) if isinstance(z, dict) else z


def terms(factor, theta, z):
    """`target` in named parts, for credit per block."""
    z = cut(z)
    both = theta[0] * jnp.sin(z[0] * z[1])
    only_a, only_b = (
        -0.5 * (z[0] - theta[0]) ** 2,
        -0.5 * (z[1] - theta[1]) ** 2 + jnp.cos(z[1] + theta[1]),
    )
    return {"both": factor * both, "a": factor * only_a, "b": factor * only_b}


# One of each kind is run one draw at a time too
LOOPED = ("measure_valued", "learned_quadratic", "terms")
TERMS = {"a": ("a", "both"), "b": ("b", "both")}
CASES = {
    "pathwise": (rules.pathwise(), NORMAL, LAM),
    "measure_valued": (rules.measure_valued(), NORMAL, LAM),
    "linearised": (rules.quadratic_control(), NORMAL, LAM),
    "linearised_1": (rules.quadratic_control(rules.taylor(1)), NORMAL, LAM),
    "linearised_products": (rules.quadratic_control(rules.taylor(probes=2)), NORMAL, LAM),
    "delta_method": (rules.quadratic_control(carrier=rules.by_score), NORMAL, LAM),
    "learned_quadratic": (rules.quadratic_control(rules.learned_quadratic(2, rank=1)), NORMAL, LAM),
    "lax": (rules.lax(Critic(), example=np.zeros(2)), NORMAL, LAM),
    "fitted_score_term": (rules.fitted_score_term(0.9), NORMAL, LAM),
    "substitution": (rules.score_per_block(), BLOCKS, BLOCK_LAM),
    "terms": (rules.score_per_block(rules.by_terms(TERMS)), BLOCKS, BLOCK_LAM),
}


def bound(rule, family, theta, lam, control, key, factor, num_samples=3, state=None):
    """The surrogate of the ELBO of `target`."""

    def integrand(s):
        parts = terms(factor, theta, s.z)
        return sum(parts.values()) - s.log_q, parts

    state = rule.init_state() if state is None else state
    return vj.expect(
        key,
        family,
        lam,
        integrand,
        rule=rule,
        num_samples=num_samples,
        control=control,
        state=state,
    )[0]


def random_control(rule, seed=5):
    """Control parameters anywhere but at zero."""
    flat, tree = jax.tree.flatten(rule.init(jax.random.key(1)))
    keys = jax.random.split(jax.random.key(seed), max(1, len(flat)))
    return tree.unflatten(
        [0.5 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, flat, strict=False)]
    )


@pytest.fixture(scope="module")
def exact():
    """(value, gradient in theta and lam) of the ELBO by Gauss-Hermite quadrature."""
    with in_float(64):
        node, weight = np.polynomial.hermite_e.hermegauss(60)
        grid = np.stack(np.meshgrid(node, node), -1).reshape(-1, 2)
        weights = np.outer(weight, weight).ravel() / (2 * np.pi)

        def elbo_of(theta, lam):
            z = lam["loc"][None] + jnp.exp(lam["log_scale"])[None] * grid
            entropy = jnp.sum(lam["log_scale"]) + 1.0 + np.log(2 * np.pi)
            return jnp.vdot(weights, jax.vmap(target, in_axes=(None, 0))(theta, z)) + entropy

        return jax.device_get(jax.jit(jax.value_and_grad(elbo_of, argnums=(0, 1)))(THETA, LAM))


@pytest.mark.parametrize("name", CASES)
def test_unbiased_in_theta_and_phi_and_clean_under_vmap(name, exact):
    rule, family, lam = CASES[name]
    control = random_control(rule)

    def draw(theta, lam, key, factor):
        return bound(rule, family, theta, lam, control, key, factor)

    one = jax.value_and_grad(draw, argnums=(0, 1))
    many = jax.jit(jax.vmap(one, in_axes=(None, None, 0, None)))
    keys = jax.random.split(jax.random.key(0), 4000)
    value, (theta_bar, lam_bar) = many(THETA, lam, keys, 1.0)

    def scores(value, theta_bar, lam_bar):
        found = {
            k: jnp.concatenate([lam_bar["a"][k], lam_bar["b"][k]], 1)
            if family is BLOCKS
            else lam_bar[k]
            for k in LAM
        }
        drawn = {"value": value, "theta": theta_bar, **found}
        answer = {"value": exact[0], "theta": exact[1][0], **exact[1][1]}
        return {
            k: np.max(np.abs(d.mean(0) - answer[k]) / (d.std(0) / len(keys) ** 0.5 + 1e-9))
            for k, d in drawn.items()
        }

    worst = scores(value, theta_bar, lam_bar)
    assert max(worst.values()) < 5.0, worst
    wrong = scores(*(lambda v, g: (v, *g))(*many(THETA, lam, keys, 1.2)))
    assert min(wrong["theta"], max(wrong["loc"], wrong["log_scale"])) > 5.0, (
        "a log-joint 1.2 times too large is seen"
    )

    if name not in LOOPED:
        return
    alone = jax.jit(one)
    for i in range(2):
        jax.tree.map(
            lambda left, right: np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9),
            alone(THETA, lam, keys[i], 1.0),
            jax.tree.map(lambda leaf, i=i: leaf[i], (value, (theta_bar, lam_bar))),
        )


def test_aim_of_the_controls_is_reached():
    """No variance where the log-joint is quadratic, by either carrier; nor with the learned surface
    at that quadratic.
    """
    hessian = np.array([[-1.0, 0.4], [0.4, -2.0]])
    learned = {
        "centre": jnp.zeros(2),
        "slope": jnp.asarray([0.5, -1.0]),
        "diagonal": jnp.asarray([-1.0, -2.0]) - 0.4,
        "directions": jnp.ones((2, 1)),
        "strengths": jnp.asarray([0.4]),
    }

    def spread(rule, control, integrand):
        def value(lam, key):
            return vj.expect(
                key, NORMAL, lam, integrand, rule=rule, num_samples=2, control=control
            )[0]

        draws = jax.jit(jax.vmap(jax.grad(value), in_axes=(None, 0)))(
            LAM, jax.random.split(jax.random.key(0), 50)
        )
        return max(float(leaf.std(0).max()) for leaf in jax.tree.leaves(draws))

    def quadratic(z):
        return jnp.array([0.5, -1.0]) @ z + 0.5 * z @ hessian @ z

    assert spread(rules.quadratic_control(), (), lambda s: quadratic(s.z) - s.log_q) < 1e-12
    assert (
        spread(
            rules.quadratic_control(carrier=rules.by_score), (), lambda s: quadratic(s.z) - s.log_q
        )
        < 1e-12
    )
    surface = rules.quadratic_control(rules.learned_quadratic(2, rank=1))
    assert spread(surface, learned, lambda s: quadratic(s.z)) < 1e-12
    assert spread(surface, learned | {"strengths": jnp.zeros(1)}, lambda s: quadratic(s.z)) > 0.1


@pytest.mark.parametrize("name", ["lax", "learned_quadratic"])
def test_variance_gradient_is_that_of_finite_differences(name):
    """Identity 21: the derivative in control of minus the surrogate is that of |g|^2, noise held;
    theta gets none of it.
    """
    rule, family, lam = CASES[name]
    control, key = random_control(rule), jax.random.key(3)
    flat, build = jax.flatten_util.ravel_pytree(control)

    def surrogate(lam, flat):
        return bound(rule, family, THETA, lam, build(flat), key, 1.0)

    slope = -jax.jit(jax.grad(surrogate, argnums=1))(lam, flat)
    square = jax.jit(
        jax.vmap(
            lambda flat: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(surrogate)(lam, flat)))
        )
    )
    steps = 1e-5 * np.eye(flat.size)
    differences = (square(flat[None] + steps) - square(flat[None] - steps)) / 2e-5
    np.testing.assert_allclose(slope, differences, rtol=1e-6, atol=1e-7)
    assert float(jnp.abs(slope).max()) > 0.1
    fault = 0.5 * slope  # the square root's derivative, say
    assert not np.allclose(fault, differences, rtol=1e-2)


def test_lax_with_the_integrand_as_critic_is_pathwise_and_without_one_is_the_score():
    """Identity 20, sample by sample."""

    def f(z):
        return jnp.sin(z[0]) * z[1] + z[0] ** 2

    def gradient(rule):
        def value(lam):
            return vj.expect(
                jax.random.key(4), NORMAL, lam, lambda s: f(s.z), rule=rule, num_samples=3
            )[0]

        return jax.jit(jax.grad(value))(LAM)

    def same(left, right):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), left, right
        )

    perfect = gradient(rules.lax((lambda key: (), lambda control, z: f(z))))
    same(perfect, gradient(rules.pathwise()))
    same(
        gradient(rules.lax((lambda key: (), lambda control, z: 0.0 * z[0]))),
        gradient(rules.score(none())),
    )
    with pytest.raises(AssertionError):
        same(perfect, gradient(rules.score(none())))


def moments(make, family, lam, integrand, control=(), state=()):
    """Mean and variance over e ~ N(0, 1) of a one-sample gradient, by quadrature: `make(noise)` is
    the rule.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    weight = weight / np.sqrt(2 * np.pi)

    def gradient(e):
        given = Noise("given", lambda key, family, num_samples: jnp.reshape(e, (1, 1)))

        def value(lam):
            return vj.expect(
                jax.random.key(0),
                family,
                lam,
                integrand,
                rule=make(given),
                control=control,
                state=state,
            )[0]

        return jax.grad(value)(lam)

    draws = jax.jit(jax.vmap(gradient))(jnp.asarray(node))
    mean = {k: weight @ np.asarray(g)[:, 0] for k, g in draws.items()}
    return mean, {k: weight @ (np.asarray(g)[:, 0] - mean[k]) ** 2 for k, g in draws.items()}


ONE = families.diag_normal(1)


@pytest.mark.parametrize(("scale", "width"), [(1.3, 1.0), (0.5, 1.0), (1.0, 1.0)])
def test_variances_of_total_and_path_derivative_are_the_closed_forms(scale, width):
    """Identities 6 and 7, and the fitted scalar between: at its optimum below both, at 0 and 1
    equal to them.
    """
    lam = {"loc": jnp.asarray([0.3]), "log_scale": jnp.log(jnp.asarray([scale]))}
    centre = 0.3 if scale == width else 1.1

    def integrand(s):
        return -0.5 * jnp.sum((s.z - centre) ** 2) / width**2 - s.log_q

    _, total = moments(lambda n: rules.pathwise(noise=n), ONE, lam, integrand)
    _, path = moments(lambda n: rules.doubly_reparameterized(noise=n), ONE, lam, integrand)
    np.testing.assert_allclose(total["loc"], scale**2 / width**4, rtol=1e-9)
    np.testing.assert_allclose(
        path["loc"], (1 / scale - scale / width**2) ** 2, rtol=1e-9, atol=1e-20
    )
    assert (path["loc"] < total["loc"]) == (scale**2 > width**2 / 2)
    if scale == width:  # q is the posterior
        assert path["log_scale"] < 1e-20
        np.testing.assert_allclose([total["loc"], total["log_scale"]], [1.0, 2.0], rtol=1e-9)

    def fitted(a):
        state = {"product": jnp.asarray(a), "square": jnp.asarray(1.0)}
        return moments(
            lambda n: rules.fitted_score_term(noise=n), ONE, lam, integrand, state=state
        )[1]

    np.testing.assert_allclose(fitted(0.0)["loc"], total["loc"], rtol=1e-9)
    np.testing.assert_allclose(fitted(1.0)["loc"], path["loc"], rtol=1e-9, atol=1e-20)


def test_fitted_scalar_is_the_regression_coefficient():
    """After many updates the state holds Cov(total, score) and Var(score), up to sign and a common
    factor.
    """
    rule, scale = rules.fitted_score_term(0.999), 0.5
    lam = {"loc": jnp.asarray([0.3]), "log_scale": jnp.log(jnp.asarray([scale]))}

    @jax.jit
    def stats_of(keys):
        def one(key):
            return vj.expect(
                key,
                ONE,
                lam,
                lambda s: -0.5 * jnp.sum((s.z - 1.1) ** 2) - s.log_q,
                rule=rule,
                num_samples=2,
                state=rule.init_state(),
            )[1].stats

        return jax.vmap(one)(keys)

    found = stats_of(jax.random.split(jax.random.key(0), 20_000))
    # With d = m + s e - c: score h = (e / s, e^2 - 1), total g = (-d, 1 - s e d); -E<g, h> = 1 + 2
    # s^2, E<h, h> = 1 / s^2 + 2.
    best = (1.0 + 2.0 * scale**2) / (1.0 / scale**2 + 2.0)
    product, square = np.asarray(found["product"]), np.asarray(found["square"])
    residual = product - best * square
    assert abs(residual.mean()) < 5.0 * residual.std() / len(residual) ** 0.5
    assert abs((product - 0.9 * best * square).mean()) > 5.0 * residual.std() / len(residual) ** 0.5


def test_variances_of_three_estimators_are_the_closed_forms():
    """Identity 27, f = (x - k)^2: per unit of sigma, while lam holds its log."""
    loc, scale, k = 0.3, 0.7, 1.2
    d, lam = loc - k, {"loc": jnp.asarray([0.3]), "log_scale": jnp.log(jnp.asarray([0.7]))}

    def integrand(s):
        return jnp.sum((s.z - k) ** 2)

    _, path = moments(lambda n: rules.pathwise(noise=n), ONE, lam, integrand)
    np.testing.assert_allclose(path["loc"], 4 * scale**2, rtol=1e-9)
    np.testing.assert_allclose(path["log_scale"] / scale**2, 4 * d**2 + 8 * scale**2, rtol=1e-9)
    closed = {
        "score": (
            d**4 / scale**2 + 14 * d**2 + 15 * scale**2,
            2 * d**4 / scale**2 + 60 * d**2 + 74 * scale**2,
        ),
        "measure": (d**2 * (16 / np.pi - 4), 4 * d**2 + 4 * scale**2),
    }
    for name, rule in {"score": rules.score(none()), "measure": rules.measure_valued()}.items():

        def value(lam, key, rule=rule):
            return vj.expect(key, ONE, lam, integrand, rule=rule)[0]

        keys = jax.random.split(jax.random.key(1), 60_000)
        draws = jax.jit(jax.vmap(jax.grad(value), in_axes=(None, 0)))(lam, keys)
        for leaf, unit, exact in zip(("loc", "log_scale"), (1.0, scale), closed[name], strict=True):
            squares = np.square(
                np.asarray(draws[leaf])[:, 0] / unit - np.mean(np.asarray(draws[leaf]) / unit)
            )
            standard_error = squares.std() / len(squares) ** 0.5
            assert abs(squares.mean() - exact) < 5.0 * standard_error, (name, leaf)
            assert abs(squares.mean() - 1.3 * exact) > 5.0 * standard_error, (name, leaf)


def scipy_of(family, lam):
    value = {k: np.exp(np.asarray(v)) for k, v in lam.items()}
    if family.name.startswith("gamma"):
        return stats.gamma(value["log_shape"][0], scale=1 / value["log_rate"][0])
    if family.name.startswith("exponential"):
        return stats.expon(scale=1 / value["log_rate"][0])
    return stats.poisson(value["log_rate"][0])


GREP = rules.generalized_reparameterization(rules.log_standardized())
RSVI_2 = rules.generalized_reparameterization(rules.marsaglia_tsang(2))
POSITIVE = {
    "gamma": (rules.measure_valued(), families.gamma(1), {"log_shape": 0.6, "log_rate": 0.4}),
    "gamma_small": (
        rules.measure_valued(),
        families.gamma(1),
        {"log_shape": -0.9, "log_rate": -0.2},
    ),
    "exponential": (rules.measure_valued(), families.exponential(1), {"log_rate": 0.4}),
    "poisson": (rules.measure_valued(), families.poisson(1), {"log_rate": 0.4}),
    "grep": (GREP, families.gamma(1), {"log_shape": 0.6, "log_rate": 0.4}),
    "rsvi": (
        rules.generalized_reparameterization(),
        families.gamma(1),
        {"log_shape": 0.6, "log_rate": 0.4},
    ),
    "rsvi_2": (RSVI_2, families.gamma(1), {"log_shape": -0.3, "log_rate": 0.4}),
}


@pytest.mark.parametrize("name", POSITIVE)
def test_positive_and_count_families_against_quadrature(name):
    """Identity 28, with the shape of a gamma added; RSVI and GREP likewise."""
    rule, family, lam = POSITIVE[name]
    lam = {k: jnp.asarray([v]) for k, v in lam.items()}

    def f(z, tilt):
        return jnp.sin(1.3 * z) + tilt * jnp.log1p(z)

    def value(lam, tilt, key):
        return vj.expect(
            key, family, lam, lambda s: jnp.sum(f(s.z, tilt)), rule=rule, num_samples=2
        )[0]

    keys = jax.random.split(jax.random.key(2), 8000)
    lam_bar, tilt_bar = jax.jit(jax.vmap(jax.grad(value, argnums=(0, 1)), in_axes=(None, None, 0)))(
        lam, 2.0, keys
    )

    dist = scipy_of(family, lam)
    if family.name.startswith("poisson"):
        z, weight = np.arange(80.0), dist.pmf(np.arange(80))
    else:
        node, legendre = np.polynomial.legendre.leggauss(1000)
        low, high = np.log(dist.ppf([1e-13, 1 - 1e-13]))
        z = np.exp(low + 0.5 * (high - low) * (node + 1))
        weight = 0.5 * (high - low) * legendre * z * dist.pdf(z)
    score = jax.vmap(jax.grad(family.log_prob), in_axes=(None, 0))(lam, jnp.asarray(z)[:, None])
    exact = {
        k: np.sum(weight * np.asarray(f(z, 2.0)) * np.asarray(s)[:, 0]) for k, s in score.items()
    } | {"tilt": np.sum(weight * np.log1p(z))}
    found = {k: np.asarray(g)[:, 0] for k, g in lam_bar.items()} | {"tilt": np.asarray(tilt_bar)}
    for leaf, answer in exact.items():
        standard_error = found[leaf].std() / len(keys) ** 0.5
        assert abs(found[leaf].mean() - answer) < 5.0 * standard_error, leaf
    assert any(
        abs(0.7 * found[leaf].mean() - exact[leaf]) > 5.0 * found[leaf].std() / len(keys) ** 0.5
        for leaf in lam
    )


@pytest.mark.parametrize("logit", [0.0, 0.7, 12.0, -12.0])
def test_bernoulli_measure_valued_is_exact_by_enumeration(logit):
    family, rng = families.bernoulli(3), np.random.default_rng(0)
    table, support = jnp.asarray(rng.normal(size=8)), need(family, FiniteSupport).values()
    lam = {"logits": jnp.asarray([logit, 0.5, -0.3])}

    def f(z):
        return table[(z @ jnp.asarray([4.0, 2.0, 1.0])).astype(int)]

    def expectation(lam):
        return jnp.vdot(jnp.exp(log_probs(family, lam, support)), jax.vmap(f)(support))

    def given(z):
        pair = need(family, WeakDerivative).pairs(jax.random.key(0), lam, z)
        return pair.scale["logits"] * (
            jax.vmap(f)(pair.plus["logits"]) - jax.vmap(f)(pair.minus["logits"])
        )

    probs = jnp.exp(log_probs(family, lam, support))
    np.testing.assert_allclose(
        probs @ jax.vmap(given)(support),
        jax.grad(expectation)(lam)["logits"],
        rtol=1e-10,
        atol=1e-14,
    )


def test_three_forms_of_the_entropy_term_share_one_mean():
    """Identity 30: for a location-scale q exact entropy is the total derivative, sample by sample;
    exact KL has its mean.
    """
    prior = {"loc": jnp.asarray([0.5]), "log_scale": jnp.asarray([0.2])}
    lam = {"loc": jnp.asarray([0.3]), "log_scale": jnp.asarray([-0.4])}

    def integrand(s):
        return jnp.sum(jnp.sin(2.0 * s.z)) + ONE.log_prob(prior, s.z) - s.log_q

    def with_prior(make):
        def build(noise):
            rule = make(rules.pathwise(noise=noise))
            return rule._replace(
                surrogate=lambda key, q, f, setting: rule.surrogate(
                    key, q, f, setting._replace(prior=prior)
                )
            )

        return build

    total, total_variance = moments(lambda n: rules.pathwise(noise=n), ONE, lam, integrand)
    entropy, entropy_variance = moments(
        lambda n: rules.closed_form_entropy(rules.pathwise(noise=n)), ONE, lam, integrand
    )
    kl, kl_variance = moments(with_prior(rules.closed_form_kl), ONE, lam, integrand)
    for leaf in lam:
        np.testing.assert_allclose([entropy[leaf], kl[leaf]], total[leaf], rtol=1e-9)
        np.testing.assert_allclose(entropy_variance[leaf], total_variance[leaf], rtol=1e-9)
        assert abs(kl_variance[leaf] - total_variance[leaf]) > 1e-3


def test_credit_ignores_what_is_free_of_the_block_and_lowers_the_variance():
    def gradient(rule, shift, keys):
        def value(lam, key):
            def integrand(s):
                parts = terms(1.0, THETA, s.z)
                parts["b"] = parts["b"] + shift * s.z["b"][0] ** 2
                return sum(parts.values()) - s.log_q, parts

            return vj.expect(key, BLOCKS, lam, integrand, rule=rule, num_samples=2)[0]

        return jax.vmap(jax.grad(value), in_axes=(None, 0))(BLOCK_LAM, keys)

    keys, variances = jax.random.split(jax.random.key(0), 2000), {}
    for name in ("substitution", "terms", "plain"):
        rule = rules.score(none()) if name == "plain" else CASES[name][0]
        one, two = jax.jit(lambda shift, rule=rule: gradient(rule, shift, keys))(0.0), None
        two = jax.jit(lambda shift, rule=rule: gradient(rule, shift, keys))(30.0)
        moved = float(jnp.abs(one["a"]["loc"] - two["a"]["loc"]).max())
        assert (moved < 1e-9) == (name != "plain"), (name, moved)
        variances[name] = float(two["a"]["loc"].var())
    assert (
        variances["terms"] < variances["plain"] / 20
        and variances["substitution"] < variances["plain"] / 20
    )


def test_what_would_be_silently_wrong_is_refused():
    gamma, bernoulli = families.gamma(2), families.bernoulli(2)
    for rule, family, match in [
        (rules.quadratic_control(), gamma, "not normal"),
        (rules.measure_valued(), families.student_t(2), "difference of two measures"),
        (rules.generalized_reparameterization(), NORMAL, "gamma variables"),
        (rules.lax(Critic(), example=np.zeros(2)), bernoulli, "no differentiable sampler"),
        (rules.fitted_score_term(), bernoulli, "no differentiable sampler"),
        (rules.score_per_block(), NORMAL, "independent named blocks"),
    ]:
        with pytest.raises(ValueError, match=match):
            rule.check(family, elbo, 1, None)
    for name, (rule, family, _) in CASES.items():
        if name != "pathwise":
            with pytest.raises(ValueError, match="not linear"):
                rule.check(family, iwae, 2, None)
    with pytest.raises(ValueError, match="terms \\['c'\\]"):
        wrong = rules.score_per_block(rules.by_terms({"a": ("a", "c"), "b": ("b",)}))
        bound(wrong, BLOCKS, THETA, BLOCK_LAM, (), jax.random.key(0), 1.0)
