"""Rules by themselves: bare use on a closure, and the identities that hold sample by sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from checks import assert_close
from flax import linen

import vijax as vj
from vijax import densities, families, rules
from vijax.baselines import leave_one_out
from vijax.families import FiniteSupport, log_probs, need
from vijax.objectives import elbo, iwae, renyi
from vijax.rules import closed_form_entropy, doubly_reparameterized, enumerated, pathwise, score

DIAG, FULL, BITS = families.diag_normal(2), families.full_normal(2), families.bernoulli(3)
TABLE = np.random.default_rng(0).normal(size=(2, 2, 2))


def gradient(rule, family, log_joint, lam, key, *, objective=elbo, num_samples=1):
    """Value and gradient in lam of a bare surrogate."""

    def bound(lam):
        integrand = lambda s: log_joint(s.z) - s.log_q  # noqa: E731
        return vj.expect(
            key, family, lam, integrand, rule=rule, objective=objective, num_samples=num_samples
        )[0]

    return jax.jit(jax.value_and_grad(bound))(lam)


def largest(tree):
    return {
        jax.tree_util.keystr(path): float(abs(leaf).max())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


MEAN, FACTOR = np.array([0.7, -1.2]), np.array([[0.8, 0.0], [0.5, 1.3]])
POSTERIORS = {
    "diagonal": (DIAG, {"loc": MEAN, "log_scale": np.log([0.4, 2.0])}),
    "full": (FULL, families.from_covariance(MEAN, FACTOR @ FACTOR.T)),
    "chain": (
        problems.normal_chain(),
        {
            "first": {"loc": np.array([0.3]), "log_scale": np.array([-0.5])},
            "second": {
                "slope": np.array([0.8]),
                "loc": np.array([-0.1]),
                "log_scale": np.array([0.2]),
            },
        },
    ),
}


@pytest.mark.parametrize(
    "objective, num_samples", [(elbo, 2), (iwae, 3), (renyi(0.5), 3)], ids=["elbo", "iwae", "renyi"]
)
@pytest.mark.parametrize("name", POSTERIORS)
def test_path_derivative_vanishes_at_the_posterior_in_each_leaf(name, objective, num_samples, x64):
    """Identities 6 and 13: zero, sample by sample, for every leaf; the total pathwise gradient is
    not.
    """
    family, lam = POSTERIORS[name]
    lam = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), lam)
    log_joint = functools.partial(family.log_prob, jax.lax.stop_gradient(lam))
    run = functools.partial(
        gradient,
        family=family,
        log_joint=log_joint,
        lam=lam,
        key=jax.random.key(1),
        objective=objective,
        num_samples=num_samples,
    )
    _, path = run(doubly_reparameterized())
    assert all(size < 1e-13 for size in largest(path).values()), largest(path)
    _, total = run(pathwise())
    assert all(size > 1e-3 for size in largest(total).values()), largest(total)


def normal_target(z):
    return (
        jnp.sum(densities.normal(z, jnp.array([1.0, -0.5]), jnp.array([0.3, -0.4])))
        + jnp.sin(z[0]) * z[1]
    )


LAM = {"loc": np.array([0.2, -0.3]), "log_scale": np.array([0.1, -0.6])}


@pytest.mark.parametrize(
    "objective", [elbo, iwae, renyi(0.5), renyi(2.0)], ids=["elbo", "iwae", "half", "two"]
)
def test_doubly_reparameterized_is_the_general_formula(objective, x64):
    """sum_k (R_k - R_kk) dlog_w_k/dz_k dz_k/dlam, term by term; for IWAE the weights v_k^2 (Tucker
    et al. 2019).
    """
    lam, key = jax.tree.map(jnp.asarray, LAM), jax.random.key(4)
    drawn = rules.draw(key, vj.Q(DIAG, lam), 4)
    path = lambda lam: rules.draw(key, vj.Q(DIAG, lam), 4).z  # noqa: E731
    log_w = jax.vmap(lambda z: normal_target(z) - DIAG.log_prob(lam, z))(drawn.z)
    curvature = jnp.diagonal(jax.hessian(objective.value)(log_w))
    factor = jax.grad(objective.value)(log_w) - curvature
    slope = jax.vmap(jax.grad(lambda z: normal_target(z) - DIAG.log_prob(lam, z)))(drawn.z)
    _, pull = jax.vjp(path, lam)
    expected = pull(factor[:, None] * slope)[0]
    assert_close(
        gradient(
            doubly_reparameterized(),
            DIAG,
            normal_target,
            lam,
            key,
            objective=objective,
            num_samples=4,
        )[1],
        expected,
        tolerance=1e-13,
    )
    if objective is iwae:
        assert_close(factor, jax.nn.softmax(log_w) ** 2, tolerance=1e-14)


def test_one_sample_makes_all_bounds_the_elbo(x64):
    """Identity 10."""
    lam, key = jax.tree.map(jnp.asarray, LAM), jax.random.key(5)
    for rule in (pathwise(), doubly_reparameterized()):
        base = gradient(rule, DIAG, normal_target, lam, key)
        for objective in (iwae, renyi(0.5), renyi(3.0)):
            assert_close(
                gradient(rule, DIAG, normal_target, lam, key, objective=objective),
                base,
                tolerance=1e-13,
            )


def test_closed_form_entropy_is_total_pathwise_for_a_location_scale_family(x64):
    """Identity 30: their gradients are equal sample by sample, their values differ."""
    lam, key = jax.tree.map(jnp.asarray, LAM), jax.random.key(6)
    value, total = gradient(pathwise(), DIAG, normal_target, lam, key)
    closed_value, closed = gradient(closed_form_entropy(pathwise()), DIAG, normal_target, lam, key)
    assert_close(closed, total, tolerance=1e-14)
    assert abs(closed_value - value) > 1e-3


def test_leave_one_out_is_vargrad(x64):
    """Identity 4: the gradient of half the unbiased sample variance of log q - log p, negated."""
    lam, key, state = (
        {"logits": jnp.array([0.3, -0.8, 0.1])},
        jax.random.key(7),
        lambda b: jnp.asarray(TABLE)[tuple(b.astype(int))],
    )
    z = rules.draw(key, vj.Q(BITS, lam), 5).z

    def half_variance(lam):
        return -0.5 * jnp.var(jax.vmap(lambda z: BITS.log_prob(lam, z) - state(z))(z), ddof=1)

    assert_close(
        gradient(score(), BITS, state, lam, key, num_samples=5)[1],
        jax.grad(half_variance)(lam),
        tolerance=1e-13,
    )


def test_one_bit_against_the_closed_forms(x64):
    """Identity 33, exactly, over the four pairs of bits: mean a p (1 - p), variance a^2 p (1 - p)
    (1/2 - p (1 - p)).
    """
    logit, a = 0.6, 1.7
    p, mean, square = 1.0 / (1.0 + np.exp(-logit)), 0.0, 0.0
    baseline = leave_one_out()
    for bits in np.ndindex(2, 2):
        values = a * np.array(bits, float)
        signal = baseline.signal(elbo, jnp.asarray(values), (), (), None)
        g, prob = (
            float(np.sum(signal * (np.array(bits) - p))),
            np.prod([p if b else 1.0 - p for b in bits]),
        )
        mean, square = mean + prob * g, square + prob * g * g
    v = p * (1.0 - p)
    assert_close([mean, square - mean**2], [a * v, a * a * v * (0.5 - v)], tolerance=1e-14)


def test_enumerated_is_exact_without_noise(x64):
    lam = {"logits": jnp.array([0.3, -0.8, 0.1])}
    log_joint = lambda b: jnp.asarray(TABLE)[tuple(b.astype(int))]  # noqa: E731

    def exact(lam):
        log_q = log_probs(BITS, lam, need(BITS, FiniteSupport).values())
        return jnp.exp(log_q) @ (jnp.asarray(TABLE).ravel() - log_q)

    results = [
        gradient(enumerated(), BITS, log_joint, lam, jax.random.key(seed)) for seed in (0, 1)
    ]
    assert_close(results[0], jax.value_and_grad(exact)(lam), tolerance=1e-13)
    assert_close(results[0], results[1], tolerance=1e-15)


@pytest.mark.parametrize(
    "rule", [pathwise(), doubly_reparameterized(), score()], ids=lambda rule: rule.name
)
def test_bare_rule_under_vmap_and_scan(rule, x64):
    lam, keys = jax.tree.map(jnp.asarray, LAM), jax.random.split(jax.random.key(8), 3)

    def one(key):
        return gradient(rule, DIAG, normal_target, lam, key, num_samples=2)

    alone = [one(key) for key in keys]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    assert_close(jax.vmap(one)(keys), stacked, tolerance=1e-13)
    assert_close(
        jax.lax.scan(lambda carry, key: (carry, one(key)), 0, keys)[1], stacked, tolerance=1e-13
    )


class Loss(linen.Module):
    """A user's own network whose loss calls a rule."""

    @linen.compact
    def __call__(self, x, key):
        lam = {"loc": linen.Dense(2)(x), "log_scale": linen.Dense(2)(x)}
        decode = self.param("decode", linen.initializers.ones, (2,))
        integrand = lambda s: normal_target(s.z) + jnp.vdot(decode, s.z) - s.log_q  # noqa: E731
        return -vj.expect(
            key, DIAG, lam, integrand, rule=doubly_reparameterized(), objective=iwae, num_samples=3
        )[0]


def test_bare_rule_inside_a_flax_loss():
    x, key = jnp.array([0.5, -1.0]), jax.random.key(9)
    params = Loss().init(jax.random.key(0), x, key)
    value, grads = jax.jit(jax.value_and_grad(lambda p: Loss().apply(p, x, key)))(params)
    assert np.isfinite(value) and all(size > 0.0 for size in largest(grads).values())
