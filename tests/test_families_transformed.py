"""Families on constrained supports: densities against scipy, mass by quadrature in z, traits, and
every path rule against quadrature in u.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import assert_unbiased, compiled
from conftest import enable_x64
from scipy import special, stats

import vijax as vj
from vijax import bijectors, families, rules, supports
from vijax.objectives import elbo, iwae
from vijax.testing.grids import (
    Grid,
    expectation,
    half_line,
    quadrature,
    unit_interval,
    unit_simplex,
)

NUM_DRAWS = 4000
NUM_SAMPLES = 2
PATH_RULES = {
    "pathwise": (rules.pathwise(), elbo),
    "sticking_the_landing": (rules.doubly_reparameterized(), elbo),
    "fitted_score_term": (rules.fitted_score_term(decay=0.5), elbo),
    "score": (rules.score(), elbo),
    "pathwise_iwae": (rules.pathwise(), iwae),
    "doubly_reparameterized_iwae": (rules.doubly_reparameterized(), iwae),
    "score_iwae": (rules.score(), iwae),
}


def of_positives(theta, z):
    """A log-joint of two positive numbers that depend on each other, of no family's form."""
    return theta[0] * jnp.log1p(z[0] * z[1]) - jnp.sum(z) + theta[1] * jnp.sin(2.0 * z[0])


def of_shares(theta, z):
    """Three shares: a Dirichlet's logarithms and something else."""
    return 1.5 * jnp.sum(jnp.log(z)) + jnp.vdot(theta, z[:2]) + jnp.sin(3.0 * z[0] * z[2])


LATENTS = {
    "positive": (
        supports.positive(2),
        families.diag_normal(2),
        {"loc": [-0.3, 0.4], "log_scale": [-0.5, -0.9]},
        of_positives,
    ),
    "simplex": (
        supports.simplex(3),
        families.full_normal(2),
        {"loc": [0.5, -0.7], "log_scale": [-0.4, 0.2], "lower": [[0.0, 0.0], [0.6, 0.0]]},
        of_shares,
    ),
}


def without_log_det(bijector):
    """The fault that the checks below must catch: the density of u, taken for that of z."""
    return bijector._replace(log_det=lambda u: 0.0 * jnp.sum(u))


@pytest.fixture(scope="module")
def gradients():
    """{latent: ({rule: draws [S, ...] of the gradient in (lam, theta)}, the same of the fault,
    {objective: exact})}; rules that remember something have seen one step.
    """
    with enable_x64():
        return {name: compiled(lambda name=name: gradients_of(name)) for name in LATENTS}


def gradients_of(name):
    support, base, lam, log_joint = LATENTS[name]
    bijector = bijectors.onto(support)
    lam = jax.tree.map(jnp.asarray, lam, is_leaf=lambda leaf: isinstance(leaf, list))
    theta = jnp.array([0.8, -0.6])
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)

    def draws(family, rule, objective):
        def bound(lam, theta, key, state):
            return vj.expect(
                key,
                family,
                lam,
                lambda s: log_joint(theta, s.z) - s.log_q,
                rule=rule,
                objective=objective,
                num_samples=NUM_SAMPLES,
                state=state,
            )

        first = bound(lam, theta, jax.random.key(1), rule.init_state())[1]
        state = rule.update(rule.init_state(), first.stats)
        gradient = jax.grad(lambda *given: bound(*given)[0], argnums=(0, 1))
        return jax.vmap(gradient, in_axes=(None, None, 0, None))(lam, theta, keys, state)

    def exact(objective):
        def bound(lam, theta):
            u, weights = quadrature(base, lam, 12)
            log_w = jax.vmap(
                lambda u: (
                    log_joint(theta, bijector.forward(u))
                    + bijector.log_det(u)
                    - base.log_prob(lam, u)
                )
            )(u)
            return expectation(objective, NUM_SAMPLES, weights, log_w)

        return jax.grad(bound, argnums=(0, 1))(lam, theta)

    def of_all(bijector, chosen):
        family = families.transformed(base, bijector)
        return {rule: draws(family, *PATH_RULES[rule]) for rule in chosen}

    right = of_all(bijector, PATH_RULES)
    wrong = of_all(without_log_det(bijector), ("pathwise", "sticking_the_landing", "score"))
    return right, wrong, {"elbo": exact(elbo), "iwae": exact(iwae)}


@pytest.mark.parametrize("rule", PATH_RULES)
@pytest.mark.parametrize("latent", LATENTS)
def test_rules_are_unbiased(latent, rule, gradients):
    right, _, exact = gradients[latent]
    assert_unbiased(right[rule], exact[PATH_RULES[rule][1].name])


@pytest.mark.parametrize("rule", ["pathwise", "sticking_the_landing", "score"])
@pytest.mark.parametrize("latent", LATENTS)
def test_unbiasedness_check_catches_a_missing_log_det(latent, rule, gradients):
    _, wrong, exact = gradients[latent]
    with pytest.raises(AssertionError, match="biased.*loc"):
        assert_unbiased(wrong[rule], exact["elbo"])


def logit_normal(z, low, high):
    """Log density at z of a number whose log-odds between two ends are Normal(0.3, 0.6^2)."""
    share = (z - low) / (high - low)
    slope = np.log(share * (1.0 - share) * (high - low))
    return stats.norm(0.3, 0.6).logpdf(special.logit(share)) - slope


SHARES = np.linspace(0.02, 0.98, 13)
KNOWN = {
    "log_normal": (
        supports.positive(1),
        5.0 * SHARES,
        stats.lognorm(0.6, scale=np.exp(0.3)).logpdf,
    ),
    "logit_normal": (supports.interval(0.0, 1.0, 1), SHARES, lambda z: logit_normal(z, 0.0, 1.0)),
    "between_ends": (
        supports.interval(2.0, 5.0, 1),
        2.0 + 3.0 * SHARES,
        lambda z: logit_normal(z, 2.0, 5.0),
    ),
    "two_shares": (supports.simplex(2), SHARES, lambda z: logit_normal(z, 0.0, 1.0)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_density_is_the_known_one(name, x64):
    support, points, known = KNOWN[name]
    family = families.over(support, families.diag_normal)
    lam = {"loc": jnp.array([0.3]), "log_scale": jnp.array([np.log(0.6)])}
    z = np.stack([points, 1.0 - points], axis=1) if name == "two_shares" else points[:, None]
    np.testing.assert_allclose(families.log_probs(family, lam, z), known(points), rtol=1e-10)


def legendre(low, high, num):
    """Gauss-Legendre points on an interval."""
    points, weights = np.polynomial.legendre.leggauss(num)
    half = 0.5 * (high - low)
    return Grid((low + half * (points + 1.0))[:, None], half * weights)


def pairs(first, second):
    """The product of two grids: the coordinates side by side."""
    i, j = np.divmod(np.arange(len(first.z) * len(second.z)), len(second.z))
    z = np.concatenate([first.z[i], second.z[j]], axis=1)
    return Grid(z, first.measure[i] * second.measure[j])


def ordered_pairs():
    grid = pairs(legendre(-6.0, 6.0, 80), half_line(0.1, low=-2.0))
    return Grid(np.cumsum(grid.z, axis=1), grid.measure)


def correlations():
    """Of three variables: the first column's entry, then a disc in polar coordinates, the rows of
    unit length.
    """
    turn = Grid(np.linspace(0.0, 2.0 * np.pi, 48, endpoint=False)[:, None], np.full(48, np.pi / 24))
    grid = pairs(legendre(-1.0, 1.0, 40), pairs(legendre(0.0, 1.0, 50), turn))
    first, radius, angle = grid.z.T
    z = np.zeros((len(first), 3, 3))
    z[:, 0, 0], z[:, 1, 0], z[:, 1, 1] = 1.0, first, np.sqrt(1.0 - first**2)
    z[:, 2, 0], z[:, 2, 1] = radius * np.cos(angle), radius * np.sin(angle)
    z[:, 2, 2] = np.sqrt(1.0 - radius**2)
    return Grid(z, grid.measure * radius)


GRIDS = {
    "positive": (supports.positive(2), half_line(0.1).power(2)),
    "interval": (supports.interval(2.0, 5.0, 1), legendre(2.0, 5.0, 200)),
    "unit_interval": (supports.interval(0.0, 1.0, 1), unit_interval(0.1, 15.0)),
    "ordered": (supports.ordered(2), ordered_pairs()),
    "simplex": (supports.simplex(3), unit_simplex(3, 0.2, 12.0)),
    "correlation_cholesky": (supports.correlation_cholesky(3), correlations()),
}


def some_lam(family, scale=0.6):
    """Means and lower triangle random, standard deviations `scale`."""
    rng = np.random.default_rng(3)
    lam = jax.tree.map(
        lambda leaf: rng.normal(0.0, 0.3, leaf.shape), family.init(jax.random.key(0))
    )
    return lam | {"log_scale": np.full(lam["loc"].shape, np.log(scale))}


@pytest.mark.parametrize("name", GRIDS)
def test_mass_is_one(name, x64):
    support, grid = GRIDS[name]
    family = families.over(support, families.full_normal)
    lam = some_lam(family, 0.4)
    log_q = jax.jit(lambda z: families.log_probs(family, lam, z))(grid.z)
    np.testing.assert_allclose(np.vdot(grid.measure, np.exp(log_q)), 1.0, rtol=1e-5)


HIERARCHY = {"tau": supports.positive(), "mu": supports.real(8)}


def test_over_a_dict(x64):
    """One normal over all of it; z as the supports are; log q is log_prob; the noise comes back."""
    family = families.over(HIERARCHY, families.full_normal)
    assert family.name == "transformed(full_normal(9), {mu: real(8), tau: positive()})"
    assert family.support == HIERARCHY
    like = families.z_like(family)
    assert like["mu"].shape == (8,) and like["tau"].shape == ()
    assert families.lam_like(family)["lower"].shape == (9, 9)
    lam, noise = some_lam(family), family.noise(jax.random.key(0), 5)

    def one(noise):
        z, log_q = family.transport(lam, noise)
        return log_q, family.log_prob(lam, z), families.need(family, families.Inverse).noise(lam, z)

    log_q, log_prob, again = jax.jit(jax.vmap(one))(noise)
    np.testing.assert_allclose(log_q, log_prob, rtol=1e-10)
    np.testing.assert_allclose(again, noise, rtol=1e-9, atol=1e-9)


def test_over_real_is_the_family_itself():
    family = families.over(supports.real(3), families.full_normal)
    assert family.name == "full_normal(3)" and family.traits.get(families.Entropy) is not None


def test_traits(x64):
    """What holds for u and z alike stays; what is another number for z does not."""
    base = families.full_normal(9)
    family = families.transformed(base, bijectors.onto(HIERARCHY))
    for kind in (families.Natural, families.UniformNoise):
        assert family.traits.get(kind) is base.traits.get(kind)
    lams = some_lam(base), base.init(jax.random.key(1))
    ours, bases = (families.need(f, families.Kl).value(*lams) for f in (family, base))
    assert ours == bases > 0.0
    for kind in (families.Density, families.Reparameterized, families.Inverse):
        assert family.traits.get(kind) is not None
    for kind in (families.Entropy, families.Moments, families.NormalMoments):
        assert family.traits.get(kind) is None
    student = families.over(supports.positive(2), families.student_t)
    assert student.traits.get(families.Kl) is None is student.traits.get(families.Inverse)
    assert student.traits.get(families.Reparameterized) is not None
    with pytest.raises(ValueError, match="no known closed form"):
        families.mean(family, base.init(jax.random.key(0)))
    with pytest.raises(ValueError, match="no closed-form entropy"):
        rules.closed_form_entropy(rules.pathwise()).check(family, elbo, 1, None)


def test_density_alone_is_not_made_up():
    """A base family that knows its density at its own draws only stays so."""
    base = families.diag_normal(2)
    flow = families.family(
        "flow(2)",
        init=base.init,
        support=base.support,
        noise=base.noise,
        transport=base.transport,
        traits=[families.Reparameterized()],
    )
    family = families.transformed(flow, bijectors.onto(supports.positive(2)))
    assert family.traits.get(families.Density) is None
    rules.pathwise().check(family, elbo, 1, None)
    with pytest.raises(ValueError, match="no Density trait"):
        rules.score().check(family, elbo, 2, None)


def test_kl_is_that_of_z(x64):
    """By quadrature in z; and closed_form_kl takes a prior through the same map, no other."""
    support, grid = GRIDS["simplex"]
    family = families.over(support, families.full_normal)
    lam, lam2 = some_lam(family), some_lam(family, 0.9)

    def log_ratio(z):
        log_q = families.log_probs(family, lam, z)
        return jnp.exp(log_q) * (log_q - families.log_probs(family, lam2, z))

    exact = np.vdot(grid.measure, jax.jit(log_ratio)(grid.z))
    kl = families.need(family, families.Kl).value(lam, lam2)
    np.testing.assert_allclose(kl, exact, rtol=1e-5)
    rule = rules.closed_form_kl(rules.pathwise())
    rule.check(family, elbo, 1, family)
    other = families.over(supports.positive(2), families.full_normal)
    with pytest.raises(ValueError, match="another family"):
        rule.check(family, elbo, 1, other)


def test_float32_at_the_edge_of_every_support():
    """Own draws far out have a finite density and finite derivatives, whatever z can still tell."""
    tree = {
        "positive": supports.positive(2),
        "interval": supports.interval(2.0, 5.0, 2),
        "ordered": supports.ordered(4),
        "simplex": supports.simplex(4),
        "correlation_cholesky": supports.correlation_cholesky(3),
    }
    family = families.over(tree, families.diag_normal)
    size = families.lam_like(family)["loc"].shape[0]
    signs = np.resize([1.0, -1.0, -1.0], size)

    def one(distance):
        lam = {"loc": distance * signs, "log_scale": jnp.zeros(size)}

        def density(lam):
            z, log_q = family.transport(lam, family.noise(jax.random.key(0), 1)[0])
            return family.log_prob(lam, z), log_q

        return jax.value_and_grad(density, has_aux=True)(lam)

    (log_prob, log_q), slope = jax.jit(jax.vmap(one))(jnp.array([3.0, 30.0, 300.0]))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((log_prob, log_q, slope)))
    np.testing.assert_allclose(log_prob[0], log_q[0], rtol=1e-3)


@pytest.mark.parametrize(
    "base",
    [families.diag_normal(2), families.gamma(3), families.product(z=families.diag_normal(3))],
    ids=lambda base: base.name,
)
def test_base_off_the_map_is_refused(base):
    with pytest.raises(ValueError, match=r"starts from real\(3\).*families.full_normal\(3\)"):
        families.transformed(base, bijectors.onto(supports.positive(3)))


def test_support_out_of_reach_is_refused():
    with pytest.raises(ValueError, match="separate points"):
        families.over({"mu": supports.real(2), "c": supports.one_hot(3)}, families.diag_normal)
