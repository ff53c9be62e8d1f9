"""Comparisons rank biased estimators apart: against a reference, or without one by each other's
means.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax import lab
from vijax.lab import bias

BATCH = vj.Batch(jnp.zeros(1), jnp.zeros(1, jnp.int32))
PARAMS = vj.Params((), {"a": jnp.zeros(2), "b": jnp.zeros(())}, ())
MEAN = {"a": jnp.array([1.0, -0.5]), "b": jnp.array(0.2)}


def made(spread, share=1.0, number=0):
    """Normal draws about a share of the mean; estimators of one number have common noise."""

    def estimate(key, params, state, batch):
        noise = jax.random.normal(jax.random.fold_in(key, number), (3,))
        away = {"a": spread * noise[:2], "b": spread * noise[2]}
        grads = jax.tree.map(lambda mean, noise: share * (mean + noise), MEAN, away)
        return vj.Estimate(jnp.zeros(()), vj.Params((), grads, ()), ()), state

    return vj.estimator_from(estimate, lambda key: PARAMS, num_data=1)


GOOD, NOISY, MIRRORED = made(0.5), made(2.0, number=1), made(-0.5)
SHRUNK = made(0.5, share=0.5)
EXACT, ZERO = made(0.0), made(0.5, share=0.0)


def compare(estimators, **given):
    given = {"num_draws": 400, "rounds": 0} | given
    return lab.compare(jax.random.key(0), estimators, PARAMS, BATCH, **given)


def column(result, name):
    return dict(zip(result.estimator.tolist(), getattr(result, name).tolist(), strict=True))


def test_a_reference_ranks_the_biased_behind_all_others():
    exact = lab.Reference(PARAMS._replace(phi=MEAN))
    result = compare({"shrunk": SHRUNK, "good": GOOD, "noisy": NOISY}, reference=exact)
    assert column(result, "status") == {
        "shrunk": "biased",
        "good": "no bias seen",
        "noisy": "no bias seen",
    }
    assert column(result, "rank") == {"good": 1, "noisy": 2, "shrunk": 3}
    assert result.variance[0] < result.variance[1]  # which alone would have put it first


def test_without_a_reference_estimators_are_tested_against_each_other():
    four = {"shrunk": SHRUNK, "good": GOOD, "noisy": NOISY, "mirrored": MIRRORED}
    result = compare(four)
    assert column(result, "status")["shrunk"] == "disagrees"
    assert column(result, "rank") == {"good": 1, "mirrored": 1, "noisy": 3, "shrunk": 4}
    assert column(result, "p_value")["shrunk"] < 1e-6
    # Of two that disagree nobody knows which one is right, unless one of them makes no claim
    two = {"shrunk": SHRUNK, "good": GOOD}
    undecided, decided = compare(two), compare(two, unbiased=["good"])
    assert undecided.status.tolist() == ["disagrees"] * 2 and undecided.rank.tolist() == [1, 1]
    assert column(decided, "status") == {"shrunk": "disagrees", "good": "untested"}
    assert column(decided, "rank") == {"good": 1, "shrunk": 2}
    alone = compare({"good": GOOD})
    assert alone.status.tolist() == ["untested"] and np.isnan(alone.p_value[0])
    with pytest.raises(ValueError, match="unbiased has ..typo"):
        compare(two, unbiased=["typo"])


def test_along_a_path_every_point_is_tested():
    path = {0: PARAMS, 5: PARAMS}
    three = {"shrunk": SHRUNK, "good": GOOD, "noisy": NOISY}
    result = lab.along(jax.random.key(1), three, path, BATCH, num_draws=400)
    assert np.all((result.status == "disagrees") == (result.estimator == "shrunk"))
    assert np.all(result.rank[result.estimator == "good"] == 1)


def test_a_zero_gradient_is_no_efficient_one_but_an_exact_one_is():
    result = compare({"good": GOOD, "zero": ZERO, "exact": EXACT}, rounds=6)
    assert column(result, "status") == {
        "good": "no bias seen",
        "zero": "zero gradient",
        "exact": "no bias seen",
    }
    assert column(result, "rank") == {"exact": 1, "good": 2, "zero": 3}
    for name in ("efficiency", "efficiency_low", "efficiency_high", "efficiency_by_count"):
        assert np.isnan(column(result, name)["zero"])
    assert column(result, "efficiency")["exact"] > 1e6
    assert np.all(np.isnan(compare({"zero": ZERO, "good": GOOD}, rounds=6).efficiency))


def test_the_tests_of_pairs_keep_their_level_however_draws_depend_on_each_other():
    """5 estimators of 10 elements, common, opposite and independent noise: the joint level is
    0.1 %, and of 500 comparisons no more are wrong than that allows; a bias of ten standard
    errors is found in all.
    """
    random, wrong, found, num = np.random.default_rng(0), 0, 0, 500
    for _ in range(num):
        noise = random.normal(size=(3, 10))
        values = [noise[0], -noise[0], noise[0], noise[1], noise[2]]
        means = [bias.Mean(0.1 * value, np.full(10, 0.1)) for value in values]
        _, p_value = bias.pairs(means, 1000)
        claims = np.ones(5, bool)
        wrong += np.any(bias.against_each_other(p_value, claims) != bias.SOUND)
        if found < 20:
            means[3].value[4] += 2.0
            status = bias.against_each_other(bias.pairs(means, 1000)[1], claims)
            found += status.tolist() == [bias.SOUND] * 3 + [bias.DISAGREES, bias.SOUND]
    assert wrong / num <= bias.LEVEL + 4.0 * (bias.LEVEL / num) ** 0.5
    assert found == 20


def test_a_printed_report_shows_every_column():
    state = GOOD.init(jax.random.key(0), PARAMS)
    report = lab.gradient_report(jax.random.key(0), GOOD, PARAMS, state, BATCH, num_draws=20)
    for table in (lab.to_dataframe(report), lab.to_dataframe(compare({"good": GOOD}))):
        for printed in (repr(table), table._repr_html_()):
            assert "..." not in printed
            assert all(name in printed for name in ("variance", "snr", "variance_error"))
