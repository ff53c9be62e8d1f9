"""Whatever would be silently wrong is refused when the estimator is built; the message says what,
why, what instead.
"""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from checks import assert_unbiased
from refused import (
    BITS,
    DREG,
    ENUM,
    NORMAL,
    PATH,
    PRIOR_NORMAL,
    REFUSED,
    SCORE,
    local,
    moving_support,
)
from registry import CASES, RULES

import vijax as vj
from vijax import families, guides, models, supports
from vijax.families import Reparameterized
from vijax.objectives import elbo, iwae


@pytest.mark.parametrize("name", REFUSED)
def test_refused_when_built(name):
    (model, guide), rules, objective, num_samples, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        vj.estimator(
            model, guide, objective=objective, rules=rules, num_samples=num_samples, num_data=3
        )


def test_every_case_of_the_table_is_built():
    """The checks refuse no more than they should."""
    assert all(cases.build(case).estimator.num_data == problems.N for case in CASES)


@pytest.mark.parametrize("rule", [PATH, DREG, ENUM, SCORE], ids=lambda rule: rule.name)
def test_bare_use_is_checked_too(rule):
    wrong = BITS if rule in (PATH, DREG) else NORMAL
    with pytest.raises(ValueError, match=r"on (bernoulli\(3\)|diag_normal\(2\))"):
        lam = wrong.init(jax.random.key(0))
        vj.expect(jax.random.key(0), wrong, lam, lambda s: jnp.sum(s.z) - s.log_q, rule=rule)


def test_a_non_linear_bound_on_a_global_latent_needs_all_the_data():
    estimator, params, state = cases.build(cases.Case(problems.regression, DREG, iwae, 2))
    problem = cases.cached_problem(problems.regression)
    with pytest.raises(
        ValueError,
        match="minibatch of 2 of 3 data: the objective of a scaled subsample is no bound",
    ):
        estimator.estimate(jax.random.key(0), params, state, problems.batch_of(problem, (0, 1)))
    assert jnp.isfinite(
        estimator.estimate(jax.random.key(0), params, state, problems.batch_of(problem, cases.ALL))[
            0
        ].loss
    )


def test_model_and_guide_must_have_the_same_latents():
    model, guide = local(NORMAL)
    with pytest.raises(
        ValueError, match=r"the model has latents \('z',\), the guide \('w',\). Use guides.shared"
    ):
        vj.estimator(model, guides.shared(NORMAL), rules=PATH, num_data=3)
    with pytest.raises(
        ValueError, match=r"hierarchical\(w=..., z=...\) joins a global guide with a local one"
    ):
        guides.hierarchical(w=guide, z=guide)


@pytest.mark.parametrize(
    "num_data, message",
    [(4, "has 3 rows, but num_data=4"), (0, "num_data=0"), (3.0, "num_data=3.0")],
)
def test_num_data_is_the_size_of_the_whole_data_set(num_data, message):
    with pytest.raises(ValueError, match=message):
        vj.estimator(*local(NORMAL), rules=PATH, num_data=num_data)


def test_num_data_has_no_default():
    with pytest.raises(TypeError, match="num_data"):
        vj.estimator(*local(NORMAL), rules=PATH)


def test_split_needs_one_data_size():
    small, large = (
        vj.estimator(problems.regression().model, guides.shared(NORMAL), rules=PATH, num_data=n)
        for n in (3, 4)
    )
    with pytest.raises(ValueError, match="num_data differs, 3 for theta and 4 for phi"):
        vj.split(theta=small, phi=large)


def test_a_log_prior_must_be_a_scalar():
    model = models.bayes_model(lambda theta, w: -(w**2), lambda theta, w, x: jnp.zeros(()))
    with pytest.raises(ValueError, match=r"log_prior returned shape \(2,\).* sum over"):
        vj.estimator(model, guides.shared(NORMAL), rules=PATH, num_data=3)


def test_a_prior_on_fewer_values_than_the_guide_is_refused():
    """Where the prior has no density the bound is minus infinity; the other way round it is not."""
    positive = vj.Prior(families.gamma(2), lambda theta: families.gamma(2).init(jax.random.key(0)))
    with pytest.raises(
        ValueError, match=r"lives on real\(2\), .*gamma\(2\) on positive\(2\).* Give the guide"
    ):
        vj.estimator(*local(NORMAL, positive), rules=PATH, num_data=3)
    made = vj.estimator(*local(families.gamma(2), PRIOR_NORMAL), rules=PATH, num_data=3)
    assert made.num_data == 3


def test_a_hand_made_family_must_state_its_support():
    with pytest.raises(TypeError, match="support"):
        families.family("f", init=lambda key: (), sample=lambda key, lam: 0.0)  # type: ignore


@pytest.mark.parametrize("name", RULES)
def test_no_rule_takes_a_support_that_moves(name):
    family = moving_support()
    with pytest.raises(ValueError, match=r"support moving\(\) moves .*Use a family on a fixed"):
        RULES[name](family).check(family, elbo, 4, family)
    blocks = families.product(fixed=NORMAL, moving=family)
    with pytest.raises(ValueError, match=r"moving\(\)"):
        RULES[name](blocks).check(blocks, elbo, 4, blocks)


def planar() -> vj.Family:
    """z = e + amount tanh(slope e + shift): its inverse has no formula, hence no log_prob."""

    def transport(lam, noise):
        inner = jnp.tanh(lam["slope"] * noise + lam["shift"])
        stretch = 1.0 + lam["amount"] * lam["slope"] * (1.0 - jnp.square(inner))
        log_q = vj.densities.standard_normal(noise) - jnp.log(jnp.abs(stretch))
        return noise + lam["amount"] * inner, log_q[0]

    return families.family(
        "planar",
        init=lambda key: {name: jnp.full(1, 0.6) for name in ("amount", "slope", "shift")},
        noise=lambda key, num_samples: jax.random.normal(key, (num_samples, 1)),
        transport=transport,
        log_prob=None,
        support=supports.real(1),
        traits=[Reparameterized()],
    )


@pytest.mark.parametrize("rule", [DREG, SCORE], ids=lambda rule: rule.name)
def test_a_density_known_at_draws_alone_is_refused_where_it_is_evaluated(rule):
    with pytest.raises(ValueError, match=r"on planar: its density is known only at its own draws"):
        vj.estimator(*local(planar()), rules=rule, num_samples=2, num_data=3)


def test_pathwise_is_unbiased_with_a_density_known_at_draws_alone(x64):
    """Against quadrature over the noise, log q by the derivative of the map."""
    family = planar()

    def log_joint(z):
        return jnp.sum(vj.densities.normal(z, 0.8, -0.3))

    model = models.latent_model(lambda key: (), lambda theta, z, x: log_joint(z))
    guide = guides.per_datapoint(family, 1)
    made = vj.estimator(model, guide, rules=PATH, num_data=1)
    params = made.init_params(jax.random.key(0))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def bound(lam):
        def at(node):
            def moved(e):
                return family.transport(lam, e[None])[0][0]

            log_q = vj.densities.standard_normal(node) - jnp.log(jnp.abs(jax.grad(moved)(node)))
            return log_joint(moved(node)) - log_q

        return jnp.vdot(weights / weights.sum(), jax.vmap(at)(jnp.asarray(nodes)))

    batch = vj.Batch(jnp.zeros((1,)), jnp.arange(1))
    draw = jax.jit(jax.vmap(lambda key: made.estimate(key, params, {"z": ()}, batch)[0]))
    seen = draw(jax.random.split(jax.random.key(1), 10_000))
    row = jax.tree.map(lambda leaf: leaf[0], params.phi["z"])
    value, slope = jax.value_and_grad(lambda lam: -bound(lam))(row)
    sampled = jax.tree.map(lambda leaf: leaf[:, 0], seen.grads.phi["z"])
    assert_unbiased((seen.loss, sampled), (value, slope))
    with pytest.raises(AssertionError, match="biased"):
        assert_unbiased(sampled, jax.tree.map(lambda leaf: 0.8 * leaf, slope))
