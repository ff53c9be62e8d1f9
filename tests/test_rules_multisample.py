"""Multi-sample rules: the mean of the unbiased ones is the exact gradient, of the biased ones what
they state.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from multisample import (
    B2,
    B3,
    BETAS,
    C4,
    DOUBLY,
    GENERALIZED,
    MIXED_PATHS,
    OBJECTIVES,
    OVIS_ONE,
    PATHWISE,
    SCORE,
    SCORE_RULES,
    SCORES,
    STICKING,
    WAKE,
    WAKE_PATHS,
    bits,
    bits_points,
    chain_point,
    discrete,
    every_gradient,
    exact_gradient,
    line,
    line_point,
    mean_gradient,
    normal,
    step_down,
    support_of,
    surrogate_of,
    two_levels,
    wake_term,
)
from multisample import precise as precise

import vijax as vj
from vijax import baselines, objectives, path_weights, rules
from vijax.families import Inverse, bernoulli, diag_normal, full_normal, log_probs, need

# Unbiased rules
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "baseline"),
    [("iwae", b) for b in SCORES]
    + [(o, "geometric") for o in OBJECTIVES if o != "iwae"]
    + [("thermodynamic", "ovis")],
)
def test_score_is_unbiased_for_every_objective(name, baseline):
    """Identities 2 and 11: the mean over all 512 triples of 3-bit samples is the gradient of the
    enumerated bound.
    """
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
    """Row 43 with K = 2 and one auxiliary draw, all 512 triples: the first two are the samples, the
    last the auxiliary one.
    """
    toy, (theta, lam) = discrete(B3), bits()
    rule, triples = rules.score(baselines.ovis_monte_carlo(1)), toy.noise(3)

    def gradient(triple):
        family = toy.family._replace(
            noise=lambda key, num_samples: triple[:2] if num_samples == 2 else triple[2:]
        )
        return jax.grad(
            surrogate_of(toy._replace(family=family), rule, objectives.iwae, 2), argnums=(0, 1)
        )(theta, lam, None)

    draws = jax.jit(jax.vmap(gradient))(triples)
    mean = jax.tree.map(lambda leaf: jnp.tensordot(toy.weigh(lam, triples), leaf, axes=1), draws)
    assert_close(mean, exact_gradient(toy, objectives.iwae, 2, theta, lam), tolerance=1e-11)


PATHS = {"pathwise": PATHWISE, "doubly": DOUBLY, "generalized": GENERALIZED}


@pytest.mark.parametrize(
    ("name", "path"),
    [(o, "doubly") for o in OBJECTIVES]
    + [("iwae", "pathwise"), ("iwae", "generalized")]
    + [("jackknife", "generalized")],
)
def test_path_rules_are_unbiased_for_every_objective(name, path):
    """Identities 10 and 11, rows 8, 11, 12 and 58: two samples, both integrated by quadrature;
    theta holds a prior too.
    """
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
    """Identity 13, row 12: a structured q against a prior that runs the other way, in all
    parameters of both.
    """
    num_samples = 1 if objective is objectives.elbo else 2
    toy, (theta, lam) = two_levels(24 if num_samples == 1 else 12), chain_point()
    exact = exact_gradient(toy, objective, num_samples, theta, lam)
    for rule in (DOUBLY, rules.generalized_doubly_reparameterized(toy.prior_family)):
        mean = mean_gradient(toy, rule, objective, num_samples, theta, lam)
        assert_close(mean, exact, tolerance=1e-10 if num_samples == 1 else 1e-6)


def test_generalized_is_not_the_score_of_the_prior():
    """Row 12: another estimator samplewise; phi's part and the slope's are those of DReG to
    rounding.
    """
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
        there_and_back = jax.jit(
            lambda lam, noise, f=family: need(f, Inverse).noise(lam, f.transport(lam, noise)[0])
        )
        assert_close(there_and_back(lam, noise), noise, tolerance=1e-12)
    mixed = vj.families.product(a=diag_normal(2), c=bernoulli(2))
    assert mixed.traits.get(Inverse) is None


def test_dropping_the_direct_term_is_caught():
    """The planted fault: OVIS gamma = 1 taken for an estimator of the gradient of L_K."""
    toy, (theta, lam) = discrete(B3), bits()
    mean = mean_gradient(toy, OVIS_ONE, objectives.iwae, 3, theta, lam)
    with pytest.raises(AssertionError, match="differs"):
        assert_close(mean, exact_gradient(toy, objectives.iwae, 3, theta, lam), tolerance=1e-3)


def test_detaching_the_distribution_object_is_caught():
    """Identity 13: stopping q(z2 | z1) as an object cuts its dependence on z1, and DReG becomes
    biased.
    """
    toy, (theta, lam) = two_levels(), chain_point()
    whole = toy.family.log_prob

    def cut(lam, z):
        held = {"z1": jax.lax.stop_gradient(z["z1"]), "z2": z["z2"]}
        first = diag_normal(1).log_prob(lam["z1"], z["z1"]) - diag_normal(1).log_prob(
            lam["z1"], held["z1"]
        )
        return whole(lam, held) + first  # the same value without z1's path through q(z2 | z1)

    broken = toy._replace(family=toy.family._replace(log_prob=cut))
    mean = mean_gradient(broken, DOUBLY, objectives.iwae, 2, theta, lam)
    with pytest.raises(AssertionError, match="differs"):
        assert_close(mean, exact_gradient(toy, objectives.iwae, 2, theta, lam), tolerance=1e-3)


# Biased rules: what they are the gradient of
# --------------------------------------------------------------------------------


def test_biased_path_weights_have_the_means_they_state():
    """Identities 8 and 9: E[sticking] = grad L_K + E[sum v_k h_k], E[wake] = E[sum v_k h_k], and
    the mixture of the two.
    """
    toy, (theta, lam) = line(48), line_point()
    bound, wake = (
        exact_gradient(toy, objectives.iwae, 2, theta, lam)[1],
        wake_term(toy, objectives.iwae, 2, theta, lam),
    )
    assert all(float(jnp.abs(leaf).max()) > 0.01 for leaf in jax.tree.leaves((bound, wake)))
    for rule, share in (
        (STICKING, (1.0, 1.0)),
        (WAKE_PATHS, (0.0, 1.0)),
        (MIXED_PATHS, (0.7, 0.3)),
    ):
        mean = mean_gradient(toy, rule, objectives.iwae, 2, theta, lam)
        stated = jax.tree.map(lambda b, w, share=share: share[0] * b + share[1] * w, bound, wake)
        assert_close(mean[1], stated, tolerance=2e-7)
        assert_close(
            mean[0], exact_gradient(toy, objectives.iwae, 2, theta, lam)[0], tolerance=2e-7
        )


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
    """Identity 9: E[OVIS gamma = 1] = grad L_K + E[sum v_k h_k]; the wake rule's mean is the second
    term.
    """
    toy, (theta, lam) = discrete(B3), bits()
    exact = exact_gradient(toy, objectives.iwae, num_samples, theta, lam)
    wake = wake_term(toy, objectives.iwae, num_samples, theta, lam)
    ovis = mean_gradient(toy, OVIS_ONE, objectives.iwae, num_samples, theta, lam)
    assert_close(ovis, (exact[0], jax.tree.map(jnp.add, exact[1], wake)), tolerance=1e-11)
    assert_close(
        mean_gradient(toy, WAKE, objectives.iwae, num_samples, theta, lam),
        (exact[0], wake),
        tolerance=1e-11,
    )


def test_ovis_is_the_published_estimator_samplewise():
    """Row 44, written out: sum_k (L - v_k - L_-k + gamma v_k - (1 - gamma) log(1 - 1/K)) h_k."""
    toy, (theta, lam) = discrete(B3), bits()
    gamma, noise = 0.4, toy.noise(3)
    draws, _ = every_gradient(
        toy, rules.score(baselines.ovis(gamma)), objectives.iwae, 3, theta, lam
    )

    def formula(z):
        log_w = jax.vmap(lambda z: toy.log_joint(theta, z) - toy.family.log_prob(lam, z))(z)
        bound, v = objectives.iwae.value(log_w), jax.nn.softmax(log_w)
        left_out = jnp.stack([objectives.iwae.value(jnp.delete(log_w, k)) for k in range(3)])
        control = left_out - gamma * v + (1.0 - gamma) * math.log(1.0 - 1.0 / 3.0)
        return (bound - v - control) @ (z - jax.nn.sigmoid(lam["logits"])[None])

    assert_close(draws[1]["logits"], jax.jit(jax.vmap(formula))(noise), tolerance=1e-12)


def test_wake_tends_to_the_posterior_score_with_a_bias_of_order_one_over_samples():
    """Identity 24, two bits: the stated means at K = 2, 3, 4 and their limit, then K = 4, 6 for the
    order.

    Which model those are of is not stated. Its five parameters are these, to the digits given:
    least squares on the eight numbers finds one solution, whatever the start.
    """
    toy = discrete(B2)
    theta, lam = jnp.array([3.133, -2.367, 1.188, 0.0]), {"logits": jnp.array([0.4, -0.9])}
    target = jax.nn.softmax(theta) @ (support_of(toy.family) - jax.nn.sigmoid(lam["logits"])[None])
    means = {
        k: mean_gradient(toy, WAKE, objectives.iwae, k, theta, lam)[1]["logits"]
        for k in (2, 3, 4, 6)
    }
    stated = [(-0.088, -0.126), (-0.184, -0.170), (-0.252, -0.194), (-0.442, -0.249)]
    np.testing.assert_allclose([means[2], means[3], means[4], target], stated, atol=5e-4)
    assert np.all(np.diff([np.abs(mean - target) for mean in means.values()], axis=0) < 0.0)

    theta, lam = jnp.array([0.2, -1.0, 0.9, 0.1]), {"logits": jnp.array([0.6, 0.3])}
    target = jax.nn.softmax(theta) @ (support_of(toy.family) - jax.nn.sigmoid(lam["logits"])[None])
    four, six = (
        mean_gradient(toy, WAKE, objectives.iwae, k, theta, lam)[1]["logits"] - target
        for k in (4, 6)
    )
    np.testing.assert_allclose(six * 6 / (four * 4), 1.0, atol=0.2)


def test_covariance_is_the_gradient_of_the_exact_thermodynamic_objective():
    """Identity 25: with every state in its exact proportion, M times over, the gradient is a + K /
    (K - 1) b exactly, and a + b is the gradient of the enumerated sum of E_b[log_w], in theta and
    phi.
    """
    toy = discrete(B2)
    theta, lam = jnp.array([0.2, -1.0, 0.9, 0.1]), {"logits": jnp.zeros(2)}
    states, objective = support_of(toy.family), objectives.thermodynamic(BETAS)

    def exact(theta, lam):
        log_q = log_probs(toy.family, lam, states)
        log_w = theta - log_q
        terms = [
            (c - b) * jax.nn.softmax(log_q + b * log_w) @ log_w
            for b, c in itertools.pairwise(BETAS)
        ]
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
    assert_close(
        ours, every_gradient(toy, SCORE, objectives.elbo, 3, theta, lam)[0], tolerance=1e-13
    )


def test_tail_adaptive_weights_follow_the_ranks():
    """Row 66: rho_k in proportion to rank^beta, the largest weight has rank 1, ties share; then the
    gradient, written out.
    """
    factor = path_weights.tail_adaptive(-1.0).factor
    log_w = jnp.array([0.3, 900.0, -4.0, -900.0])
    raw = np.array([1 / 2, 1.0, 1 / 3, 1 / 4])
    np.testing.assert_allclose(
        factor(objectives.elbo, log_w, -1.0), 4 * raw / raw.sum(), rtol=1e-12
    )
    np.testing.assert_allclose(factor(objectives.elbo, jnp.zeros(4), -1.0), np.ones(4))
    toy, (theta, lam) = line(8), line_point()
    ours = every_gradient(
        toy,
        rules.doubly_reparameterized(path_weights.tail_adaptive(-0.5)),
        objectives.elbo,
        2,
        theta,
        lam,
    )[0]

    def formula(noise):
        def log_w(z):
            return toy.log_joint(theta, z) - diag_normal(1).log_prob(lam, z)

        loc, scale = lam["loc"][None], jnp.exp(lam["log_scale"])[None]
        z = loc + scale * noise
        values, slopes = jax.vmap(jax.value_and_grad(log_w))(z)
        tied = values[0] == values[1]
        rank = jnp.where(tied, 2.0, jnp.where(jnp.arange(2) == jnp.argmax(values), 1.0, 2.0))
        weights = (rank**-0.5 / jnp.sum(rank**-0.5))[:, None]
        return {
            "loc": jnp.sum(weights * slopes, axis=0),
            "log_scale": jnp.sum(weights * slopes * noise * scale, axis=0),
        }

    assert_close(ours[1], jax.jit(jax.vmap(formula))(toy.noise(2)), tolerance=1e-12)
    flat = every_gradient(
        toy,
        rules.doubly_reparameterized(path_weights.tail_adaptive(0.0)),
        objectives.elbo,
        2,
        theta,
        lam,
    )[0]
    assert_close(
        flat, every_gradient(toy, DOUBLY, objectives.elbo, 2, theta, lam)[0], tolerance=1e-12
    )
