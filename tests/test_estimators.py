"""Every case of the table through the invariants of an estimator; every check with a planted fault
that it must catch.
"""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from checks import assert_close, compiled, float64_on_float32_noise
from measured import NUM_DRAWS, ONE_EACH, batch_of, exact_of
from registry import CASES

from vijax.testing import check_calls, check_gradient

TABLE = [
    pytest.param(case, marks=[pytest.mark.slow] if case.slow else [], id=case.name)
    for case in CASES
]
AGREEMENT = [
    pytest.param(case, marks=[] if case in ONE_EACH.values() else [pytest.mark.slow], id=case.name)
    for case in CASES
    if case.batch != cases.ALL
]


def check_draws(case, built, estimator=None):
    """Of the case's estimator, or of another with the same parameters."""
    estimator = built.estimator if estimator is None else estimator
    settings = {"key": jax.random.key(5), "state": built.state, "num_draws": NUM_DRAWS}
    exact = exact_of(case, built.params)
    check_gradient(estimator, built.params, batch_of(case), exact, **settings)


def check_whole(case, built, estimator=None):
    estimator = built.estimator if estimator is None else estimator
    whole, key = batch_of(case, cases.ALL), jax.random.key(5)
    check_calls(estimator, built.params, whole, key=key, state=built.state, eager=False)


@pytest.mark.parametrize("case", TABLE)
def test_value_and_gradient_are_unbiased_and_noise_follows_the_datum(case):
    with float64_on_float32_noise():
        check_draws(case, cases.build(case))


@pytest.mark.parametrize("case", AGREEMENT)
def test_partition_determinism_vmap_and_dtype(case):
    """Minibatches average to the full batch, equal or unequal; same key, same bits; vmap = loop;
    float32 ~ float64.
    """
    with float64_on_float32_noise():
        built = cases.build(case)
        check_whole(case, built)
        batch, key = batch_of(case, cases.ALL), jax.random.key(7)
        large = compiled(built.estimator.estimate, key, *built[1:], batch)
    built, batch = cases.build(case), batch_of(case, cases.ALL)
    small = compiled(built.estimator.estimate, key, *built[1:], batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(small)} == {np.dtype("float32")}
    assert_close(small, large, tolerance=2e-5)


@pytest.mark.parametrize("name", cases.FAULTS)
def test_unbiasedness_catches(name):
    case, fault = cases.FAULTS[name]
    with float64_on_float32_noise(), pytest.raises(AssertionError, match=r"biased.*phi"):
        check_draws(case, cases.build(case, rules=fault))


def test_a_missing_scale_and_noise_keyed_by_slot_are_caught():
    case = cases.Case(problems.binary, cases.LOO, num_samples=2)
    with float64_on_float32_noise():
        built = cases.build(case)
        estimator = built.estimator

        def unscaled(key, params, state, batch):
            result, state = estimator.estimate(key, params, state, batch)
            scale = batch.index.shape[0] / problems.N
            return jax.tree.map(lambda leaf: leaf * scale, result), state

        def by_slot(key, params, state, batch):
            slots = jnp.arange(batch.index.shape[0])
            return estimator.estimate(key, params, state, batch._replace(index=slots))

        with pytest.raises(AssertionError, match=r"theta.*phi"):
            check_draws(case, built, estimator._replace(estimate=unscaled))
        for estimate in (unscaled, by_slot):
            with pytest.raises(AssertionError, match="do not average.*differs by"):
                check_whole(case, built, estimator._replace(estimate=estimate))
