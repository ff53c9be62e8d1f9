"""Multi-sample objectives, and equalities between rules sample by sample."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_close
from multisample import (
    B3,
    BETAS,
    DOUBLY,
    GENERALIZED,
    OVIS_ONE,
    PATHWISE,
    SCORE,
    WAKE,
    WAKE_PATHS,
    Toy,
    bits,
    discrete,
    every_gradient,
    expected,
    line,
    line_point,
    linear,
    mean_gradient,
    normal,
    support_of,
    surrogate_of,
    two_levels,
)
from multisample import precise as precise

from vijax import baselines, objectives, path_weights, rules
from vijax.families import diag_normal, log_probs

# Objectives
# ------------------------------------------------------------------------------------------


def test_bounds_are_ordered():
    """Identities 1 and 26: log p = ELBO + KL; L_K rises from the ELBO to below log p <= EUBO; CUBO
    is above log p.
    """
    toy, (theta, lam) = discrete(B3), bits()
    log_p, log_post = jax.nn.logsumexp(theta), jax.nn.log_softmax(theta)
    log_q = log_probs(toy.family, lam, support_of(toy.family))
    elbo = expected(toy, objectives.elbo, 1, theta, lam)
    np.testing.assert_allclose(log_p, elbo + jnp.exp(log_q) @ (log_q - log_post), rtol=1e-13)
    ladder = [float(expected(toy, objectives.iwae, k, theta, lam)) for k in (1, 2, 3)]
    assert math.isclose(ladder[0], float(elbo), rel_tol=1e-13) and ladder == sorted(ladder)
    eubo = jnp.exp(log_post) @ (theta - log_q)
    cubo = 0.5 * jax.nn.logsumexp(log_q + 2.0 * (theta - log_q))
    assert ladder[-1] < log_p < eubo and log_p < cubo
    np.testing.assert_allclose(
        expected(toy, objectives.exp_cubo(2.0, reference=log_p), 1, theta, lam),
        -0.5 * jnp.exp(2.0 * (cubo - log_p)),
        rtol=1e-12,
    )
    assert abs(expected(toy, objectives.jackknife(), 3, theta, lam) - log_p) < 0.5 * (
        log_p - ladder[-1]
    )


def test_thermodynamic_integration():
    """Identity 25: the integral over b is log p(x); its ends are the ELBO and the EUBO; the left
    sum is a lower bound.
    """
    toy, (theta, lam) = discrete(B3), bits()
    log_q = log_probs(toy.family, lam, support_of(toy.family))

    def at(beta):
        return jax.nn.softmax(log_q + beta * (theta - log_q)) @ (theta - log_q)

    nodes, weights = np.polynomial.legendre.leggauss(20)
    log_p = jax.nn.logsumexp(theta)
    np.testing.assert_allclose(
        jax.vmap(at)(jnp.asarray(nodes + 1) / 2) @ weights / 2, log_p, rtol=1e-12
    )
    np.testing.assert_allclose(at(0.0), expected(toy, objectives.elbo, 1, theta, lam), rtol=1e-12)
    # Equal q: the eight states are the exact proportions
    copies = objectives.thermodynamic(BETAS).value(theta + math.log(8.0))
    assert jnp.mean(theta + math.log(8.0)) < copies < log_p


def test_jackknife_is_its_definition():
    log_w = jnp.array([0.3, -2.0, 1.5])
    left_out = np.mean([objectives.iwae.value(jnp.delete(log_w, k)) for k in range(3)])
    np.testing.assert_allclose(
        objectives.jackknife().value(log_w),
        3 * objectives.iwae.value(log_w) - 2 * left_out,
        rtol=1e-13,
    )
    assert objectives.jackknife(objectives.elbo) is objectives.elbo


def test_chi_bounds_do_not_see_a_shift_of_the_log_joint():
    """Row 59: the log-joint lowered by 1000 leaves the gradient as it is; written naively it would
    underflow to zero.
    """
    toy = line(8)._replace(log_joint=lambda theta, z: line(8).log_joint(theta, z) + theta["offset"])
    theta, lam = line_point()
    high, low = theta | {"offset": jnp.array(0.0)}, theta | {"offset": jnp.array(-1000.0)}
    with_reference = [objectives.exp_cubo(reference=r) for r in (-1.0, -1001.0, 0.0)]
    cubo = objectives.cubo()
    for rule, before, after in (
        (DOUBLY, cubo, cubo),
        (SCORE, cubo, cubo),
        (PATHWISE, *with_reference[:2]),
    ):
        left = every_gradient(toy, rule, before, 2, high, lam)[0]
        assert_close(every_gradient(toy, rule, after, 2, low, lam)[0], left, tolerance=1e-9)
    naive = every_gradient(toy, PATHWISE, with_reference[2], 2, low, lam)[0]
    assert all(float(jnp.abs(leaf).max()) == 0.0 for leaf in jax.tree.leaves(naive))


def test_the_score_form_of_the_chi_bound():
    """Identity 26: grad E[w^n] = (1 - n) E[w^n h], which `exp_cubo` follows downwards, with one
    sample.
    """
    toy, (theta, lam) = discrete(B3), bits()
    states = support_of(toy.family)
    log_q = log_probs(toy.family, lam, states)
    moment = jnp.exp(log_q + 3.0 * (theta - log_q))
    stated = (1.0 - 3.0) * moment @ (states - jax.nn.sigmoid(lam["logits"])[None])
    mean = mean_gradient(
        toy, rules.score(baselines.none()), objectives.exp_cubo(3.0, reference=0.0), 1, theta, lam
    )
    np.testing.assert_allclose(mean[1]["logits"], -stated / 3.0, rtol=1e-11)


# Samplewise identities
# ------------------------------------------------------------------------------------------


def test_one_sample_is_the_elbo():
    """Identity 10."""
    toy, (theta, lam) = line(8), line_point()
    total = every_gradient(toy, PATHWISE, objectives.elbo, 1, theta, lam)[0]
    stuck = every_gradient(toy, DOUBLY, objectives.elbo, 1, theta, lam)[0]
    for objective in (objectives.iwae, objectives.renyi(-2.0)):
        assert_close(
            every_gradient(toy, PATHWISE, objective, 1, theta, lam)[0], total, tolerance=1e-13
        )
    assert_close(
        every_gradient(toy, DOUBLY, objectives.iwae, 1, theta, lam)[0], stuck, tolerance=1e-13
    )
    assert float(path_weights.wake().factor(objectives.iwae, jnp.array([0.4]), -1.0)[0]) == 0.0


def test_the_two_vimco_baselines():
    """Identity 14: equal at K = 2, different at K = 3, zero for equal weights; leave-one-out on the
    mean is RLOO.
    """
    log_w = jnp.array([0.3, -2.0, 1.5])
    geometric, arithmetic = (
        jax.jit(lambda log_w, b=b: b.signal(objectives.iwae, log_w, (), (), None))
        for b in (baselines.leave_one_out(), baselines.leave_one_out(objectives.iwae))
    )
    np.testing.assert_allclose(geometric(log_w[:2]), arithmetic(log_w[:2]), rtol=1e-12)
    assert float(jnp.abs(geometric(log_w) - arithmetic(log_w)).max()) > 0.05
    np.testing.assert_allclose(
        arithmetic(log_w),
        objectives.iwae.value(log_w) - jax.vmap(objectives.iwae.value)(objectives.others(log_w)),
    )
    for signal in (geometric, arithmetic):
        np.testing.assert_allclose(signal(jnp.full(4, -3.0)), np.zeros(4), atol=1e-15)
        order = jnp.array([2, 0, 1])
        # Identity 32
        np.testing.assert_allclose(signal(log_w[order]), signal(log_w)[order], rtol=1e-12)
    leave = baselines.leave_one_out().signal(objectives.elbo, log_w, (), (), None)
    np.testing.assert_allclose(leave, (log_w - log_w.mean()) / 2.0, rtol=1e-12)


def test_hierarchical_sticking_the_landing_has_no_variance_at_the_posterior():
    """Identity 13: q runs z1 -> z2 and is the exact posterior of z2 -> z1 -> x."""
    toy, _ = two_levels(6), None
    theta = {"prior": {"z2": normal(0.0, 0.0), "z1": linear(0.0, 1.0, 0.0)}, "x": jnp.array([0.8])}
    # z1 ~ N(0, 2), x | z1 ~ N(z1, 1): z1 | x ~ N(2x/3, 2/3); z2 | z1 ~ N(z1/2, 1/2).
    lam = {
        "z1": normal(1.6 / 3, 0.5 * math.log(2 / 3)),
        "z2": linear(0.0, 0.5, 0.5 * math.log(0.5)),
    }
    stuck = every_gradient(toy, DOUBLY, objectives.elbo, 1, theta, lam)[0][1]
    assert_close(stuck, jax.tree.map(jnp.zeros_like, stuck), tolerance=1e-12)
    total = every_gradient(toy, PATHWISE, objectives.elbo, 1, theta, lam)[0][1]
    assert all(float(jnp.std(leaf)) > 0.1 for leaf in jax.tree.leaves(total))


def test_the_theta_gradient_does_not_depend_on_the_rule_for_phi():
    """Identity 31, with the values: one key, one objective, one theta gradient."""
    toy, (theta, lam) = line(8), line_point()
    chosen = [DOUBLY, WAKE_PATHS, PATHWISE, WAKE, OVIS_ONE]
    grads = [
        jax.jit(jax.value_and_grad(surrogate_of(toy, rule, objectives.iwae, 3)))(
            theta, lam, None, jax.random.key(3)
        )
        for rule in chosen
    ]
    for other in grads[1:]:
        assert_close(other, grads[0], tolerance=1e-12)


MAPPED = [WAKE, WAKE_PATHS, GENERALIZED, rules.score(baselines.ovis(0.5))]


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
    """Identity 32, which a key used twice would break: variances at K = 1 and K = 8, in standard
    errors of their ratio.
    """
    toy, (theta, lam) = line(8), line_point()

    def draws(num_samples):
        grad = jax.grad(surrogate_of(toy, PATHWISE, objectives.elbo, num_samples), argnums=1)
        keys = jax.random.split(jax.random.key(5), 8000)
        return np.asarray(
            jax.jit(jax.vmap(grad, in_axes=(None, None, None, 0)))(theta, lam, None, keys)["loc"][
                :, 0
            ]
        )

    one, eight = draws(1), draws(8)

    def log_variance(sample):  # and its standard error, delta method
        squares = np.square(sample - sample.mean())
        return np.log(squares.mean()), squares.std() / squares.mean() / len(sample) ** 0.5

    (a, error_a), (b, error_b) = log_variance(one), log_variance(eight)
    assert abs(a - b - math.log(8.0)) < 5.0 * math.hypot(error_a, error_b)


# Signal-to-noise
# ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_signal_to_noise_slopes_in_the_number_of_samples():
    """Identity 12, (G20): in K the ratio falls as K^-1/2 for the pathwise gradient of the encoder's
    bias and rises as K^1/2 for DReG, the wake phase and theta. The pathwise ratio takes DReG's
    mean: its own is below its standard error.
    """
    dim, counts, num_draws = 20, np.array([16, 64, 256]), 2000
    keys = jax.random.split(jax.random.key(6), 4)
    x = 1.4 * jax.random.normal(keys[0], (dim,))
    theta = 0.05 * jax.random.normal(keys[1], (dim,))
    lam = {
        "loc": 0.5 * x + 0.05 * jax.random.normal(keys[2], (dim,)),
        "log_scale": jnp.full(dim, 0.5 * math.log(2 / 3)),
    }

    def log_joint(theta, z):
        return -0.5 * jnp.sum(jnp.square(z - theta)) - 0.5 * jnp.sum(jnp.square(x - z))

    toy = Toy(diag_normal(dim), log_joint, lambda k: None, lambda lam, z: None)

    def moments(rule, num_samples):
        grad = jax.grad(surrogate_of(toy, rule, objectives.iwae, num_samples), argnums=(0, 1))
        draws = jax.jit(
            lambda keys: jax.lax.map(lambda key: grad(theta, lam, None, key), keys, batch_size=50)
        )
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
