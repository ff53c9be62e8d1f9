"""Every case of the table through the invariants of an estimator; every check with a planted fault
that it must catch.
"""

import cases
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
)
from measured import ONE_EACH, batch_of, calls_of, draws_of, exact_of, without_control
from registry import CASES

TABLE = [
    pytest.param(case, marks=[pytest.mark.slow] if case.slow else [], id=case.name)
    for case in CASES
]
AGREEMENT = [
    pytest.param(case, marks=[] if case in ONE_EACH.values() else [pytest.mark.slow], id=case.name)
    for case in CASES
    if case.batch != cases.ALL
]


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
        draws, _ = draws_of(case, built)
        assert_close(jax.tree.map(lambda leaf: leaf[0], draws), seen.pair, tolerance=1e-12)
        batch, key = batch_of(case, cases.ALL), jax.random.key(7)
        large = compiled(built.estimator.estimate, key, *built[1:], batch)
    built, batch = cases.build(case), batch_of(case, cases.ALL)
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
