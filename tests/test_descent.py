"""`descent`: tables give the dense result, rates mean the same at every batch size, any optax
transformation is served.
"""

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
    D,
    N,
    assert_same,
    global_model,
)

import vijax as vj
from vijax import rowwise
from vijax.algorithms import inner
from vijax.optimize.loop import Program, run_chunk, start, step_key, take_batch


def program(algorithm, batch_size, chunk_size):
    return Program(
        algorithm=algorithm,
        batch_size=batch_size,
        stacked=False,
        record_every=1,
        chunk_size=chunk_size,
        skip_nonfinite=False,
        careful=False,
        hoist=True,
    )


def dense(num_steps, batch_size=None):
    """Optax on the whole table, with the gradients of the same steps."""
    settings = program(ROWS, batch_size, 1)

    def step(carry, step):
        params, state = carry
        batch = take_batch(KEY, step, DATA, jnp.int32(0), settings)
        grads = LOCAL.estimate(step_key(KEY, step), params, {"z": ()}, batch)[0].grads
        updates, state = ADAM.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    first = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), TABLE)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(num_steps)))
    return run((first, ADAM.init(first)))[0][0]


@pytest.mark.parametrize("rows", [None, rowwise.adam(0.05)], ids=["lazy", "adam"])
def test_a_table_with_full_batches_equals_the_dense_optimizer(rows):
    result = vj.fit(KEY, vj.descent(LOCAL, ADAM, rows=rows), TABLE, DATA, num_steps=6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), result.params, dense(6)
    )


def test_catch_up_follows_dense_adam_where_lazy_rows_do_not():
    expected, errors = dense(24, 3), {}
    moved = jnp.mean(jnp.abs(expected.phi["z"]["loc"] - TABLE.phi["z"]["loc"]))
    for name, rows in (("lazy", None), ("adam", rowwise.adam(0.05))):
        algorithm = vj.descent(LOCAL, ADAM, rows=rows)
        result = vj.fit(KEY, algorithm, TABLE, DATA, num_steps=24, batch_size=3)
        away = jnp.abs(result.params.phi["z"]["loc"] - expected.phi["z"]["loc"])
        errors[name] = float(jnp.mean(away) / moved)
    assert errors["adam"] < 0.05, errors  # of the mean distance that the rows travelled
    assert errors["lazy"] > 5 * errors["adam"], errors


def test_a_rate_of_lazy_rows_means_the_same_at_every_batch_size():
    """A row moves by rate times its own gradient when its datum is drawn, not N / B times that."""
    rate, moved = 0.01, {}
    algorithm = vj.descent(LOCAL, optax.sgd(rate))
    for batch_size in (N, 3):
        result = vj.fit(KEY, algorithm, TABLE, DATA, num_steps=1, batch_size=batch_size)
        settings = program(algorithm, batch_size, 1)
        batch = take_batch(KEY, jnp.int32(0), DATA, jnp.int32(0), settings)
        seen, _ = LOCAL.estimate(step_key(KEY, jnp.int32(0)), TABLE, {"z": ()}, batch)
        own = np.asarray(seen.grads.phi["z"]["loc"])[batch.index] * batch_size / N
        step = np.asarray(result.params.phi["z"]["loc"] - TABLE.phi["z"]["loc"])[batch.index]
        np.testing.assert_allclose(step, -rate * own, rtol=1e-3, atol=1e-6)
        moved[batch_size] = np.abs(step).mean()
    assert 0.4 < moved[3] / moved[N] < 2.5  # N / B = 4 would show


def test_local_steps_update_rows_more_often_than_theta():
    once = vj.fit(KEY, ROWS, TABLE, DATA, num_steps=1)
    thrice = vj.fit(KEY, vj.descent(LOCAL, ADAM, local_steps=3), TABLE, DATA, num_steps=1)
    # Adam's first step, once
    np.testing.assert_allclose(jnp.abs(thrice.params.theta), 0.05, rtol=1e-3)
    for result, count in ((once, 1), (thrice, 3)):
        _, row_state = vj.rows.unpack(result.state.packed)
        assert np.all(np.asarray(row_state[0].count) == count)
        assert int(result.state.clock) == count
    # One step moves 0.05
    away = jnp.abs(thrice.params.phi["z"]["loc"] - TABLE.phi["z"]["loc"])
    assert float(jnp.mean(away)) > 0.075


def test_an_inner_loop_ends_when_the_bound_stops_rising():
    """From far away it takes many steps, from where there is nothing to gain two windows and the
    last step; the cap holds, and changes no bit of what a fixed number of steps does.
    """
    best = TABLE.phi["z"] | {"loc": 0.5 * DATA, "log_scale": jnp.full((N, 2), -0.5 * jnp.log(2.0))}
    far = best | {"loc": best["loc"] + 4.0}
    until = vj.descent(
        LOCAL, ADAM, rows=rowwise.adam(0.2), local_steps=inner(100, tolerance=0.2, window=4)
    )
    taken = {}
    for name, lam in (("best", best), ("far", far)):
        result = vj.fit(KEY, until, TABLE._replace(phi={"z": lam}), DATA, num_steps=1)
        taken[name] = int(result.state.clock)
        assert float(jnp.mean(jnp.abs(result.params.phi["z"]["loc"] - best["loc"]))) < 0.7
    assert taken["best"] == 9 and 16 < taken["far"] < 100, taken
    fixed = vj.descent(LOCAL, ADAM, local_steps=7)
    capped = vj.descent(LOCAL, ADAM, local_steps=inner(7, tolerance=1e-6, window=4))
    one, other = (vj.fit(KEY, each, TABLE, DATA, num_steps=2) for each in (fixed, capped))
    assert_same(one.params, other.params)


def test_rows_that_start_anew_forget_where_they_were():
    """Both their place and their optimiser's moments; the number of steps is each time the same."""
    prior = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), TABLE.phi["z"])
    restart = inner(3, restart=lambda theta, x: prior)
    far = TABLE._replace(phi=jax.tree.map(lambda leaf: leaf + 2.0, TABLE.phi))
    for rows in (rowwise.adam(0.05), rowwise.lazy(ADAM)):
        algorithm = vj.descent(LOCAL, optax.sgd(0.0), rows=rows, local_steps=restart)
        near, other = (vj.fit(KEY, algorithm, params, DATA, num_steps=4) for params in (TABLE, far))
        assert_same(near.params.phi, other.params.phi)
        # Three steps of Adam from the prior, whatever was done before.
        once = vj.fit(KEY, algorithm, TABLE, DATA, num_steps=1)
        for result in (once, near):
            away = jnp.abs(result.params.phi["z"]["loc"])
            assert float(jnp.max(away)) < 3.01 * 0.05
        kept = vj.descent(LOCAL, optax.sgd(0.0), rows=rows, local_steps=3)
        gone = vj.fit(KEY, kept, TABLE, DATA, num_steps=4).params
        assert float(jnp.max(jnp.abs(gone.phi["z"]["loc"] - TABLE.phi["z"]["loc"]))) > 3.5 * 0.05


def test_a_restart_of_another_shape_is_refused():
    wrong = inner(2, restart=lambda theta, x: {"loc": jnp.zeros(7), "log_scale": jnp.zeros(7)})
    with pytest.raises(ValueError, match=r"restart=...\) returns, over a batch, has shapes"):
        vj.fit(KEY, vj.descent(LOCAL, ADAM, local_steps=wrong), TABLE, DATA, num_steps=1)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_restart_of_another_type_of_numbers_is_that_of_the_table(steps):
    """As from an encoder in half precision: its bits are no bits of the table."""

    def start(theta, x):
        return {"loc": jnp.ones(D, jnp.bfloat16), "log_scale": jnp.zeros(D, jnp.bfloat16)}

    def same(theta, x):
        return {"loc": jnp.ones(D), "log_scale": jnp.zeros(D)}

    def after(restart):
        algorithm = vj.descent(LOCAL, ADAM, local_steps=inner(steps, restart=restart))
        return vj.fit(KEY, algorithm, TABLE, DATA, num_steps=2).params

    assert_same(after(start), after(same))


def test_a_tolerance_that_is_no_number_of_nats_is_refused():
    for tolerance in (float("inf"), float("nan"), 0.0, "0.1", jnp.float32(0.1)):
        with pytest.raises(ValueError, match="a finite number of nats per datum"):
            inner(5, tolerance=tolerance)


def test_partition_gives_theta_and_phi_their_own_optimizers():
    labels = vj.Params("theta", "phi", "control")
    optimizer = optax.partition({"theta": optax.sgd(0.0), "phi": ADAM, "control": ADAM}, labels)
    algorithm = vj.descent(LOCAL, optimizer, rows=rowwise.lazy(ADAM))
    result = vj.fit(KEY, algorithm, TABLE, DATA, num_steps=3)
    assert_same(result.params.theta, TABLE.theta)
    assert not np.array_equal(result.params.phi["z"]["loc"], TABLE.phi["z"]["loc"])


def test_tables_are_donated_and_small_states_are_kept():
    for algorithm, params, donated in ((ROWS, TABLE, True), (SHARED, START, False)):
        carry = start(KEY, params, algorithm=algorithm)
        leaf = carry.state.packed.words if donated else carry.state.params.phi["w"]["loc"]
        run_chunk(KEY, carry, DATA, 2, program=program(algorithm, 3, 5))
        assert leaf.is_deleted() == donated


def test_missed_updates_follow_a_schedule():
    """Under a growing rate the k-th update uses the rate of the step before it, as optax does."""
    rate = lambda step: 0.01 * step  # noqa: E731
    rows, clock = {"row": jnp.ones((1, 1))}, 3
    ours, optimizer = rowwise.adam(rate), optax.adam(rate)
    state = optimizer.init(rows)
    for _ in range(clock):
        state = optimizer.update({"row": jnp.zeros((1, 1))}, state)[1]
    state_rows = ours.init(rows)._replace(clock=jnp.full(1, clock))
    one = {"row": jnp.ones((1, 1))}
    moved, state_rows = ours.update(one, state_rows, rows, jnp.int32(clock), 1.0)
    update, state = optimizer.update(one, state)
    expected = optax.apply_updates(rows, update)
    np.testing.assert_allclose(moved["row"], expected["row"], rtol=1e-5)
    # One missed step: the sum has one term, hence exact
    update, _ = optimizer.update({"row": jnp.zeros((1, 1))}, state)
    caught, _ = ours.catch_up(moved, state_rows, jnp.int32(clock + 2))
    np.testing.assert_allclose(
        caught["row"], optax.apply_updates(expected, update)["row"], rtol=1e-5
    )


def test_local_steps_without_a_table_are_refused():
    for estimator, steps in ((GLOBAL, 2), (GLOBAL, inner(1, tolerance=0.1)), (LOCAL, 0)):
        with pytest.raises(ValueError, match="local_steps"):
            vj.descent(estimator, ADAM, local_steps=steps)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.chain(optax.adam(0.05), optax.contrib.reduce_on_plateau()),
        optax.polyak_sgd(max_learning_rate=0.05),
    ],
    ids=["lbfgs", "reduce_on_plateau", "polyak_sgd"],
)
def test_optimisers_that_ask_for_the_value_are_given_it(optimizer):
    """The posterior of w is Normal(sum x / (N + 1), 1 / (N + 1)); its mean is found."""
    guide = vj.guides.shared(vj.families.diag_normal(2))
    fixed = vj.rules.pathwise(noise=vj.noise.fixed(KEY, vj.noise.antithetic()))
    estimator = vj.estimator(global_model(), guide, rules=fixed, num_samples=8, num_data=N)
    params = estimator.init_params(jax.random.key(0))
    result = vj.fit(KEY, vj.descent(estimator, optimizer), params, DATA, num_steps=400)
    loc = result.params.phi["w"]["loc"]
    np.testing.assert_allclose(loc, jnp.sum(DATA, axis=0) / (N + 1), atol=0.02)
