"""Noise as a plug: each point uniform, bits kept for iid, variances what the designs promise,
refusals.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import qmc

import vijax as vj
from vijax import families, noise
from vijax.families import UniformNoise, need
from vijax.objectives import elbo, iwae
from vijax.rules import (
    closed_form_kl,
    doubly_reparameterized,
    fitted_score_term,
    pathwise,
    quadratic_control,
)
from vijax.testing.averages import in_float

PLUGS = {"iid": noise.iid(), "antithetic": noise.antithetic(), "sobol": noise.sobol()}
NORMAL = families.diag_normal(2)
LAM = {"loc": np.array([0.4, -0.7]), "log_scale": np.array([0.3, -0.5])}


def target(z):
    return -0.5 * jnp.sum(jnp.square(z - 1.0)) + jnp.sum(jnp.sin(z)) + 0.3 * z[0] * z[1]


def quadratic(z):
    return -0.5 * jnp.sum(jnp.square(z - 1.0)) + 0.3 * z[0] * z[1]


def gradients(rule, log_joint, num_samples, num_draws, key=0):
    """Draws of the gradient in lam: leaves [S, 2]."""
    return sampler(rule, log_joint, num_samples)(
        jax.random.split(jax.random.key(key), num_draws), 1.0
    )


@functools.cache
def sampler(rule, log_joint, num_samples):
    """(keys [S], how much the log-joint is multiplied by) -> draws of the gradient in lam, leaves
    [S, 2].
    """

    def bound(lam, key, factor):
        return vj.expect(
            key,
            NORMAL,
            lam,
            lambda s: factor * log_joint(s.z) - s.log_q,
            rule=rule,
            num_samples=num_samples,
            state=rule.init_state(),
        )[0]

    draws = jax.jit(jax.vmap(jax.grad(bound), in_axes=(None, 0, None)))
    return lambda keys, factor: jax.device_get(draws(LAM, keys, factor))


@pytest.fixture(scope="module")
def exact():
    """The gradient of E_q[target] + H(q) by a product of Gauss-Hermite rules."""
    with in_float(64):
        node, weight = np.polynomial.hermite_e.hermegauss(40)
        grid = jnp.asarray(np.stack(np.meshgrid(node, node), -1).reshape(-1, 2))
        weights = jnp.asarray(np.outer(weight, weight).ravel() / (2 * np.pi))

        def bound(lam):
            z = lam["loc"][None] + jnp.exp(lam["log_scale"])[None] * grid
            return jnp.vdot(weights, jax.vmap(target)(z)) + jnp.sum(lam["log_scale"])

        return jax.device_get(jax.grad(bound)(LAM))


def worst_z(draws, exact):
    spread = {name: leaf.std(0) / len(leaf) ** 0.5 + 1e-6 for name, leaf in draws.items()}
    return max(
        float(np.abs((draws[name].mean(0) - exact[name]) / spread[name]).max()) for name in draws
    )


@pytest.mark.parametrize("plug", ["antithetic", "sobol"])
@pytest.mark.parametrize(
    "make", [pathwise, doubly_reparameterized, quadratic_control, fitted_score_term]
)
def test_unbiased_with_every_rule_that_takes_it(make, plug, exact):
    draw, keys = (
        sampler(make(noise=PLUGS[plug]), target, 4),
        jax.random.split(jax.random.key(0), 4000),
    )
    assert worst_z(draw(keys, 1.0), exact) < 5.0
    assert worst_z(draw(keys, 1.2), exact) > 5.0, "the check sees a wrong integrand"


def test_iid_keeps_its_bits():
    key = jax.random.key(3)
    np.testing.assert_array_equal(noise.iid().draw(key, NORMAL, 5), NORMAL.noise(key, 5))
    left = gradients(pathwise(), target, 3, 4)
    right = gradients(pathwise(noise=noise.iid()), target, 3, 4)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_uniform_points_are_uniform_and_inside():
    family = families.bernoulli(3)
    for plug in (noise.antithetic(), noise.sobol()):
        draws = jax.jit(jax.vmap(lambda key, plug=plug: plug.draw(key, family, 6)))(
            jax.random.split(jax.random.key(0), 3000)
        )
        draws = np.asarray(draws)  # [S, 6, 3]
        assert draws.min() > 0.0 and draws.max() < 1.0
        for moment, mean, var in ((draws, 1 / 2, 1 / 12), (draws**2, 1 / 3, 4 / 45)):
            z = (moment.mean(0) - mean) / (var / 3000) ** 0.5
            assert np.abs(z).max() < 5.0, "each of the K points is uniform, not only their average"
    extreme = noise.to_unit(jnp.asarray([0, 2**32 - 1], jnp.uint32))
    assert 0.0 < extreme[0] and extreme[1] < 1.0 and float(extreme[0]) == 1.0 - float(extreme[1])


def test_sobol_points_are_a_digital_net(x64):
    """Scrambled or not, 2^m points put exactly one in every interval of length 2^-m, in each
    dimension.
    """
    points = np.asarray(noise.sobol().draw(jax.random.key(1), families.bernoulli(60), 64))
    np.testing.assert_array_equal(
        np.sort(np.floor(points * 64), axis=0), np.arange(64.0)[:, None].repeat(60, 1)
    )
    # The first two dimensions: one point in each of the 64 elementary intervals of every shape.
    for i in range(7):
        cells = np.floor(points[:, :2] * [2**i, 2 ** (6 - i)])
        assert len({tuple(cell) for cell in cells}) == 64
    directions = noise.sobol_directions(3, 3)
    index = np.arange(8)
    digits = (index[:, None] >> np.arange(3)) & 1
    ours = (
        np.bitwise_xor.reduce(digits[:, None, :] * directions[None].astype(np.int64), axis=2)
        / 2.0**32
    )
    theirs = qmc.Sobol(3, scramble=False).random(8)
    assert {tuple(row) for row in ours} == {tuple(row) for row in theirs}


def test_antithetic_is_exact_for_the_mean_of_a_quadratic(x64):
    """Identity 29: no variance in `loc` for a quadratic log-joint."""
    draws = gradients(pathwise(noise=noise.antithetic()), quadratic, 2, 200)
    assert draws["loc"].std(0).max() < 1e-12
    assert gradients(pathwise(), quadratic, 2, 200)["loc"].std(0).min() > 0.1


def test_sobol_with_one_sample_is_iid_in_law_and_with_many_far_better():
    """Identity 29. At K = 64 the variance falls below a twentieth of independent draws'; at K = 1
    it is the same.
    """
    one = {
        name: gradients(pathwise(noise=PLUGS[name]), target, 1, 4000, key=5)["loc"]
        for name in ("iid", "sobol")
    }
    ratio = one["sobol"].var(0) / one["iid"].var(0)
    assert np.abs(ratio - 1.0).max() < 0.2
    many = {
        name: gradients(pathwise(noise=PLUGS[name]), target, 64, 300, key=6)["loc"]
        for name in ("iid", "sobol")
    }
    assert (many["sobol"].var(0) / many["iid"].var(0)).max() < 0.05


def test_fixed_draws_are_the_same_at_every_step():
    rule = pathwise(noise=noise.fixed(jax.random.key(4), noise.sobol()))
    draws = gradients(rule, target, 8, 3)
    assert all(np.ptp(leaf, axis=0).max() == 0.0 for leaf in draws.values())
    assert not rule.requires.unbiased and "fixed(sobol())" in rule.name


def test_products_and_chains_share_one_design():
    family = families.product(
        a=families.diag_normal(2), b=families.categorical(3), c=families.exponential(1)
    )
    assert need(family, UniformNoise).num_uniforms == 6
    drawn = noise.sobol().draw(jax.random.key(0), family, 4)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(
        jnp.shape, family.noise(jax.random.key(0), 4)
    )
    chain = families.chain(
        ("a", NORMAL),
        ("b", NORMAL),
        lambda lam, z: {"loc": z, "log_scale": lam},
        lambda key: jnp.zeros(2),
    )
    drawn = noise.antithetic().draw(jax.random.key(0), chain, 4)
    np.testing.assert_array_equal(drawn["a"][:2], -drawn["a"][2:])
    assert need(chain, UniformNoise).num_uniforms == 4


def test_what_would_be_silently_wrong_is_refused():
    with pytest.raises(ValueError, match="num_samples=3 is odd"):
        pathwise(noise=noise.antithetic()).check(NORMAL, elbo, 3, None)
    with pytest.raises(ValueError, match="no known function of uniform numbers"):
        pathwise(noise=noise.sobol()).check(families.gamma(2), elbo, 4, None)
    with pytest.raises(ValueError, match="needs independent samples"):
        doubly_reparameterized(noise=noise.sobol()).check(NORMAL, iwae, 4, None)
    pathwise(noise=noise.sobol()).check(NORMAL, iwae, 4, None)
    with pytest.raises(ValueError, match="odd"):
        closed_form_kl(pathwise(noise=noise.antithetic())).check(NORMAL, elbo, 3, NORMAL)
