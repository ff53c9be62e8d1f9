"""`fit`: compilations are counted, runs resume bit for bit, bad numbers are named, tables give the
dense result.
"""

import logging
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vijax as vj
from vijax import densities, rowwise
from vijax.loop import run_chunk

N, D = 12, 2
ADAM = optax.adam(0.05)
KEY = jax.random.key(5)


def log_local(theta, z, x):
    """Prior z ~ Normal(0, I), x | z ~ Normal(z + theta, I)."""
    return jnp.sum(densities.standard_normal(z)) + jnp.sum(densities.standard_normal(x - z - theta))


def local_estimator():
    model = vj.models.latent_model(lambda key: jnp.zeros(D), log_local)
    guide = vj.guides.per_datapoint(vj.families.diag_normal(D), N)
    return vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=N)


def global_estimator(num_data=N):
    model = vj.models.bayes_model(
        lambda theta, w: jnp.sum(densities.standard_normal(w)),
        lambda theta, w, x: jnp.sum(densities.standard_normal(x - w)),
    )
    return vj.estimator(
        model,
        vj.guides.shared(vj.families.diag_normal(D)),
        rules=vj.rules.pathwise(),
        num_data=num_data,
    )


DATA = jax.random.normal(jax.random.key(1), (N, D)) + 1.0
GLOBAL, LOCAL = global_estimator(), local_estimator()
START, TABLE = GLOBAL.init_params(jax.random.key(0)), LOCAL.init_params(jax.random.key(0))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


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
    keys, data = [jax.random.key(i) for i in range(2)], [np.asarray(DATA), np.asarray(DATA) + 1.0]
    compilations.clear()
    params = estimator.init_params(keys[0])
    vj.fit(keys[0], estimator, optimizer, params, data[0], num_steps=20)
    assert 1 <= len(compilations) <= 3, compilations
    compilations.clear()
    vj.fit(keys[1], estimator, optimizer, params, data[1], num_steps=70)
    vj.fit(keys[1], estimator, optimizer, params, data[1], num_steps=7)
    assert compilations == []


def test_the_count_catches_a_new_optimizer(compilations):
    vj.fit(KEY, GLOBAL, optax.adam(0.05), START, DATA, num_steps=5)
    compilations.clear()
    vj.fit(KEY, GLOBAL, optax.adam(0.05), START, DATA, num_steps=5)
    assert compilations


def test_history_has_the_loss_of_every_kth_step():
    every = vj.fit(
        KEY, GLOBAL, ADAM, START, DATA, num_steps=25, record_every=1, chunk_size=10
    ).history
    some = vj.fit(
        KEY, GLOBAL, ADAM, START, DATA, num_steps=25, record_every=5, chunk_size=10
    ).history
    np.testing.assert_array_equal(every.step, np.arange(25))
    np.testing.assert_array_equal(some.step, np.arange(0, 25, 5))
    np.testing.assert_allclose(some.loss, every.loss[::5], rtol=1e-5)
    first, _ = GLOBAL.estimate(
        vj.loop.step_key(KEY, jnp.int32(0)), START, {"w": ()}, vj.Batch(DATA, jnp.arange(N))
    )
    np.testing.assert_allclose(every.loss[0], first.loss, rtol=1e-5)


@pytest.mark.parametrize("row_optimizer", [None, rowwise.adam(0.05)], ids=["lazy", "adam"])
def test_a_resumed_run_equals_an_uninterrupted_one(row_optimizer):
    settings = {"batch_size": 5, "row_optimizer": row_optimizer, "record_every": 2, "chunk_size": 6}
    whole = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=17, **settings)
    part = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=8, **settings)
    rest = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=9, resume=part, **settings)
    assert_same(whole._replace(interrupted=False), rest._replace(interrupted=False))
    # Resuming consumed nothing
    again = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=9, resume=part, **settings)
    assert_same(rest.params, again.params)
    other = vj.fit(
        jax.random.key(6), LOCAL, ADAM, TABLE, DATA, num_steps=9, resume=part, **settings
    )
    with pytest.raises(AssertionError):
        assert_same(whole.params, other.params)


def test_the_callers_params_survive():
    before = jax.tree.map(np.array, TABLE)
    vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=3)
    assert_same(before, TABLE)


def bad_data():
    return DATA.at[7, 1].set(jnp.nan)


def test_a_nan_raises_and_names_step_leaf_and_row():
    with pytest.raises(vj.NonFiniteError, match=r"at step \d+ in .*loc.*rows \[7\]") as error:
        vj.fit(KEY, LOCAL, ADAM, TABLE, bad_data(), num_steps=40, batch_size=3)
    result = error.value.result
    assert result.num_steps <= 3  # four batches an epoch: row 7 comes up in the first
    assert f"at step {result.num_steps} " in str(error.value)
    good = (
        TABLE
        if result.num_steps == 0
        else vj.fit(
            KEY, LOCAL, ADAM, TABLE, bad_data(), num_steps=result.num_steps, batch_size=3
        ).params
    )
    assert_same(good, result.params)


def test_skipping_drops_and_counts_the_bad_steps():
    result = vj.fit(
        KEY, LOCAL, ADAM, TABLE, bad_data(), num_steps=8, batch_size=3, skip_nonfinite=True
    )
    assert result.num_skipped == 2  # row 7 once in each of two epochs
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(result.params))
    assert_same(TABLE.phi["loc"][7], result.params.phi["loc"][7])


def test_a_callback_sees_progress_and_stops():
    seen = []

    def callback(progress):
        seen.append(progress.step)
        return progress.step >= 20

    result = vj.fit(
        KEY, GLOBAL, ADAM, START, DATA, num_steps=100, chunk_size=10, callbacks=[callback]
    )
    assert seen == [10, 20]
    assert result.interrupted
    assert result.num_steps == 20
    assert_same(
        result.params, vj.fit(KEY, GLOBAL, ADAM, START, DATA, num_steps=20, chunk_size=10).params
    )


def test_ctrl_c_returns_what_there_is():
    before = signal.getsignal(signal.SIGINT)

    def press(progress):
        if progress.step == 10:
            os.kill(os.getpid(), signal.SIGINT)

    result = vj.fit(
        KEY, GLOBAL, ADAM, START, DATA, num_steps=1000, chunk_size=10, callbacks=[press]
    )
    assert result.interrupted
    assert 10 <= result.num_steps <= 20
    assert signal.getsignal(signal.SIGINT) is before


def test_an_iterator_of_batches_gives_the_result_of_the_same_rows():
    whole = vj.Batch(np.asarray(DATA), np.arange(N))
    outside = vj.fit(KEY, GLOBAL, ADAM, START, iter([whole] * 7), num_steps=50, chunk_size=10)
    assert outside.num_steps == 7
    inside = vj.fit(KEY, GLOBAL, ADAM, START, DATA, num_steps=7, chunk_size=10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        outside.params,
        inside.params,
    )
    ragged = iter([whole, jax.tree.map(lambda leaf: leaf[:3], whole)])
    with pytest.raises(ValueError, match="different shapes"):
        vj.fit(KEY, GLOBAL, ADAM, START, ragged, num_steps=2)


def dense(num_steps, batch_size=None):
    """Optax on the whole table, with the gradients of the same steps."""
    program = vj.loop.Program(
        LOCAL, ADAM, rowwise.lazy(ADAM), batch_size, False, 1, 1, 1, None, True, False
    )

    def step(carry, step):
        params, state = carry
        batch = vj.loop.take_batch(KEY, step, DATA, jnp.int32(0), program)
        grads = LOCAL.estimate(vj.loop.step_key(KEY, step), params, {"z": ()}, batch)[0].grads
        updates, state = ADAM.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), TABLE)
    return jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(num_steps)))(
        (start, ADAM.init(start))
    )[0][0]


@pytest.mark.parametrize("row_optimizer", [None, rowwise.adam(0.05)], ids=["lazy", "adam"])
def test_a_table_with_full_batches_equals_the_dense_optimizer(row_optimizer):
    result = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=6, row_optimizer=row_optimizer)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), result.params, dense(6)
    )


def test_catch_up_follows_dense_adam_where_lazy_rows_do_not():
    expected, moved = dense(24, 3), None
    errors = {}
    for name, row_optimizer in (("lazy", None), ("adam", rowwise.adam(0.05))):
        result = vj.fit(
            KEY, LOCAL, ADAM, TABLE, DATA, num_steps=24, batch_size=3, row_optimizer=row_optimizer
        )
        moved = jnp.mean(jnp.abs(expected.phi["loc"] - TABLE.phi["loc"]))
        errors[name] = float(
            jnp.mean(jnp.abs(result.params.phi["loc"] - expected.phi["loc"])) / moved
        )
    assert errors["adam"] < 0.05, errors  # of the mean distance that the rows travelled
    assert errors["lazy"] > 5 * errors["adam"], errors


def test_local_steps_update_rows_more_often_than_theta():
    once = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=1)
    thrice = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=1, local_steps=3)
    np.testing.assert_allclose(
        jnp.abs(thrice.params.theta), 0.05, rtol=1e-3
    )  # Adam's first step, once
    assert np.all(np.asarray(thrice.opt_state["rows"][0].count) == 3)
    assert np.all(np.asarray(once.opt_state["rows"][0].count) == 1)
    # One step moves 0.05
    assert float(jnp.mean(jnp.abs(thrice.params.phi["loc"] - TABLE.phi["loc"]))) > 0.075


def test_partition_gives_theta_and_phi_their_own_optimizers():
    labels = vj.Params("theta", "phi", "control")
    optimizer = optax.partition({"theta": optax.sgd(0.0), "phi": ADAM, "control": ADAM}, labels)
    row_optimizer = rowwise.lazy(ADAM)
    result = vj.fit(KEY, LOCAL, optimizer, TABLE, DATA, num_steps=3, row_optimizer=row_optimizer)
    assert_same(result.params.theta, TABLE.theta)
    assert not np.array_equal(result.params.phi["loc"], TABLE.phi["loc"])


def test_tables_are_donated():
    layout = vj.loop.row_layout(LOCAL, rowwise.lazy(ADAM), TABLE)
    program = vj.loop.Program(
        LOCAL, ADAM, rowwise.lazy(ADAM), 3, False, 1, 5, 1, layout, True, False
    )
    carry = vj.loop.start(KEY, TABLE, program=program)
    run_chunk(KEY, carry, DATA, 2, program=program)
    assert carry.words.is_deleted()


def test_a_row_twice_in_a_batch_of_a_table_is_refused():
    """Of two updates of one row only one would be kept."""
    for rows in ([0, 0, 1], [0, 1, N]):
        batches = iter([vj.Batch(DATA[:3], jnp.array(rows))])
        with pytest.raises(ValueError, match="repeats a row"):
            vj.fit(KEY, LOCAL, ADAM, TABLE, batches, num_steps=1)


def test_rows_are_not_resumed_under_other_settings():
    part = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=4, batch_size=3, local_steps=2)
    for other in ({"local_steps": 1}, {"local_steps": 2, "row_optimizer": rowwise.adam(0.05)}):
        with pytest.raises(ValueError, match="another row_optimizer or local_steps"):
            vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=4, batch_size=3, resume=part, **other)


def test_a_run_that_skipped_steps_goes_on_without_skipping():
    part = vj.fit(
        KEY, LOCAL, ADAM, TABLE, bad_data(), num_steps=8, batch_size=3, skip_nonfinite=True
    )
    rest = vj.fit(KEY, LOCAL, ADAM, TABLE, DATA, num_steps=4, batch_size=3, resume=part)
    assert part.num_skipped > 0 and rest.num_steps == 12 and rest.num_skipped == part.num_skipped


def test_missed_updates_follow_a_schedule():
    """Under a growing rate the k-th update uses the rate of the step before it, as optax does."""
    rate = lambda step: 0.01 * step  # noqa: E731
    rows, clock = {"row": jnp.ones((1, 1))}, 3
    ours, dense = rowwise.adam(rate), optax.adam(rate)
    state = dense.init(rows)
    for _ in range(clock):
        state = dense.update({"row": jnp.zeros((1, 1))}, state)[1]
    state_rows = ours.init(rows)._replace(clock=jnp.full(1, clock))
    moved, state_rows = ours.update({"row": jnp.ones((1, 1))}, state_rows, rows, jnp.int32(clock))
    update, state = dense.update({"row": jnp.ones((1, 1))}, state)
    expected = optax.apply_updates(rows, update)
    np.testing.assert_allclose(moved["row"], expected["row"], rtol=1e-5)
    # One missed step: the sum has one term, hence exact
    update, _ = dense.update({"row": jnp.zeros((1, 1))}, state)
    caught, _ = ours.catch_up(moved, state_rows, jnp.int32(clock + 2))
    np.testing.assert_allclose(
        caught["row"], optax.apply_updates(expected, update)["row"], rtol=1e-5
    )


def test_wrong_settings_are_refused():
    for settings, match in (
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 5, "batch_size": 13}, "batch_size=13"),
        ({"num_steps": 5, "local_steps": 0}, "local_steps=0"),
        ({"num_steps": 5, "chunk_size": 15, "record_every": 10}, "multiple of record_every"),
    ):
        with pytest.raises(ValueError, match=match):
            vj.fit(KEY, GLOBAL, ADAM, START, DATA, **settings)
    with pytest.raises(ValueError, match="num_data=12"):
        vj.fit(KEY, GLOBAL, ADAM, START, DATA[:5], num_steps=5)
