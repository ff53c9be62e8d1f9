"""Multi-sample objectives and rules against exact answers: every K-tuple of a discrete latent is enumerated, every K-tuple
of Gaussian noise runs over a quadrature grid, so that most comparisons are to rounding in float64.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close, assert_unbiased

import vijax as vj
from vijax import baselines, objectives, path_weights, rules
from vijax.families import bernoulli, categorical, chain, diag_normal, full_normal
from vijax.rules.generalized_doubly_reparameterized import inverse_of

BETAS = (0.0, 0.1, 0.4, 1.0)
B2, B3, C4 = bernoulli(2), bernoulli(3), categorical(4)
SCORE, PATHWISE, DOUBLY, WAKE = rules.score(), rules.pathwise(), rules.doubly_reparameterized(), rules.wake()
GENERALIZED = rules.generalized_doubly_reparameterized()
STICKING, WAKE_PATHS, MIXED_PATHS = (
    rules.doubly_reparameterized(weights)
    for weights in (path_weights.sticking(), path_weights.wake(), path_weights.interpolated(0.3))
)


@pytest.fixture(autouse=True, name="precise")
def _precise(x64):
    """Everything here runs in float64, and is compiled often but run once: with few optimisations."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


class Toy(NamedTuple):
    """One latent with all its noise: `noise` gives every K-tuple, `weigh` its probability (under lam, if discrete)."""

    family: vj.Family
    log_joint: Callable  # (theta, z) -> []
    noise: Callable  # K -> [T, K, ...]
    weigh: Callable  # (lam, noise [T, K, ...]) -> [T]
    prior: Callable = lambda theta: None  # theta -> eta
    prior_family: Any = None


def injected(toy: Toy, noise) -> vj.Family:
    """The family, drawing this noise [K, ...] whatever the key."""
    return toy.family._replace(noise=lambda key, num_samples: noise)


@functools.cache
def discrete(family: vj.Family) -> Toy:
    """Log p(x, z) is a table over the states, theta itself; the noise is z."""
    states = np.asarray(family.support())
    by_value = family._replace(transport=lambda lam, z: (z, family.log_prob(lam, z)))

    def log_joint(theta, z):
        match = jnp.all(z[None] == states, axis=tuple(range(1, states.ndim)))
        return jnp.vdot(match.astype(theta.dtype), theta)

    def noise(num_samples):
        return jnp.asarray(states[np.array(list(itertools.product(range(len(states)), repeat=num_samples)))])

    def weigh(lam, z):
        return jnp.exp(jnp.sum(jax.vmap(jax.vmap(lambda z: family.log_prob(lam, z)))(z), axis=1))

    return Toy(by_value, log_joint, noise, weigh)


def hermite(num_nodes: int, dim: int):
    """Nodes [T, dim] and weights [T] for a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    grid = np.stack([g.ravel() for g in np.meshgrid(*[points] * dim, indexing="ij")], axis=-1)
    mass = np.prod(np.stack([g.ravel() for g in np.meshgrid(*[weights] * dim, indexing="ij")]), axis=0)
    return grid, mass / (2.0 * math.pi) ** (dim / 2)


@functools.cache
def line(num_nodes: int) -> Toy:
    """One Gaussian latent, Gaussian prior with parameters, a curved mean of x."""

    def log_joint(theta, z):
        mean = theta["slope"] * z[0] + 0.3 * jnp.sin(z[0])
        return diag_normal(1).log_prob(theta["prior"], z) - jnp.square(0.7 - mean) / 0.8

    def noise(num_samples):
        return jnp.asarray(hermite(num_nodes, num_samples)[0])[:, :, None]

    def weigh(lam, noise):
        return jnp.asarray(hermite(num_nodes, noise.shape[1])[1])

    return Toy(diag_normal(1), log_joint, noise, weigh, lambda theta: theta["prior"], diag_normal(1))


def step_down(first: str, then: str) -> vj.Family:
    """A Gaussian chain in the order of its names: the mean of the second is affine in the first."""

    def locate(lam, before):
        return {"loc": lam["shift"] + lam["slope"] * before, "log_scale": lam["log_scale"]}

    def init(key):
        return {"shift": jnp.zeros(1), "slope": jnp.ones(1), "log_scale": jnp.zeros(1)}

    return chain((first, diag_normal(1)), (then, diag_normal(1)), locate, init)


@functools.cache
def two_levels(num_nodes: int = 12) -> Toy:
    """(H2) q(z1) q(z2 | z1) against p(z2) p(z1 | z2) p(x | z1): both are chains, in opposite order."""
    family, prior = step_down("z1", "z2"), step_down("z2", "z1")

    def log_joint(theta, z):
        return prior.log_prob(theta["prior"], z) - 0.5 * jnp.sum(jnp.square(theta["x"] - z["z1"]))

    def noise(num_samples):
        nodes = jnp.asarray(hermite(num_nodes, 2 * num_samples)[0]).reshape(-1, num_samples, 2)
        return {"z1": nodes[..., :1], "z2": nodes[..., 1:]}

    def weigh(lam, noise):
        return jnp.asarray(hermite(num_nodes, 2 * noise["z1"].shape[1])[1])

    return Toy(family, log_joint, noise, weigh, lambda theta: theta["prior"], prior)


def linear(shift, slope, log_scale):
    return {"shift": jnp.array([shift]), "slope": jnp.array([slope]), "log_scale": jnp.array([log_scale])}


def normal(loc, log_scale):
    return {"loc": jnp.array([loc]), "log_scale": jnp.array([log_scale])}


def surrogate_of(toy: Toy, rule, objective, num_samples):
    """(theta, lam, noise of one K-tuple) -> the surrogate."""

    def value(theta, lam, noise, key=None):
        family = toy.family if noise is None else injected(toy, noise)
        return rule.surrogate(
            jax.random.key(0) if key is None else key, family, lam, lambda s: toy.log_joint(theta, s.z) - s.log_q,
            objective=objective, num_samples=num_samples, prior=toy.prior(theta),
        )[0]  # fmt: skip

    return value


@functools.cache
def compiled_gradients(toy: Toy, rule, objective, num_samples):
    grad = jax.grad(surrogate_of(toy, rule, objective, num_samples), argnums=(0, 1))

    @jax.jit
    def run(theta, lam):
        noise = toy.noise(num_samples)
        return jax.vmap(grad, in_axes=(None, None, 0))(theta, lam, noise), toy.weigh(lam, noise)

    return run


def every_gradient(toy: Toy, rule, objective, num_samples, theta, lam):
    """Gradients in (theta, lam), leaves [T, ...], at every K-tuple, and the tuples' probabilities [T]."""
    return jax.device_get(compiled_gradients(toy, rule, objective, num_samples)(theta, lam))


def mean_gradient(toy, rule, objective, num_samples, theta, lam):
    draws, probs = every_gradient(toy, rule, objective, num_samples, theta, lam)
    return jax.tree.map(lambda leaf: np.tensordot(probs, leaf, axes=1), draws)


@functools.cache
def compiled_expectation(toy: Toy, objective, num_samples):
    def value(theta, lam):
        noise = toy.noise(num_samples)

        def log_w(noise):
            z, log_q = toy.family.transport(lam, noise)
            return toy.log_joint(theta, z) - log_q

        return jnp.vdot(toy.weigh(lam, noise), jax.vmap(objective)(jax.vmap(jax.vmap(log_w))(noise)))

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


def expected(toy, objective, num_samples, theta, lam):
    """E[objective(log_w)], exact."""
    return compiled_expectation(toy, objective, num_samples)(theta, lam)[0]


def exact_gradient(toy, objective, num_samples, theta, lam):
    """Its gradient in (theta, lam)."""
    return jax.device_get(compiled_expectation(toy, objective, num_samples)(theta, lam)[1])


def wake_term(toy, objective, num_samples, theta, lam):
    """E[sum_k R_k dlog q(z_k)/dlam], exact, by its definition."""
    noise = toy.noise(num_samples)
    fixed = jax.lax.stop_gradient(lam)

    def one(lam, noise):
        z, log_q = jax.lax.stop_gradient(jax.vmap(toy.family.transport, in_axes=(None, 0))(fixed, noise))
        weights = jax.grad(objective)(jax.vmap(lambda z: toy.log_joint(theta, z))(z) - log_q)
        return jnp.vdot(weights, jax.vmap(lambda z: toy.family.log_prob(lam, z))(z))

    per_tuple = jax.jit(jax.vmap(jax.grad(one), in_axes=(None, 0)))(lam, noise)
    return jax.tree.map(lambda leaf: jnp.tensordot(toy.weigh(lam, noise), leaf, axes=1), per_tuple)


def bits(seed=0):
    key1, key2 = jax.random.split(jax.random.key(seed))
    return jax.random.normal(key1, (8,)) - 1.0, {"logits": 0.7 * jax.random.normal(key2, (3,))}


def line_point():
    return {"slope": jnp.array(0.6), "prior": normal(0.2, 0.1)}, normal(0.5, -0.3)


def chain_point():
    prior = {"z2": normal(0.1, 0.2), "z1": linear(0.3, 0.7, -0.2)}
    return {"prior": prior, "x": jnp.array([0.8])}, {"z1": normal(0.4, -0.4), "z2": linear(-0.1, 0.5, -0.1)}


def bits_points():
    """Random, tied (equal weights everywhere but one) and saturated parameters."""
    theta, lam = bits()
    tied = jnp.zeros(8).at[3].set(0.5), {"logits": jnp.zeros(3)}
    saturated = theta, {"logits": jnp.array([12.0, -12.0, 0.0])}
    return [(theta, lam), tied, saturated]


OBJECTIVES = {
    "iwae": objectives.iwae,
    "renyi": objectives.renyi(0.5),
    "jackknife": objectives.jackknife(),
    "cubo": objectives.cubo(2.0),
    "exp_cubo": objectives.exp_cubo(2.0, reference=-1.0),
    "thermodynamic": objectives.thermodynamic(BETAS),
}
SCORES = {
    "none": baselines.none(),
    "geometric": baselines.leave_one_out(),
    "arithmetic": baselines.leave_one_out(objectives.iwae),
    "ovis": baselines.ovis(0.0),
}
SCORE_RULES = {name: rules.score(baseline) for name, baseline in SCORES.items()}
OVIS_ONE = rules.score(baselines.ovis(1.0))


# Unbiased rules -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "baseline"),
    [("iwae", b) for b in SCORES] + [(o, "geometric") for o in OBJECTIVES if o != "iwae"] + [("thermodynamic", "ovis")],
)
def test_score_is_unbiased_for_every_objective(name, baseline):
    """Identities 2 and 11: the mean over all 512 triples of 3-bit samples is the gradient of the enumerated bound."""
    toy = discrete(B3)
    for theta, lam in bits_points():
        mean = mean_gradient(toy, SCORE_RULES[baseline], OBJECTIVES[name], 3, theta, lam)
        assert_close(mean, exact_gradient(toy, OBJECTIVES[name], 3, theta, lam), tolerance=1e-11)


def test_score_is_unbiased_on_a_categorical():
    toy = discrete(C4)
    theta, lam = jnp.array([0.3, -1.0, 0.8, 0.8]), {"logits": jnp.array([0.5, 0.5, -1.0, 12.0])}
    for rule in SCORE_RULES.values():
        mean = mean_gradient(toy, rule, objectives.iwae, 3, theta, lam)
        assert_close(mean, exact_gradient(toy, objectives.iwae, 3, theta, lam), tolerance=1e-11)


def test_monte_carlo_ovis_is_unbiased():
    """Row 43 with K = 2 and one auxiliary draw, all 512 triples: the first two are the samples, the last the auxiliary one."""
    toy, (theta, lam) = discrete(B3), bits()
    rule, triples = rules.score(baselines.ovis_monte_carlo(1)), toy.noise(3)

    def gradient(triple):
        family = toy.family._replace(noise=lambda key, num_samples: triple[:2] if num_samples == 2 else triple[2:])
        return jax.grad(surrogate_of(toy._replace(family=family), rule, objectives.iwae, 2), argnums=(0, 1))(theta, lam, None)

    draws = jax.jit(jax.vmap(gradient))(triples)
    mean = jax.tree.map(lambda leaf: jnp.tensordot(toy.weigh(lam, triples), leaf, axes=1), draws)
    assert_close(mean, exact_gradient(toy, objectives.iwae, 2, theta, lam), tolerance=1e-11)


PATHS = {"pathwise": PATHWISE, "doubly": DOUBLY, "generalized": GENERALIZED}


@pytest.mark.parametrize(("name", "path"), [(o, "doubly") for o in OBJECTIVES] + [("iwae", "pathwise"), ("iwae", "generalized")]
                         + [("jackknife", "generalized")])  # fmt: skip
def test_path_rules_are_unbiased_for_every_objective(name, path):
    """Identities 10 and 11, rows 8, 11, 12 and 58: two samples, both integrated by quadrature; theta holds a prior too."""
    toy, (theta, lam) = line(48), line_point()
    mean = mean_gradient(toy, PATHS[path], OBJECTIVES[name], 2, theta, lam)
    assert_close(mean, exact_gradient(toy, OBJECTIVES[name], 2, theta, lam), tolerance=2e-7)


@pytest.mark.parametrize("baseline", SCORES)
def test_all_estimators_of_the_iwae_gradient_share_one_mean(baseline):
    """Identity 11, the score side, on the same Gaussian nodes."""
    toy, (theta, lam) = line(48), line_point()
    mean = mean_gradient(toy, SCORE_RULES[baseline], objectives.iwae, 2, theta, lam)
    assert_close(mean, exact_gradient(toy, objectives.iwae, 2, theta, lam), tolerance=2e-7)


@pytest.mark.parametrize("objective", [objectives.elbo, objectives.iwae], ids=["elbo", "iwae"])
def test_hierarchical_paths_are_unbiased(objective):
    """Identity 13, row 12: a structured q against a prior that runs the other way, in all parameters of both."""
    num_samples = 1 if objective is objectives.elbo else 2
    toy, (theta, lam) = two_levels(24 if num_samples == 1 else 12), chain_point()
    exact = exact_gradient(toy, objective, num_samples, theta, lam)
    for rule in (DOUBLY, rules.generalized_doubly_reparameterized(toy.prior_family)):
        mean = mean_gradient(toy, rule, objective, num_samples, theta, lam)
        assert_close(mean, exact, tolerance=1e-10 if num_samples == 1 else 1e-6)


def test_generalized_is_not_the_score_of_the_prior():
    """Row 12: another estimator samplewise; phi's part and the slope's are those of DReG to rounding."""
    toy, (theta, lam) = line(8), line_point()
    plain, _ = every_gradient(toy, DOUBLY, objectives.iwae, 2, theta, lam)
    ours, _ = every_gradient(toy, GENERALIZED, objectives.iwae, 2, theta, lam)
    assert_close(ours[1], plain[1], tolerance=1e-12)
    assert_close(ours[0]["slope"], plain[0]["slope"], tolerance=1e-12)
    assert float(jnp.abs(ours[0]["prior"]["loc"] - plain[0]["prior"]["loc"]).max()) > 0.1


def test_generalized_vanishes_where_the_prior_is_the_posterior():
    toy = line(8)._replace(log_joint=lambda theta, z: diag_normal(1).log_prob(theta["prior"], z))
    theta = {"prior": normal(0.2, 0.1)}
    ours, _ = every_gradient(toy, GENERALIZED, objectives.iwae, 2, theta, theta["prior"])
    assert_close(ours, jax.tree.map(jnp.zeros_like, ours), tolerance=1e-12)
    plain, _ = every_gradient(toy, DOUBLY, objectives.iwae, 2, theta, theta["prior"])
    assert float(jnp.abs(plain[0]["prior"]["loc"]).max()) > 0.1  # the score of theta is not zero


def test_the_inverse_of_every_normal_family_undoes_its_sampler():
    for family in (
        diag_normal(3),
        full_normal(3),
        step_down("a", "b"),
        vj.families.product(a=diag_normal(2), b=full_normal(2)),
    ):
        lam = jax.tree.map(lambda leaf: leaf + 0.3, family.init(jax.random.key(1)))
        noise = jax.tree.map(lambda leaf: leaf[0], family.noise(jax.random.key(2), 1))
        there_and_back = jax.jit(lambda lam, noise, f=family: inverse_of(f)(lam, f.transport(lam, noise)[0]))
        assert_close(there_and_back(lam, noise), noise, tolerance=1e-12)
    assert inverse_of(vj.families.product(a=diag_normal(2), c=bernoulli(2))) is None


def test_dropping_the_direct_term_is_caught():
    """The planted fault: OVIS gamma = 1 taken for an estimator of the gradient of L_K."""
    toy, (theta, lam) = discrete(B3), bits()
    mean = mean_gradient(toy, OVIS_ONE, objectives.iwae, 3, theta, lam)
    with pytest.raises(AssertionError, match="differs"):
        assert_close(mean, exact_gradient(toy, objectives.iwae, 3, theta, lam), tolerance=1e-3)


def test_detaching_the_distribution_object_is_caught():
    """Identity 13: stopping q(z2 | z1) as an object cuts its dependence on z1, and DReG becomes biased."""
    toy, (theta, lam) = two_levels(), chain_point()
    whole = toy.family.log_prob

    def cut(lam, z):
        held = {"z1": jax.lax.stop_gradient(z["z1"]), "z2": z["z2"]}
        first = diag_normal(1).log_prob(lam["z1"], z["z1"]) - diag_normal(1).log_prob(lam["z1"], held["z1"])
        return whole(lam, held) + first  # the same value without z1's path through q(z2 | z1)

    broken = toy._replace(family=toy.family._replace(log_prob=cut))
    mean = mean_gradient(broken, DOUBLY, objectives.iwae, 2, theta, lam)
    with pytest.raises(AssertionError, match="differs"):
        assert_close(mean, exact_gradient(toy, objectives.iwae, 2, theta, lam), tolerance=1e-3)


# Biased rules: what they are the gradient of --------------------------------------------------------------------------------


def test_biased_path_weights_have_the_means_they_state():
    """Identities 8 and 9: E[sticking] = grad L_K + E[sum v_k h_k], E[wake] = E[sum v_k h_k], and the mixture of the two."""
    toy, (theta, lam) = line(48), line_point()
    bound, wake = exact_gradient(toy, objectives.iwae, 2, theta, lam)[1], wake_term(toy, objectives.iwae, 2, theta, lam)
    assert all(float(jnp.abs(leaf).max()) > 0.01 for leaf in jax.tree.leaves((bound, wake)))
    for rule, share in ((STICKING, (1.0, 1.0)), (WAKE_PATHS, (0.0, 1.0)), (MIXED_PATHS, (0.7, 0.3))):
        mean = mean_gradient(toy, rule, objectives.iwae, 2, theta, lam)
        stated = jax.tree.map(lambda b, w, share=share: share[0] * b + share[1] * w, bound, wake)
        assert_close(mean[1], stated, tolerance=2e-7)
        assert_close(mean[0], exact_gradient(toy, objectives.iwae, 2, theta, lam)[0], tolerance=2e-7)


def test_sticking_is_dreg_plus_its_wake_half_samplewise():
    """Identity 8."""
    toy, (theta, lam) = line(8), line_point()
    parts = {
        name: every_gradient(toy, rule, objectives.iwae, 2, theta, lam)[0][1]
        for name, rule in (("s", STICKING), ("e", DOUBLY), ("w", WAKE_PATHS))
    }
    assert_close(parts["s"], jax.tree.map(jnp.add, parts["e"], parts["w"]), tolerance=1e-13)


@pytest.mark.parametrize("num_samples", [2, 3])
def test_ovis_one_and_wake_have_the_means_they_state(num_samples):
    """Identity 9: E[OVIS gamma = 1] = grad L_K + E[sum v_k h_k]; the wake rule's mean is the second term."""
    toy, (theta, lam) = discrete(B3), bits()
    exact = exact_gradient(toy, objectives.iwae, num_samples, theta, lam)
    wake = wake_term(toy, objectives.iwae, num_samples, theta, lam)
    ovis = mean_gradient(toy, OVIS_ONE, objectives.iwae, num_samples, theta, lam)
    assert_close(ovis, (exact[0], jax.tree.map(jnp.add, exact[1], wake)), tolerance=1e-11)
    assert_close(mean_gradient(toy, WAKE, objectives.iwae, num_samples, theta, lam), (exact[0], wake), tolerance=1e-11)


def test_ovis_is_the_published_estimator_samplewise():
    """Row 44, written out: sum_k (L - v_k - L_-k + gamma v_k - (1 - gamma) log(1 - 1/K)) h_k."""
    toy, (theta, lam) = discrete(B3), bits()
    gamma, noise = 0.4, toy.noise(3)
    draws, _ = every_gradient(toy, rules.score(baselines.ovis(gamma)), objectives.iwae, 3, theta, lam)

    def formula(z):
        log_w = jax.vmap(lambda z: toy.log_joint(theta, z) - toy.family.log_prob(lam, z))(z)
        bound, v = objectives.iwae(log_w), jax.nn.softmax(log_w)
        left_out = jnp.stack([objectives.iwae(jnp.delete(log_w, k)) for k in range(3)])
        control = left_out - gamma * v + (1.0 - gamma) * math.log(1.0 - 1.0 / 3.0)
        return (bound - v - control) @ (z - jax.nn.sigmoid(lam["logits"])[None])

    assert_close(draws[1]["logits"], jax.jit(jax.vmap(formula))(noise), tolerance=1e-12)


def test_wake_tends_to_the_posterior_score_with_a_bias_of_order_one_over_samples():
    """Identity 24, two bits, K = 2, 4, 6."""
    toy = discrete(B2)
    theta, lam = jnp.array([0.2, -1.0, 0.9, 0.1]), {"logits": jnp.array([0.6, 0.3])}
    target = jax.nn.softmax(theta) @ (toy.family.support() - jax.nn.sigmoid(lam["logits"])[None])
    gaps = np.stack([mean_gradient(toy, WAKE, objectives.iwae, k, theta, lam)[1]["logits"] - target for k in (2, 4, 6)])
    assert np.all(np.abs(gaps[:-1]) > np.abs(gaps[1:]))
    np.testing.assert_allclose(gaps[2] * 6 / (gaps[1] * 4), 1.0, atol=0.2)


def test_covariance_is_the_gradient_of_the_exact_thermodynamic_objective():
    """Identity 25: with every state in its exact proportion, M times over, the gradient is a + K / (K - 1) b exactly, and
    a + b is the gradient of the enumerated sum of E_b[log_w], in theta and phi.
    """
    toy = discrete(B2)
    theta, lam = jnp.array([0.2, -1.0, 0.9, 0.1]), {"logits": jnp.zeros(2)}
    states, objective = toy.family.support(), objectives.thermodynamic(BETAS)

    def exact(theta, lam):
        log_q = jax.vmap(lambda z: toy.family.log_prob(lam, z))(states)
        log_w = theta - log_q
        terms = [(c - b) * jax.nn.softmax(log_q + b * log_w) @ log_w for b, c in itertools.pairwise(BETAS)]
        return sum(terms[1:], terms[0])

    def at(repeats):
        noise = jnp.tile(states, (repeats, 1))
        value = surrogate_of(toy, rules.covariance(BETAS), objective, 4 * repeats)
        grad = jax.jit(jax.grad(value, argnums=(0, 1)))
        return jax.device_get(grad(theta, lam, noise)), 4 * repeats / (4 * repeats - 1)

    (first, f1), (second, f2) = at(1), at(2)
    estimate = jax.tree.map(lambda g1, g2: g1 + (g2 - g1) * (1.0 - f1) / (f2 - f1), first, second)
    assert_close(estimate, jax.jit(jax.grad(exact, argnums=(0, 1)))(theta, lam), tolerance=1e-12)


def test_covariance_on_one_interval_is_leave_one_out():
    """Row 65 at betas (0, 1): the ELBO itself, RLOO sample by sample."""
    toy, (theta, lam) = discrete(B3), bits()
    assert objectives.thermodynamic((0.0, 1.0)) is objectives.elbo
    ours = every_gradient(toy, rules.covariance((0.0, 1.0)), objectives.elbo, 3, theta, lam)[0]
    assert_close(ours, every_gradient(toy, SCORE, objectives.elbo, 3, theta, lam)[0], tolerance=1e-13)


def test_tail_adaptive_weights_follow_the_ranks():
    """Row 66: rho_k in proportion to rank^beta, the largest weight has rank 1, ties share; then the gradient, written out."""
    factor = path_weights.tail_adaptive(-1.0).factor
    log_w = jnp.array([0.3, 900.0, -4.0, -900.0])
    raw = np.array([1 / 2, 1.0, 1 / 3, 1 / 4])
    np.testing.assert_allclose(factor(objectives.elbo, log_w), 4 * raw / raw.sum(), rtol=1e-12)
    np.testing.assert_allclose(factor(objectives.elbo, jnp.zeros(4)), np.ones(4))
    toy, (theta, lam) = line(8), line_point()
    ours = every_gradient(toy, rules.doubly_reparameterized(path_weights.tail_adaptive(-0.5)), objectives.elbo, 2, theta, lam)[
        0
    ]

    def formula(noise):
        def log_w(z):
            return toy.log_joint(theta, z) - diag_normal(1).log_prob(lam, z)

        loc, scale = lam["loc"][None], jnp.exp(lam["log_scale"])[None]
        z = loc + scale * noise
        values, slopes = jax.vmap(jax.value_and_grad(log_w))(z)
        rank = jnp.where(values == values.max(), 1.0, 2.0) + (values[0] == values[1])
        weights = (rank**-0.5 / jnp.sum(rank**-0.5))[:, None]
        return {"loc": jnp.sum(weights * slopes, axis=0),
                "log_scale": jnp.sum(weights * slopes * noise * scale, axis=0)}  # fmt: skip

    assert_close(ours[1], jax.jit(jax.vmap(formula))(toy.noise(2)), tolerance=1e-12)
    flat = every_gradient(toy, rules.doubly_reparameterized(path_weights.tail_adaptive(0.0)), objectives.elbo, 2, theta, lam)[0]
    assert_close(flat, every_gradient(toy, DOUBLY, objectives.elbo, 2, theta, lam)[0], tolerance=1e-12)


# Objectives -----------------------------------------------------------------------------------------------------------------


def test_bounds_are_ordered():
    """Identities 1 and 26: log p = ELBO + KL; L_K rises from the ELBO to below log p <= EUBO; CUBO is above log p."""
    toy, (theta, lam) = discrete(B3), bits()
    log_p, log_post = jax.nn.logsumexp(theta), jax.nn.log_softmax(theta)
    log_q = jax.vmap(lambda z: toy.family.log_prob(lam, z))(toy.family.support())
    elbo = expected(toy, objectives.elbo, 1, theta, lam)
    np.testing.assert_allclose(log_p, elbo + jnp.exp(log_q) @ (log_q - log_post), rtol=1e-13)
    ladder = [float(expected(toy, objectives.iwae, k, theta, lam)) for k in (1, 2, 3)]
    assert math.isclose(ladder[0], float(elbo), rel_tol=1e-13) and ladder == sorted(ladder)
    eubo = jnp.exp(log_post) @ (theta - log_q)
    cubo = 0.5 * jax.nn.logsumexp(log_q + 2.0 * (theta - log_q))
    assert ladder[-1] < log_p < eubo and log_p < cubo
    np.testing.assert_allclose(expected(toy, objectives.exp_cubo(2.0, reference=log_p), 1, theta, lam),
                               -0.5 * jnp.exp(2.0 * (cubo - log_p)), rtol=1e-12)  # fmt: skip
    assert abs(expected(toy, objectives.jackknife(), 3, theta, lam) - log_p) < 0.5 * (log_p - ladder[-1])


def test_thermodynamic_integration():
    """Identity 25: the integral over b is log p(x); its ends are the ELBO and the EUBO; the left sum is a lower bound."""
    toy, (theta, lam) = discrete(B3), bits()
    log_q = jax.vmap(lambda z: toy.family.log_prob(lam, z))(toy.family.support())

    def at(beta):
        return jax.nn.softmax(log_q + beta * (theta - log_q)) @ (theta - log_q)

    nodes, weights = np.polynomial.legendre.leggauss(20)
    log_p = jax.nn.logsumexp(theta)
    np.testing.assert_allclose(jax.vmap(at)(jnp.asarray(nodes + 1) / 2) @ weights / 2, log_p, rtol=1e-12)
    np.testing.assert_allclose(at(0.0), expected(toy, objectives.elbo, 1, theta, lam), rtol=1e-12)
    copies = objectives.thermodynamic(BETAS)(theta + math.log(8.0))  # equal q: the eight states are the exact proportions
    assert jnp.mean(theta + math.log(8.0)) < copies < log_p


def test_jackknife_is_its_definition():
    log_w = jnp.array([0.3, -2.0, 1.5])
    left_out = np.mean([objectives.iwae(jnp.delete(log_w, k)) for k in range(3)])
    np.testing.assert_allclose(objectives.jackknife()(log_w), 3 * objectives.iwae(log_w) - 2 * left_out, rtol=1e-13)
    assert objectives.jackknife(objectives.elbo) is objectives.elbo


def test_chi_bounds_do_not_see_a_shift_of_the_log_joint():
    """Row 59: the log-joint lowered by 1000 leaves the gradient as it is; written naively it would underflow to zero."""
    toy = line(8)._replace(log_joint=lambda theta, z: line(8).log_joint(theta, z) + theta["offset"])
    theta, lam = line_point()
    high, low = theta | {"offset": jnp.array(0.0)}, theta | {"offset": jnp.array(-1000.0)}
    with_reference = [objectives.exp_cubo(reference=r) for r in (-1.0, -1001.0, 0.0)]
    cubo = objectives.cubo()
    for rule, before, after in ((DOUBLY, cubo, cubo), (SCORE, cubo, cubo), (PATHWISE, *with_reference[:2])):
        left = every_gradient(toy, rule, before, 2, high, lam)[0]
        assert_close(every_gradient(toy, rule, after, 2, low, lam)[0], left, tolerance=1e-9)
    naive = every_gradient(toy, PATHWISE, with_reference[2], 2, low, lam)[0]
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(naive))


def test_the_score_form_of_the_chi_bound():
    """Identity 26: grad E[w^n] = (1 - n) E[w^n h], which `exp_cubo` follows downwards, with one sample."""
    toy, (theta, lam) = discrete(B3), bits()
    states = toy.family.support()
    log_q = jax.vmap(lambda z: toy.family.log_prob(lam, z))(states)
    moment = jnp.exp(log_q + 3.0 * (theta - log_q))
    stated = (1.0 - 3.0) * moment @ (states - jax.nn.sigmoid(lam["logits"])[None])
    mean = mean_gradient(toy, rules.score(baselines.none()), objectives.exp_cubo(3.0, reference=0.0), 1, theta, lam)
    np.testing.assert_allclose(mean[1]["logits"], -stated / 3.0, rtol=1e-11)


# Samplewise identities ------------------------------------------------------------------------------------------------------


def test_one_sample_is_the_elbo():
    """Identity 10."""
    toy, (theta, lam) = line(8), line_point()
    total = every_gradient(toy, PATHWISE, objectives.elbo, 1, theta, lam)[0]
    stuck = every_gradient(toy, DOUBLY, objectives.elbo, 1, theta, lam)[0]
    for objective in (objectives.iwae, objectives.renyi(-2.0)):
        assert_close(every_gradient(toy, PATHWISE, objective, 1, theta, lam)[0], total, tolerance=1e-13)
    assert_close(every_gradient(toy, DOUBLY, objectives.iwae, 1, theta, lam)[0], stuck, tolerance=1e-13)
    assert float(path_weights.wake().factor(objectives.iwae, jnp.array([0.4]))[0]) == 0.0


def test_the_two_vimco_baselines():
    """Identity 14: equal at K = 2, different at K = 3, zero for equal weights; leave-one-out on the mean is RLOO."""
    log_w = jnp.array([0.3, -2.0, 1.5])
    geometric, arithmetic = (
        jax.jit(lambda log_w, b=b: b.signal(objectives.iwae, log_w, (), (), None))
        for b in (baselines.leave_one_out(), baselines.leave_one_out(objectives.iwae))
    )
    np.testing.assert_allclose(geometric(log_w[:2]), arithmetic(log_w[:2]), rtol=1e-12)
    assert float(jnp.abs(geometric(log_w) - arithmetic(log_w)).max()) > 0.05
    np.testing.assert_allclose(arithmetic(log_w), objectives.iwae(log_w) - jax.vmap(objectives.iwae)(objectives.others(log_w)))
    for signal in (geometric, arithmetic):
        np.testing.assert_allclose(signal(jnp.full(4, -3.0)), np.zeros(4), atol=1e-15)
        order = jnp.array([2, 0, 1])
        np.testing.assert_allclose(signal(log_w[order]), signal(log_w)[order], rtol=1e-12)  # identity 32
    leave = baselines.leave_one_out().signal(objectives.elbo, log_w, (), (), None)
    np.testing.assert_allclose(leave, (log_w - log_w.mean()) / 2.0, rtol=1e-12)


def test_hierarchical_sticking_the_landing_has_no_variance_at_the_posterior():
    """Identity 13: q runs z1 -> z2 and is the exact posterior of z2 -> z1 -> x."""
    toy, _ = two_levels(6), None
    theta = {"prior": {"z2": normal(0.0, 0.0), "z1": linear(0.0, 1.0, 0.0)}, "x": jnp.array([0.8])}
    # z1 ~ N(0, 2), x | z1 ~ N(z1, 1): z1 | x ~ N(2x/3, 2/3); z2 | z1 ~ N(z1/2, 1/2).
    lam = {"z1": normal(1.6 / 3, 0.5 * math.log(2 / 3)), "z2": linear(0.0, 0.5, 0.5 * math.log(0.5))}
    stuck = every_gradient(toy, DOUBLY, objectives.elbo, 1, theta, lam)[0][1]
    assert_close(stuck, jax.tree.map(jnp.zeros_like, stuck), tolerance=1e-12)
    total = every_gradient(toy, PATHWISE, objectives.elbo, 1, theta, lam)[0][1]
    assert all(float(jnp.std(leaf)) > 0.1 for leaf in jax.tree.leaves(total))


def test_the_theta_gradient_does_not_depend_on_the_rule_for_phi():
    """Identity 31, with the values: one key, one objective, one theta gradient."""
    toy, (theta, lam) = line(8), line_point()
    chosen = [DOUBLY, WAKE_PATHS, PATHWISE, WAKE, OVIS_ONE]
    grads = [
        jax.jit(jax.value_and_grad(surrogate_of(toy, rule, objectives.iwae, 3)))(theta, lam, None, jax.random.key(3))
        for rule in chosen
    ]
    for other in grads[1:]:
        assert_close(other, grads[0], tolerance=1e-12)


MAPPED = [WAKE, WAKE_PATHS, GENERALIZED,
          rules.score(baselines.ovis(0.5))]  # fmt: skip


@pytest.mark.parametrize("rule", MAPPED, ids=lambda rule: rule.name)
def test_compiled_and_mapped_rules_equal_the_loop(rule):
    toy, (theta, lam) = line(8), line_point()
    lams = jax.tree.map(lambda leaf: leaf[None] + jnp.array([[0.0], [0.3], [-0.2]]), lam)
    keys = jax.random.split(jax.random.key(4), 3)
    grad = jax.grad(surrogate_of(toy, rule, objectives.iwae, 3), argnums=(0, 1))
    together = jax.jit(jax.vmap(grad, in_axes=(None, 0, None, 0)))(theta, lams, None, keys)
    single = jax.jit(grad)
    for i in range(3):
        alone = single(theta, jax.tree.map(lambda leaf, i=i: leaf[i], lams), None, keys[i])
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, tolerance=1e-12)


def test_the_mean_of_independent_estimates_has_a_variance_divided_by_their_number():
    """Identity 32, which a key used twice would break: variances at K = 1 and K = 8, in standard errors of their ratio."""
    toy, (theta, lam) = line(8), line_point()

    def draws(num_samples):
        grad = jax.grad(surrogate_of(toy, PATHWISE, objectives.elbo, num_samples), argnums=1)
        keys = jax.random.split(jax.random.key(5), 8000)
        return np.asarray(jax.jit(jax.vmap(grad, in_axes=(None, None, None, 0)))(theta, lam, None, keys)["loc"][:, 0])

    one, eight = draws(1), draws(8)

    def log_variance(sample):  # and its standard error, delta method
        squares = np.square(sample - sample.mean())
        return np.log(squares.mean()), squares.std() / squares.mean() / len(sample) ** 0.5

    (a, error_a), (b, error_b) = log_variance(one), log_variance(eight)
    assert abs(a - b - math.log(8.0)) < 5.0 * math.hypot(error_a, error_b)


# Sleep ----------------------------------------------------------------------------------------------------------------------


def dream_model():
    """Two hidden bits with their own prior, two visible ones: everything can be enumerated."""
    hidden = bernoulli(2)

    def likelihood(theta, z):
        return {"logits": theta["bias"] + theta["weights"] @ z}

    def log_joint(theta, z, x):
        return hidden.log_prob({"logits": theta["prior"]}, z) + hidden.log_prob(likelihood(theta, z), x)

    def simulate(key, theta, num_data):
        key_z, key_x = jax.random.split(key)
        z = jax.vmap(lambda k: hidden.sample(k, {"logits": theta["prior"]}))(jax.random.split(key_z, num_data))
        x = jax.vmap(lambda k, z: hidden.sample(k, likelihood(theta, z)))(jax.random.split(key_x, num_data), z)
        return z, x

    def init(key):
        return {"prior": jnp.array([0.3, -0.5]), "bias": jnp.array([0.1, 0.4]), "weights": jnp.array([[1.0, -1.0], [0.5, 2.0]])}

    model = vj.models.latent_model(init, log_joint, simulate=simulate)
    encoder = (lambda key: {"a": 0.3 * jnp.ones((2, 2)), "b": jnp.array([0.2, -0.1])}, lambda phi, x: phi["a"] @ x + phi["b"])
    return model, vj.guides.amortized(hidden, encoder)


def dreams():
    model, guide = dream_model()
    sleep = vj.sleep(model, guide, num_samples=2, num_data=6)
    params = sleep.init_params(jax.random.key(0))
    batch = vj.Batch(jnp.array([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), jnp.arange(3))
    states = bernoulli(2).support()

    def exact_loss(phi):
        def one(z, x):
            log_p = model.log_local(params.theta, None, z, x)
            return -6.0 * jnp.exp(log_p) * bernoulli(2).log_prob(guide.locate_z(phi, x), z)

        return jnp.sum(jax.vmap(lambda z: jax.vmap(lambda x: one(z, x))(states))(states))

    return model, guide, sleep, params, batch, exact_loss


def test_sleep_is_unbiased_for_the_dreamt_divergence():
    """Row 56: the gradient of -N E_p[log q(z; x)], over all sixteen (z, x); theta's gradient is zero."""
    _, _, sleep, params, batch, exact_loss = dreams()
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = jax.jit(jax.vmap(lambda key: sleep.estimate(key, params, (), batch)[0]))(keys)
    assert_unbiased((draws.grads.phi, draws.loss), (jax.grad(exact_loss)(params.phi), exact_loss(params.phi)))
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(draws.grads.theta))
    halved = jax.tree.map(lambda leaf: 0.5 * leaf, jax.grad(exact_loss)(params.phi))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(draws.grads.phi, halved)


def test_reweighted_wake_sleep_is_a_split():
    """Identity 31: theta's gradient is bit for bit the wake phase's, phi's the sleep phase's."""
    model, guide, sleep, params, batch, _ = dreams()
    wake = vj.estimator(model, guide, objective=objectives.iwae, rules=WAKE, num_samples=4, num_data=6)
    both = vj.split(theta=wake, phi=sleep)
    joint = both.init_params(jax.random.key(0))
    key, state = jax.random.key(2), both.init(jax.random.key(0), joint)
    ours, _ = jax.jit(both.estimate)(key, joint, state, batch)
    awake, _ = jax.jit(wake.estimate)(key, wake.init_params(jax.random.key(0)), state["theta"], batch)
    asleep, _ = jax.jit(sleep.estimate)(key, params, (), batch)
    jax.tree.map(np.testing.assert_array_equal, ours.grads.phi, asleep.grads.phi)
    jax.tree.map(np.testing.assert_array_equal, ours.grads.theta, awake.grads.theta)


# Legality -------------------------------------------------------------------------------------------------------------------


def check(rule, family, objective, num_samples, prior=None):
    return lambda: rule.check(family, objective, num_samples, prior)


ILLEGAL = {
    "VIMCO with one sample": (check(SCORE, bernoulli(2), objectives.iwae, 1), "at least 2"),
    "jackknife of one sample": (check(PATHWISE, diag_normal(2), objectives.jackknife(), 1), "at least 2"),
    "chi bound of one sample": (check(PATHWISE, diag_normal(2), objectives.cubo(), 1), "at least 2"),
    "vector objective": (check(PATHWISE, diag_normal(2), lambda log_w: log_w, 2), "one number"),
    "wake with the ELBO": (check(WAKE, bernoulli(2), objectives.elbo, 4), "linear"),
    "wake paths with the ELBO": (
        check(WAKE_PATHS, diag_normal(2), objectives.elbo, 4), "linear"),
    "wake paths of one sample": (
        check(WAKE_PATHS, diag_normal(2), objectives.iwae, 1), "at least 2"),
    "tail-adaptive IWAE": (
        check(rules.doubly_reparameterized(path_weights.tail_adaptive()), diag_normal(2), objectives.iwae, 4), "not linear"),
    "paths on bits": (check(STICKING, bernoulli(2), objectives.iwae, 2), "sample"),
    "covariance of another objective": (check(rules.covariance(BETAS), bernoulli(2), objectives.iwae, 2), "thermodynamic"),
    "covariance of other betas": (
        check(rules.covariance(BETAS), bernoulli(2), objectives.thermodynamic((0, 0.5, 1)), 2), "same betas"),
    "no prior": (check(GENERALIZED, diag_normal(2), objectives.iwae, 2), "states no prior"),
    "another prior": (
        check(GENERALIZED, diag_normal(2), objectives.iwae, 2, full_normal(2)), "prior_family"),
    "prior without inverse": (
        check(rules.generalized_doubly_reparameterized(bernoulli(2)), diag_normal(2), objectives.iwae, 2, bernoulli(2)),
        "no inverse"),
    "betas out of order": (lambda: objectives.thermodynamic((0.0, 0.7, 0.5, 1.0)), "increasing"),
    "chi bound of order 1": (lambda: objectives.cubo(1.0), "above 1"),
    "gamma above 1": (lambda: baselines.ovis(1.5), "between 0"),
    "alpha above 1": (lambda: path_weights.interpolated(1.5), "between 0"),
    "positive beta": (lambda: path_weights.tail_adaptive(1.0), "must not be positive"),
    "sleep of a table": (
        lambda: vj.sleep(dream_model()[0], vj.guides.per_datapoint(bernoulli(2), 6), num_data=6), "no row for a dreamt"),
    "sleep without dreams": (
        lambda: vj.sleep(dream_model()[0]._replace(simulate=None), dream_model()[1], num_data=6), "cannot dream"),
}  # fmt: skip


@pytest.mark.parametrize("case", ILLEGAL)
def test_what_would_be_silently_wrong_is_refused(case):
    build, message = ILLEGAL[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_rules_say_whether_they_are_biased():
    assert not any(
        rule.requires.unbiased
        for rule in (WAKE, rules.covariance(BETAS), rules.score(baselines.ovis(0.5)),
                     *(rules.doubly_reparameterized(w) for w in (path_weights.sticking(), path_weights.wake(),
                       path_weights.interpolated(0.5), path_weights.tail_adaptive())))
    )  # fmt: skip
    assert all(
        rule.requires.unbiased
        for rule in (DOUBLY, GENERALIZED,
                     rules.score(baselines.ovis(0.0)), rules.score(baselines.leave_one_out(objectives.iwae)))
    )  # fmt: skip


# Signal-to-noise ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_signal_to_noise_slopes_in_the_number_of_samples():
    """Identity 12, (G20): in K the ratio falls as K^-1/2 for the pathwise gradient of the encoder's bias and rises as K^1/2
    for DReG, the wake phase and theta. The pathwise ratio takes DReG's mean: its own is below its standard error.
    """
    dim, counts, num_draws = 20, np.array([16, 64, 256]), 2000
    keys = jax.random.split(jax.random.key(6), 4)
    x = 1.4 * jax.random.normal(keys[0], (dim,))
    theta = 0.05 * jax.random.normal(keys[1], (dim,))
    lam = {"loc": 0.5 * x + 0.05 * jax.random.normal(keys[2], (dim,)), "log_scale": jnp.full(dim, 0.5 * math.log(2 / 3))}

    def log_joint(theta, z):
        return -0.5 * jnp.sum(jnp.square(z - theta)) - 0.5 * jnp.sum(jnp.square(x - z))

    toy = Toy(diag_normal(dim), log_joint, lambda k: None, lambda lam, z: None)

    def moments(rule, num_samples):
        grad = jax.grad(surrogate_of(toy, rule, objectives.iwae, num_samples), argnums=(0, 1))
        draws = jax.jit(lambda keys: jax.lax.map(lambda key: grad(theta, lam, None, key), keys, batch_size=50))
        g_theta, g_lam = draws(jax.random.split(keys[3], num_draws))
        return [(np.mean(g, axis=0), np.std(g, axis=0)) for g in (g_lam["loc"], g_theta)]

    def slope(means, deviations):
        ratio = [np.mean(np.abs(m) / s) for m, s in zip(means, deviations, strict=True)]
        return np.polyfit(np.log(counts), np.log(ratio), 1)[0]

    path = [moments(PATHWISE, k) for k in counts.tolist()]
    doubly = [moments(DOUBLY, k) for k in counts.tolist()]
    wake = [moments(WAKE, k) for k in counts.tolist()]
    exact_means = [m[0][0] for m in doubly]
    assert abs(slope(exact_means, [m[0][1] for m in path]) + 0.5) < 0.15
    assert abs(slope(exact_means, [m[0][1] for m in doubly]) - 0.5) < 0.15
    assert abs(slope([m[0][0] for m in wake], [m[0][1] for m in wake]) - 0.5) < 0.15
    assert abs(slope([m[1][0] for m in doubly], [m[1][1] for m in doubly]) - 0.5) < 0.15
