"""`fit`: compilations are counted, runs resume bit for bit, bad numbers are named."""

import itertools
import logging
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_problems import (
    ADAM,
    DATA,
    GLOBAL,
    KEY,
    LOCAL,
    ROWS,
    SHARED,
    START,
    TABLE,
    N,
    assert_same,
    bad_data,
    global_estimator,
)

import vijax as vj
from vijax import rowwise
from vijax.optimize.loop import step_key


@pytest.fixture
def compilations():
    """The names of the functions compiled so far in the test."""
    names = []

    class Listener(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Compiling "):
                names.append(record.getMessage().split()[1])

    logger, listener = logging.getLogger("jax._src.interpreters.pxla"), Listener()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield names
    logger.removeHandler(listener)
    logger.setLevel(level)
    logger.propagate = propagate


def test_three_compilations_to_the_first_step_and_none_for_the_next_fit(compilations):
    estimator, optimizer = global_estimator(), optax.adam(0.05)
    keys = [jax.random.key(i) for i in range(2)]
    data = [np.asarray(DATA), np.asarray(DATA) + 1.0]
    compilations.clear()
    params = estimator.init_params(keys[0])
    vj.fit(keys[0], vj.descent(estimator, optimizer), params, data[0], num_steps=20)
    assert 1 <= len(compilations) <= 3, compilations
    compilations.clear()
    vj.fit(keys[1], vj.descent(estimator, optimizer), params, data[1], num_steps=70)
    vj.fit(keys[1], vj.descent(estimator, optimizer), params, data[1], num_steps=7)
    assert compilations == []


def test_tables_and_data_on_the_host_compile_nothing_for_the_next_fit(compilations):
    algorithm = vj.descent(LOCAL, ADAM, rows=rowwise.on_host(rowwise.adam(0.05)))
    settings = {"batch_size": 3, "chunk_size": 4}
    for steps in (13, 6):
        compilations.clear()
        result = vj.fit(KEY, algorithm, TABLE, vj.on_host(DATA), num_steps=steps, **settings)
        assert result.params.phi["z"]["loc"].shape == DATA.shape
    assert compilations == []


def test_the_count_catches_a_new_optimizer(compilations):
    vj.fit(KEY, vj.descent(GLOBAL, optax.adam(0.05)), START, DATA, num_steps=5)
    compilations.clear()
    vj.fit(KEY, vj.descent(GLOBAL, optax.adam(0.05)), START, DATA, num_steps=5)
    assert compilations


def test_history_has_the_loss_of_every_kth_step():
    every = vj.fit(KEY, SHARED, START, DATA, num_steps=25, record_every=1, chunk_size=10).history
    some = vj.fit(KEY, SHARED, START, DATA, num_steps=25, record_every=5, chunk_size=10).history
    np.testing.assert_array_equal(every.step, np.arange(25))
    np.testing.assert_array_equal(some.step, np.arange(0, 25, 5))
    np.testing.assert_allclose(some.loss, every.loss[::5], rtol=1e-5)
    for chunk_size in (3, 7):  # neither more nor less than a period, nor a multiple of it
        run = {"num_steps": 25, "record_every": 5, "chunk_size": chunk_size}
        assert_same(some, vj.fit(KEY, SHARED, START, DATA, **run).history)
    first, _ = GLOBAL.estimate(
        step_key(KEY, jnp.int32(0)), START, {"w": ()}, vj.Batch(DATA, jnp.arange(N))
    )
    np.testing.assert_allclose(every.loss[0], first.loss, rtol=1e-5)


@pytest.mark.parametrize("rows", [None, rowwise.adam(0.05)], ids=["lazy", "adam"])
def test_a_resumed_run_equals_an_uninterrupted_one(rows):
    """Bit for bit, wherever it is cut, the recorded history too."""
    algorithm = vj.descent(LOCAL, ADAM, rows=rows)
    settings = {"batch_size": 5, "record_every": 2, "chunk_size": 6}
    whole = vj.fit(KEY, algorithm, TABLE, DATA, num_steps=17, **settings)
    for cut in (7, 8):
        part = vj.fit(KEY, algorithm, TABLE, DATA, num_steps=cut, **settings)
        rest = vj.fit(KEY, algorithm, None, DATA, num_steps=17 - cut, resume=part, **settings)
        assert_same((whole.carry, whole.history), (rest.carry, rest.history))
        again = vj.fit(KEY, algorithm, None, DATA, num_steps=17 - cut, resume=part, **settings)
        assert_same(rest.params, again.params)  # resuming consumed nothing
    other = vj.fit(jax.random.key(6), algorithm, TABLE, DATA, num_steps=17, **settings)
    with pytest.raises(AssertionError):
        assert_same(whole.params, other.params)


def test_another_key_or_another_algorithm_is_not_resumed():
    by_row = vj.descent(LOCAL, ADAM, local_steps=2)
    part = vj.fit(KEY, by_row, TABLE, DATA, num_steps=4, batch_size=3)
    settings = {"num_steps": 4, "batch_size": 3, "resume": part}
    with pytest.raises(ValueError, match="made with another key"):
        vj.fit(jax.random.key(6), by_row, None, DATA, **settings)
    adam = vj.descent(LOCAL, ADAM, rows=rowwise.adam(0.05), local_steps=2)
    sgd = vj.descent(LOCAL, optax.sgd(0.05), local_steps=2)
    for other in (ROWS, adam, sgd):
        with pytest.raises(ValueError, match="made with the algorithm descent"):
            vj.fit(KEY, other, None, DATA, **settings)
    with pytest.raises(ValueError, match="goes with resume="):
        vj.fit(KEY, by_row, None, DATA, num_steps=4)


def test_random_numbers_drawn_ahead_are_the_same_numbers():
    """The switch that turns `hoist` off changes no bit."""
    for algorithm, params, batch_size in ((SHARED, START, None), (ROWS, TABLE, 5)):
        runs = [
            vj.fit(KEY, algorithm, params, DATA, num_steps=23, batch_size=batch_size, hoist=ahead)
            for ahead in (True, False)
        ]
        assert_same(runs[0].carry, runs[1].carry)


def test_the_callers_params_survive():
    before = jax.tree.map(np.array, TABLE)
    vj.fit(KEY, ROWS, TABLE, DATA, num_steps=3)
    assert_same(before, TABLE)


@pytest.mark.parametrize("place", ["rows", "shared"])
def test_a_nan_raises_and_names_step_leaf_and_row(place):
    algorithm, params = {"rows": (ROWS, TABLE), "shared": (SHARED, START)}[place]
    match = r"at step \d+: .*loc.* from rows \[7\]"
    with pytest.raises(vj.NonFiniteError, match=match) as error:
        vj.fit(KEY, algorithm, params, bad_data(), num_steps=40, batch_size=3)
    result = error.value.result
    assert result.num_steps <= 3  # four batches an epoch: row 7 comes up in the first
    assert f"at step {result.num_steps}:" in str(error.value)
    good = params
    if result.num_steps:
        steps = result.num_steps
        good = vj.fit(KEY, algorithm, params, bad_data(), num_steps=steps, batch_size=3).params
    assert_same(good, result.params)


def test_a_loss_that_is_not_finite_is_a_bad_step_though_the_gradient_is_finite():
    """-inf added to the log-joint of one row: its derivative is 0."""

    def estimate(key, params, state, batch):
        seen, state = GLOBAL.estimate(key, params, state, batch)
        return seen._replace(loss=jnp.where(jnp.any(batch.index == 3), jnp.inf, seen.loss)), state

    algorithm = vj.descent(GLOBAL._replace(estimate=estimate), ADAM)
    with pytest.raises(vj.NonFiniteError, match=r"\['loss'\], from rows \[3\]"):
        vj.fit(KEY, algorithm, START, DATA, num_steps=30, batch_size=4, record_every=1)
    skipped = vj.fit(
        KEY, algorithm, START, DATA, num_steps=30, batch_size=4, record_every=1, skip_nonfinite=True
    )
    assert skipped.num_skipped == 10 and skipped.num_steps == 30  # three batches an epoch


@pytest.mark.parametrize("optimizer", [optax.sgd(3e38), optax.adam(np.nan)], ids=["sgd", "adam"])
def test_an_update_that_is_not_finite_is_seen(optimizer):
    """What is kept is checked, not only the gradient."""
    with pytest.raises(vj.NonFiniteError, match="the update alone") as error:
        vj.fit(KEY, vj.descent(GLOBAL, optimizer), START, DATA, num_steps=20)
    assert_same(error.value.result.params, START)


def test_an_optimiser_state_that_overflows_is_seen_and_skipping_keeps_it_finite():
    """A gradient of 1e25 is finite, its square is not: Adam would never move again."""

    def estimate(key, params, state, batch):
        seen, state = GLOBAL.estimate(key, params, state, batch)
        size = jnp.where(batch.index[0] == 3, 1e25, 1.0)
        return seen._replace(grads=jax.tree.map(lambda g: size * g, seen.grads)), state

    algorithm = vj.descent(GLOBAL._replace(estimate=estimate), ADAM)
    with pytest.raises(vj.NonFiniteError, match="at step"):
        vj.fit(KEY, algorithm, START, DATA, num_steps=60, batch_size=4)
    result = vj.fit(KEY, algorithm, START, DATA, num_steps=60, batch_size=4, skip_nonfinite=True)
    assert result.num_skipped > 0
    for leaf in jax.tree.leaves(result.state):
        assert bool(jnp.all(jnp.isfinite(leaf)))


def test_skipping_drops_and_counts_the_bad_steps():
    for algorithm, params in ((ROWS, TABLE), (SHARED, START)):
        result = vj.fit(
            KEY, algorithm, params, bad_data(), num_steps=8, batch_size=3, skip_nonfinite=True
        )
        assert result.num_skipped == 2  # row 7 once in each of two epochs
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(result.params))
        if algorithm is ROWS:
            assert_same(TABLE.phi["z"]["loc"][7], result.params.phi["z"]["loc"][7])


def test_a_run_that_only_skips_says_so():
    with pytest.warns(UserWarning, match="every step was skipped"):
        vj.fit(KEY, SHARED, START, bad_data(), num_steps=4, skip_nonfinite=True)


def test_a_run_that_skipped_steps_goes_on_without_skipping():
    settings = {"batch_size": 3}
    part = vj.fit(KEY, ROWS, TABLE, bad_data(), num_steps=8, skip_nonfinite=True, **settings)
    rest = vj.fit(KEY, ROWS, None, DATA, num_steps=4, resume=part, **settings)
    assert part.num_skipped > 0
    assert rest.num_steps == 12 and rest.num_skipped == part.num_skipped


def test_a_callback_sees_progress_and_stops():
    seen, params = [], []

    def callback(progress):
        seen.append((progress.step, progress.history.step[-1]))
        params.append(progress.params)
        return progress.step >= 20

    settings = {"chunk_size": 10}
    result = vj.fit(KEY, SHARED, START, DATA, num_steps=100, callbacks=[callback], **settings)
    assert seen == [(10, 0), (20, 10)]
    assert result.interrupted
    assert result.num_steps == 20
    assert_same(result.params, params[-1])
    assert_same(result.params, vj.fit(KEY, SHARED, START, DATA, num_steps=20, **settings).params)


def test_ctrl_c_returns_what_there_is():
    before = signal.getsignal(signal.SIGINT)

    def press(progress):
        if progress.step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    result = vj.fit(KEY, SHARED, START, DATA, num_steps=1000, chunk_size=10, callbacks=[press])
    assert result.interrupted
    assert 10 <= result.num_steps <= 20
    assert signal.getsignal(signal.SIGINT) is before


def test_an_iterator_of_batches_gives_the_result_of_the_same_rows():
    whole = vj.Batch(np.asarray(DATA), np.arange(N))
    outside = vj.fit(KEY, SHARED, START, iter([whole] * 7), num_steps=50, chunk_size=10)
    assert outside.num_steps == 7
    inside = vj.fit(KEY, SHARED, START, DATA, num_steps=7, chunk_size=10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        outside.params,
        inside.params,
    )
    ragged = iter([whole, whole._replace(x=whole.x[:, :1])])
    with pytest.raises(vj.BatchError, match="different shapes") as error:
        vj.fit(KEY, SHARED, START, ragged, num_steps=2)
    assert error.value.result.num_steps == 1


@pytest.mark.parametrize(
    ("rows", "problem"),
    [([0, 0, 1], "repeats a row"), ([0, 1, N], "leaves"), ([-1, 0, 1], "leaves")],
)
def test_a_batch_must_name_different_rows_of_the_data(rows, problem):
    """Of two updates of one row only one would be kept; -1 is another datum's row and noise."""
    batch = vj.Batch(DATA[:3], jnp.array(rows))
    for algorithm, params in ((SHARED, START), (ROWS, TABLE)):
        with pytest.raises(ValueError, match=problem):
            vj.fit(KEY, algorithm, params, iter([batch]), num_steps=1)
        with pytest.raises(ValueError, match=problem):
            algorithm.step(KEY, algorithm.init(KEY, params), batch)
        more = vj.Batch(jnp.concatenate([DATA, DATA]), jnp.arange(2 * N))
        with pytest.raises(ValueError, match=f"has {2 * N} rows"):
            algorithm.step(KEY, algorithm.init(KEY, params), more)


def test_rows_out_of_range_that_are_traced_make_the_step_not_finite():
    """Where indices are not known, an array would be read elsewhere without a word."""
    for algorithm, params in ((SHARED, START), (ROWS, TABLE)):
        state, step = algorithm.init(KEY, params), jax.jit(algorithm.step)
        for rows, fine in (([0, 1, 2], True), ([-1, 0, 1], False), ([0, 1, N], False)):
            _, info = step(KEY, state, vj.Batch(DATA[:3], jnp.array(rows)))
            assert bool(info.finite) is fine
            assert bool(jnp.isfinite(info.loss)) is fine


def test_an_iterator_that_never_yields_the_last_rows_is_suspect():
    """Built for N = 12 and fed 6 rows, the likelihood would count twice."""
    batches = itertools.repeat(vj.Batch(DATA[:6], jnp.arange(6)))
    with pytest.warns(
        UserWarning, match="none above 5, but the estimator was built for num_data=12"
    ):
        vj.fit(KEY, SHARED, START, batches, num_steps=4)


def test_keys_under_which_noise_would_not_follow_the_datum_are_refused():
    key = jax.random.key(0, impl="rbg")
    with pytest.raises(ValueError, match="impl='threefry2x32'"):
        vj.fit(key, SHARED, START, DATA, num_steps=1)


def test_wrong_settings_are_refused():
    for settings, match in (
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 5, "batch_size": 13}, "batch_size=13"),
    ):
        with pytest.raises(ValueError, match=match):
            vj.fit(KEY, SHARED, START, DATA, **settings)
    with pytest.raises(ValueError, match="num_data=12"):
        vj.fit(KEY, SHARED, START, DATA[:5], num_steps=5)
    with pytest.raises(TypeError, match=r"write fit\(key, vijax.descent\(estimator, optimizer\)"):
        vj.fit(KEY, GLOBAL, START, DATA, num_steps=5)
    with pytest.raises(TypeError, match="averaging=100 is no average"):
        vj.fit(KEY, SHARED, START, DATA, num_steps=5, averaging=100)
    with pytest.raises(TypeError, match=r"write callbacks=\[callback\]"):
        vj.fit(KEY, SHARED, START, DATA, num_steps=5, callbacks=print)
