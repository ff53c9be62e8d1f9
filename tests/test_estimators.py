"""Every case of the table through the invariants of an estimator; every check with a planted fault
that it must catch.
"""

import functools

import cases
import exact as exact_bounds
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from checks import (
    assert_close,
    assert_partition,
    assert_same_bits,
    assert_unbiased,
    compiled,
    float64_on_float32_noise,
    gradient_draws,
    single_calls,
)

import vijax as vj

NUM_DRAWS = 20_000
TABLE = [
    pytest.param(case, marks=[pytest.mark.slow] if case.slow else [], id=case.name)
    for case in cases.CASES
]
# The first line of every problem
ONE_EACH = {case.problem: case for case in reversed(cases.CASES) if case.batch != cases.ALL}
AGREEMENT = [
    pytest.param(case, marks=[] if case in ONE_EACH.values() else [pytest.mark.slow], id=case.name)
    for case in cases.CASES
    if case.batch != cases.ALL
]


@functools.cache
def exact_answer(make, objective, num_samples):
    """The exact (loss, gradient) of a problem; shared by all rules that estimate it."""
    problem = cases.cached_problem(make)
    objective = dict(objective) if isinstance(objective, tuple) else objective
    return jax.value_and_grad(exact_bounds.exact_loss(problem, objective, num_samples))


def exact_of(case, params):
    objective = (
        tuple(case.objective.items()) if isinstance(case.objective, dict) else case.objective
    )
    only = {objective} if callable(objective) else {part for _, part in objective}
    samples = 1 if only == {vj.objectives.elbo} else case.inner_samples
    batch = problems.batch_of(cases.cached_problem(case.problem), case.batch)
    answer = exact_answer(case.problem, objective, samples)
    loss, grads = compiled(answer, params._replace(control=()), batch)
    return vj.Estimate(loss, grads, ())


def draws_of(case, built, num_draws=NUM_DRAWS):
    batch = problems.batch_of(cases.cached_problem(case.problem), case.batch)
    return gradient_draws(jax.random.key(5), *built, batch, num_draws=num_draws)


def calls_of(case, built):
    pair, full = (
        problems.batch_of(cases.cached_problem(case.problem), rows)
        for rows in (problems.ROWS, cases.ALL)
    )
    return single_calls(jax.random.split(jax.random.key(5), NUM_DRAWS)[0], *built, pair, full)


def without_control(estimate):
    """The gradient of a learned baseline is no part of the bound's gradient:
    tests/test_baselines.py has it.
    """
    return estimate._replace(grads=estimate.grads._replace(control=()))


@pytest.mark.parametrize("case", TABLE)
def test_value_and_gradient_are_unbiased_and_noise_follows_the_datum(case):
    with float64_on_float32_noise():
        built = cases.build(case)
        draws, reversed_rows = draws_of(case, built)
        assert_unbiased(without_control(draws), exact_of(case, built.params))
        assert_close(reversed_rows, jax.tree.map(lambda leaf: leaf[0], draws), tolerance=1e-12)


@pytest.mark.parametrize("case", AGREEMENT)
def test_partition_determinism_vmap_and_dtype(case):
    """Minibatches average to the full batch, equal or unequal; same key, same bits; vmap = loop;
    float32 ~ float64.
    """
    with float64_on_float32_noise():
        built = cases.build(case)
        seen = calls_of(case, built)
        assert_same_bits(seen.whole, seen.again)
        assert_partition(seen.whole, seen.singles, [1, 1, 1])
        assert_partition(seen.whole, [seen.singles[1], seen.pair], [1, 2])  # rows (1) and (2, 0)
        draws, _ = draws_of(case, built, num_draws=NUM_DRAWS)
        assert_close(jax.tree.map(lambda leaf: leaf[0], draws), seen.pair, tolerance=1e-12)
        batch, key = (
            problems.batch_of(cases.cached_problem(case.problem), cases.ALL),
            jax.random.key(7),
        )
        large = compiled(built.estimator.estimate, key, *built[1:], batch)
    built, batch = (
        cases.build(case),
        problems.batch_of(cases.cached_problem(case.problem), cases.ALL),
    )
    small = compiled(built.estimator.estimate, key, *built[1:], batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(small)} == {np.dtype("float32")}
    assert_close(small, large, tolerance=2e-5)


@pytest.mark.parametrize("name", cases.FAULTS)
def test_unbiasedness_catches(name):
    case, fault = cases.FAULTS[name]
    with float64_on_float32_noise():
        built = cases.build(case, rules=fault)
        draws, exact = draws_of(case, built)[0], exact_of(case, built.params)
        with pytest.raises(AssertionError, match="phi"):
            assert_unbiased(without_control(draws), exact)


def test_a_missing_scale_and_noise_keyed_by_slot_are_caught():
    case = cases.Case(problems.binary, cases.LOO, num_samples=2)
    with float64_on_float32_noise():
        estimator, params, state = cases.build(case)

        def unscaled(key, params, state, batch):
            result, state = estimator.estimate(key, params, state, batch)
            return jax.tree.map(
                lambda leaf: leaf * batch.index.shape[0] / problems.N, result
            ), state

        def by_slot(key, params, state, batch):
            return estimator.estimate(
                key, params, state, batch._replace(index=jnp.arange(batch.index.shape[0]))
            )

        fault = cases.Built(estimator._replace(estimate=unscaled), params, state)
        with pytest.raises(AssertionError, match=r"theta.*phi"):
            assert_unbiased(without_control(draws_of(case, fault)[0]), exact_of(case, params))
        for estimate in (unscaled, by_slot):
            seen = calls_of(case, cases.Built(estimator._replace(estimate=estimate), params, state))
            with pytest.raises(AssertionError, match="differs by"):
                assert_partition(seen.whole, seen.singles, [1, 1, 1])


def test_eager_equals_compiled(x64):
    case = ONE_EACH[problems.binary]
    given = (
        jax.random.key(7),
        *cases.build(case)[1:],
        problems.batch_of(cases.cached_problem(problems.binary)),
    )
    estimate = cases.build(case).estimator.estimate
    assert_close(estimate(*given), jax.jit(estimate)(*given), tolerance=1e-12)


VALUES = {
    (problems.normal, "elbo"): [
        cases.P,
        cases.DREG,
        cases.PLAIN,
        cases.LOO,
        cases.MEAN,
        cases.NVIL,
    ],
    (problems.normal, "iwae"): [
        cases.P,
        cases.DREG,
        cases.PLAIN,
        cases.LOO,
        cases.MEAN,
        cases.NVIL,
    ],
    (problems.binary, "renyi(2)"): [cases.PLAIN, cases.LOO, cases.MEAN, cases.NVIL],
    (problems.two_layers, "iwae"): [cases.P, cases.DREG, cases.LOO],
}


@pytest.mark.parametrize(
    "make, objective", VALUES, ids=lambda part: getattr(part, "__name__", part)
)
def test_value_is_the_objective_of_the_same_samples_whatever_the_rule(make, objective, x64):
    problem, objective_of, num_samples = cases.cached_problem(make), cases.OBJECTIVES[objective], 3
    batch, key = problems.batch_of(problem), jax.random.key(11)
    for rule in VALUES[make, objective]:
        built = cases.build(cases.Case(make, rule, objective_of, num_samples))
        assert_close(
            built.estimator.estimate(key, *built[1:], batch)[0].loss,
            loss_by_hand(problem, objective_of, num_samples, key, built.params, batch),
            tolerance=1e-13,
        )


def loss_by_hand(problem, objective, num_samples, key, params, batch):
    """Datum by datum, sample by sample, from `transport` and `log_prob` alone."""
    family, total = problem.guide.family_z, 0.0
    for index, x in zip(batch.index, batch.x, strict=True):
        phi = jax.tree.map(
            lambda t, leaf, i=index: leaf[i] if t else leaf,
            problem.guide.tables(params.phi),
            params.phi,
        )
        lam = problem.guide.locate_z(phi, x)
        noise = family.noise(jax.random.split(jax.random.fold_in(key, index))[0], num_samples)
        zs = [
            family.transport(lam, jax.tree.map(lambda leaf, k=k: leaf[k], noise))[0]
            for k in range(num_samples)
        ]
        log_w = [
            problem.model.log_local(params.theta, None, z, x) - family.log_prob(lam, z) for z in zs
        ]
        total += objective(jnp.stack(log_w)) * problems.N / len(batch.index)
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
    assert np.abs(ours.grads.phi["loc"] - theirs.grads.phi["loc"]).max() > 1e-3


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
            jax.grad(exact_bounds.exact_loss(p, case.objective, 2))(
                params._replace(control=()), batch
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
    phi = {"matrix": jnp.zeros((3, 1)), "bias": jnp.full(3, logit)}
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
        result, _ = estimator.estimate(
            jax.random.key(0), params, state, problems.batch_of(problem, rows)
        )
        idle = [row for row in range(problems.N) if row not in rows]
        assert np.all(np.isfinite(result.loss)) and np.all(
            result.grads.phi["loc"][np.array(idle, int)] == 0.0
        )
        assert np.all(result.grads.phi["loc"][np.array(rows)] != 0.0)
    with pytest.raises(ValueError, match="the batch is empty"):
        estimator.estimate(jax.random.key(0), params, state, problems.batch_of(problem, ()))
    uneven = problems.batch_of(problem)._replace(index=jnp.arange(3))
    with pytest.raises(ValueError, match="differ in their leading axis"):
        estimator.estimate(jax.random.key(0), params, state, uneven)
