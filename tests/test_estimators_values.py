"""Values and gradients of estimators against formulas written out by hand; edges; splits; one
estimate behind every view.
"""

import cases
import exact as exact_bounds
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from checks import assert_close, assert_same_bits, assert_unbiased, compiled
from measured import ONE_EACH, batch_of, draws_of, exact_of
from registry import OBJECTIVES

import vijax as vj
from vijax.rows import gather
from vijax.testing.estimators import without_control


def test_eager_equals_compiled(x64):
    case = ONE_EACH[problems.binary]
    given = (jax.random.key(7), *cases.build(case)[1:], batch_of(case))
    estimate = cases.build(case).estimator.estimate
    assert_close(estimate(*given), jax.jit(estimate)(*given), tolerance=1e-12)


SIX = [cases.P, cases.DREG, cases.PLAIN, cases.LOO, cases.MEAN, cases.NVIL]
VALUES = {
    (problems.normal, "elbo"): SIX,
    (problems.normal, "iwae"): SIX,
    (problems.binary, "renyi(2)"): [cases.PLAIN, cases.LOO, cases.MEAN, cases.NVIL],
    (problems.two_layers, "iwae"): [cases.P, cases.DREG, cases.LOO],
}


@pytest.mark.parametrize(
    "make, objective", VALUES, ids=lambda part: getattr(part, "__name__", part)
)
def test_value_is_the_objective_of_the_same_samples_whatever_the_rule(make, objective, x64):
    problem, objective_of, num_samples = cases.cached_problem(make), OBJECTIVES[objective], 3
    batch, key, exact = problems.batch_of(problem), jax.random.key(11), None
    for rule in VALUES[make, objective]:
        built = cases.build(cases.Case(make, rule, objective_of, num_samples))
        if exact is None:  # theta and phi are the same with every rule
            exact = loss_by_hand(problem, objective_of, num_samples, key, built.params, batch)
        loss = compiled(
            lambda *given, e=built.estimator: e.estimate(*given)[0].loss, key, *built[1:], batch
        )
        assert_close(loss, exact, tolerance=1e-13)


def loss_by_hand(problem, objective, num_samples, key, params, batch):
    """Datum by datum, sample by sample, from `transport` and `log_prob` alone."""
    guide, family, total = problem.guide, problem.guide.families["z"], 0.0
    for index, x in zip(batch.index, batch.x, strict=True):
        lam = guide.at(gather(guide.is_table(params.phi), params.phi, index), x)
        noise = family.noise(jax.random.split(jax.random.fold_in(key, index))[0], num_samples)
        zs = [
            family.transport(lam, jax.tree.map(lambda leaf, k=k: leaf[k], noise))[0]
            for k in range(num_samples)
        ]
        log_w = [
            problem.model.log_local(params.theta, None, z, x) - family.log_prob(lam, z) for z in zs
        ]
        total += objective.value(jnp.stack(log_w)) * problems.N / len(batch.index)
    return -total


@pytest.mark.parametrize(
    "theta, phi", [(cases.DREG, cases.LOO), (cases.LOO, cases.P)], ids=["path", "score"]
)
def test_split_takes_each_gradient_from_its_own_estimator(theta, phi, x64):
    """Identity 31: the theta gradient does not depend on the phi estimator given the same z, nor
    phi's on theta's.
    """
    batch = problems.batch_of(cases.cached_problem(problems.normal))
    of_theta, of_phi = (
        cases.build(cases.Case(problems.normal, rule, vj.objectives.iwae, 2))
        for rule in (theta, phi)
    )
    both, params = vj.split(theta=of_theta.estimator, phi=of_phi.estimator), of_theta.params
    joint = params._replace(control={"theta": params.control, "phi": of_phi.params.control})
    state = both.init(jax.random.key(0), joint)
    result = jax.jit(both.estimate)(jax.random.key(4), joint, state, batch)[0]
    ours = jax.jit(of_theta.estimator.estimate)(jax.random.key(4), params, of_theta.state, batch)[0]
    theirs = jax.jit(of_phi.estimator.estimate)(
        jax.random.key(4), of_phi.params, of_phi.state, batch
    )[0]
    assert_close(result.loss, ours.loss, tolerance=1e-14)
    assert_close(result.grads.theta, ours.grads.theta, tolerance=1e-14)
    assert_close(result.grads.phi, theirs.grads.phi, tolerance=1e-14)
    assert_close(ours.grads.theta, theirs.grads.theta, tolerance=1e-13)  # same z, same theta rule
    assert np.abs(ours.grads.phi["z"]["loc"] - theirs.grads.phi["z"]["loc"]).max() > 1e-3


def test_the_oracle_has_converged(x64):
    """Gauss-Hermite at two orders; and `log p(x)` of the conjugate normal by K = 2 bounds from
    below.
    """
    for case in (
        cases.Case(problems.full, cases.DREG, vj.objectives.iwae, 2),
        cases.Case(problems.normal, cases.P, cases.HALF, 2),
    ):
        problem, params = cases.cached_problem(case.problem), cases.build(case).params
        batch = problems.batch_of(problem)
        fine = problem._replace(nodes=problem.nodes + 4)
        grads = [
            compiled(
                jax.grad(exact_bounds.exact_loss(p, case.objective, 2)),
                params._replace(control=()),
                batch,
            )
            for p in (problem, fine)
        ]
        assert_close(*grads, tolerance=1e-3)


@pytest.mark.parametrize("logit", [0.0, 12.0, -12.0])
@pytest.mark.parametrize("rule", [cases.ENUM, cases.PLAIN, cases.LOO], ids=lambda rule: rule.name)
def test_edge_logits(rule, logit, x64):
    """Exactly 0 (tied) and nearly deterministic: every draw finite, the mean right."""
    case = cases.Case(problems.binary, rule, num_samples=2)
    estimator, params, state = cases.build(case)
    phi = {"z": {"matrix": jnp.zeros((3, 1)), "bias": jnp.full(3, logit)}}
    built = cases.Built(estimator, params._replace(phi=phi), state)
    draws, exact = (
        without_control(draws_of(case, built, num_draws=4000)[0]),
        exact_of(case, built.params),
    )
    if logit == 0.0 or rule is cases.ENUM:
        assert_unbiased(draws, exact)
    else:  # a flip has probability 6e-6: no draw need see one, so only its size can be checked
        assert_close(jax.tree.map(lambda leaf: leaf.mean(axis=0), draws), exact, tolerance=1e-3)


def test_edge_sizes(x64):
    """One datum, one sample; batch = data; the last, shorter batch; and no batch at all, which is
    refused.
    """
    case = cases.Case(problems.normal, cases.P)
    estimator, params, state = cases.build(case)
    problem = cases.cached_problem(problems.normal)
    for rows in [(1,), (0, 1, 2), (2, 1)]:
        given = jax.random.key(0), params, state, problems.batch_of(problem, rows)
        result, _ = compiled(estimator.estimate, *given)
        idle = [row for row in range(problems.N) if row not in rows]
        assert np.all(np.isfinite(result.loss)) and np.all(
            result.grads.phi["z"]["loc"][np.array(idle, int)] == 0.0
        )
        assert np.all(result.grads.phi["z"]["loc"][np.array(rows)] != 0.0)
    with pytest.raises(ValueError, match="the batch is empty"):
        estimator.estimate(jax.random.key(0), params, state, problems.batch_of(problem, ()))
    uneven = problems.batch_of(problem)._replace(index=jnp.arange(3))
    with pytest.raises(ValueError, match="differ in their leading axis"):
        estimator.estimate(jax.random.key(0), params, state, uneven)


def test_there_is_one_estimate_behind_every_view():
    """Replaced, it is what fit follows (here with a table, of which a step sees rows alone), what
    the report measures, and what it measures in q's own parameters.
    """
    case = cases.Case(problems.normal, cases.P)
    estimator, params, state = cases.build(case)

    def nothing(*given):
        seen, after = estimator.estimate(*given)
        return jax.tree.map(jnp.zeros_like, seen), after

    still = estimator._replace(estimate=nothing)
    key, x = jax.random.key(0), jnp.asarray(problems.NORMAL_X, jnp.float32)
    for chosen, moves in ((still, False), (estimator, True)):
        algorithm = vj.descent(chosen, optax.sgd(0.1))
        fitted = vj.fit(key, algorithm, params, x, num_steps=4, batch_size=2, record_every=2)
        if not moves:
            assert_same_bits(fitted.params, params)
            assert not np.any(fitted.history.loss)
        for place in (params, vj.in_lam(chosen, params, batch_of(case))):
            report = vj.lab.gradient_report(key, chosen, place, state, batch_of(case), num_draws=4)
            seen = jax.tree.leaves((report.mean.phi, report.variance.phi))
            assert all(np.any(leaf) == moves for leaf in seen)
    assert np.all(fitted.params.phi["z"]["loc"] != params.phi["z"]["loc"])
