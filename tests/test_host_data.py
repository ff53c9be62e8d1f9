"""Data that stay on the host, and batches from iterators: the same numbers as with data on the
device, uneven batches, errors that cost nothing, and files that are never read whole.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_problems import (
    ADAM,
    DATA,
    KEY,
    ROWS,
    SHARED,
    START,
    TABLE,
    D,
    N,
    assert_same,
    bad_data,
    global_estimator,
    global_model,
)

import vijax as vj
from vijax.optimize.batches import steps_at_once
from vijax.optimize.iterators import from_iterator
from vijax.optimize.loop import step_key

SETTINGS = {"batch_size": 5, "chunk_size": 7, "record_every": 3}
X = np.asarray(DATA)


@pytest.fixture
def in_file(tmp_path):
    """The data as a memory-mapped file."""
    np.save(tmp_path / "x.npy", X)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


def run(algorithm, params, data, num_steps=23, **settings):
    return vj.fit(KEY, algorithm, params, data, num_steps=num_steps, **(SETTINGS | settings))


@pytest.fixture(scope="module")
def on_device():
    """Runs with the data on the device."""
    return {
        name: run(algorithm, params, DATA)
        for name, algorithm, params in (("shared", SHARED, START), ("rows", ROWS, TABLE))
    }


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize("name", ["shared", "rows"])
def test_data_on_the_host_give_the_same_bits(name, kind, in_file, on_device):
    """The same batches, noise and sums, whatever the chunks; a run may change sides."""
    algorithm, params = {"shared": (SHARED, START), "rows": (ROWS, TABLE)}[name]
    data = {"file": in_file, "memory": vj.on_host(DATA)}[kind]
    whole = on_device[name]
    here = run(algorithm, params, data)
    assert_same((whole.carry, whole.history), (here.carry, here.history))
    first = run(algorithm, params, data, num_steps=10, chunk_size=4)
    rest = run(algorithm, None, DATA, num_steps=13, resume=first)
    assert_same((whole.carry, whole.history), (rest.carry, rest.history))


def test_the_comparison_catches_one_row_out_of_place(on_device):
    moved = X.copy()
    moved[[3, 4]] = moved[[4, 3]]
    with pytest.raises(AssertionError):
        assert_same(on_device["rows"].carry, run(ROWS, TABLE, vj.on_host(moved)).carry)


def test_trees_other_byte_orders_and_integers_are_read(tmp_path):
    """One leaf in a big-endian file, one in memory, one on the device: still the same bits."""

    def log_lik(theta, w, x):
        size = x["counts"].astype(jnp.float32) * x["on"]
        return jnp.sum(vj.densities.standard_normal(x["x"] - w)) * size

    model = global_model()
    guide = vj.guides.shared(vj.families.diag_normal(D))
    model = vj.models.bayes_model(model.log_prior, log_lik)
    estimator = vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=N)
    algorithm, params = vj.descent(estimator, ADAM), estimator.init_params(KEY)
    counts = np.arange(N) % 3
    X.astype(">f4").tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype=">f4", shape=(N, D), mode="r")
    mixed = {"x": mapped, "counts": counts, "on": jnp.arange(N) != 4}
    plain = {"x": DATA, "counts": jnp.asarray(counts), "on": jnp.arange(N) != 4}
    assert_same(run(algorithm, params, mixed).carry, run(algorithm, params, plain).carry)


def test_a_file_larger_than_memory_is_never_read_whole(tmp_path):
    """A sparse file of 64 GiB of zeros; the loss of its first batch in closed form."""
    num_data, size = 2**29, 32
    mapped = np.memmap(tmp_path / "x", dtype=np.float32, shape=(num_data, size), mode="w+")
    model = vj.models.bayes_model(
        lambda theta, w: jnp.sum(vj.densities.standard_normal(w)),
        lambda theta, w, x: jnp.sum(vj.densities.standard_normal(x)) + 0.0 * w[0],
    )
    seen = []
    model = model._replace(check=lambda x: seen.append(x.shape))
    estimator = vj.estimator(
        model,
        vj.guides.shared(vj.families.diag_normal(1)),
        rules=vj.rules.pathwise(),
        num_data=num_data,
    )
    params = estimator.init_params(KEY)
    settings = {"num_steps": 4, "batch_size": 3, "chunk_size": 2, "record_every": 1}
    result = vj.fit(KEY, vj.descent(estimator, optax.sgd(0.0)), params, mapped, **settings)
    likelihood = -0.5 * np.log(2.0 * np.pi) * size * num_data
    np.testing.assert_allclose(result.history.loss, -likelihood, rtol=1e-6)
    assert seen == [(6, size), (6, size)]
    assert os.stat(tmp_path / "x").st_blocks * 512 < 2**20


def test_a_chunk_of_large_data_is_short():
    """Rows of 2^20 bytes in batches of 64: four steps are 256 MiB, whatever is asked for."""
    wide = np.broadcast_to(np.zeros((1, 2**18), np.float32), (1000, 2**18))
    assert [steps_at_once((wide, jnp.zeros(9)), size, 100) for size in (1, 64, 1000)] == [100, 4, 1]


def test_data_without_a_meaning_are_refused_before_their_steps():
    """A later chunk has the datum: the run up to there is in the error."""

    def check(x):
        if np.isnan(x).any():
            raise ValueError("a datum is missing.")

    estimator = global_estimator()._replace(check=check)
    algorithm = vj.descent(estimator, ADAM)
    settings = {"num_steps": 4, "batch_size": 3, "chunk_size": 1}
    with pytest.raises(vj.BatchError, match="a datum is missing") as error:
        vj.fit(KEY, algorithm, START, vj.on_host(bad_data()), **settings)
    result = error.value.result
    assert 1 <= result.num_steps <= 3
    settings["num_steps"] = result.num_steps
    again = vj.fit(KEY, algorithm, START, vj.on_host(X), **settings)
    assert_same(again.carry, result.carry)


def test_a_nan_on_the_host_names_its_row():
    with pytest.raises(vj.NonFiniteError, match=r"from rows \[7\]") as error:
        run(ROWS, TABLE, vj.on_host(bad_data()))
    with pytest.raises(vj.NonFiniteError) as plain:
        run(ROWS, TABLE, bad_data())
    assert_same(plain.value.result.carry, error.value.result.carry)
    assert str(plain.value) == str(error.value)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (lambda path: vj.on_host(X[:5]), r"num_data=12, but .* leading sizes \[\(5,\)\]"),
        (lambda path: np.memmap(path, np.float32, shape=(N, D), mode="r"), "mmap length"),
        (lambda path: np.memmap(path, np.float32, shape=(3, D), mode="r"), "num_data=12"),
        (lambda path: vj.on_host(np.array(["a"] * N)), "no numbers"),
        (lambda path: vj.on_host(np.zeros(N, [("x", "f4")])), "no numbers"),
    ],
    ids=["short", "short file", "shape", "words", "records"],
)
def test_data_that_cannot_be_meant_are_refused(data, match, tmp_path):
    X[:3].tofile(tmp_path / "x")
    with pytest.raises(ValueError, match=match):
        run(SHARED, START, data(tmp_path / "x"))


def test_more_rows_than_32_bits_number_are_refused():
    many = vj.on_host(np.broadcast_to(np.zeros((1, D), np.float32), (2**31, D)))
    with pytest.raises(ValueError, match="numbered in 32 bits"):
        run(vj.descent(global_estimator(2**31), ADAM), START, many)


def test_a_full_batch_of_data_on_the_host_is_refused(in_file):
    with pytest.raises(ValueError, match="Write batch_size="):
        vj.fit(KEY, SHARED, START, in_file, num_steps=2)


def assert_close(a, b):
    """To rounding."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def epochs(times, sizes=(5, 5, 2)):
    """Batches of those sizes over and over, every datum once an epoch."""
    for _ in range(times):
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            rows = np.arange(end - size, end)
            yield vj.Batch(X[rows], rows)


def test_uneven_batches_are_the_steps_of_a_loop_by_hand():
    """The last batch of an epoch has two rows, each of which stands for six: N / B follows."""
    settings = {"num_steps": 6, "chunk_size": 4, "record_every": 1}
    result = vj.fit(KEY, ROWS, TABLE, epochs(2), **settings)
    state, step, losses = ROWS.init(KEY, TABLE), jax.jit(ROWS.step), []
    for number, batch in enumerate(epochs(2)):
        state, info = step(step_key(KEY, jnp.int32(number)), state, batch)
        losses.append(info.loss)
    np.testing.assert_allclose(result.history.loss, losses, rtol=1e-5)
    assert_close(result.params, ROWS.params(state))
    filled = [vj.Batch(X[rows], rows) for rows in (np.arange(5), np.arange(5, 10), np.arange(7, N))]
    other = vj.fit(KEY, ROWS, TABLE, iter(filled * 2), **settings)
    with pytest.raises(AssertionError):
        assert_close(other.params.theta, result.params.theta)


def test_an_iterator_is_read_ahead_but_not_beyond_the_last_step():
    taken, seen = [], []

    def batches():
        for batch in epochs(10, (6, 6)):
            taken.append(len(taken))
            yield batch

    vj.fit(
        KEY,
        SHARED,
        START,
        batches(),
        num_steps=7,
        chunk_size=3,
        callbacks=[lambda progress: seen.append((progress.step, len(taken)))],
    )
    assert seen == [(3, 6), (6, 7), (7, 7)]


def test_an_error_of_an_iterator_costs_no_step_before_it():
    """It comes in the midst of the third chunk, after two batches that are used."""
    good = [*epochs(3, (6, 6))]

    def breaking():
        yield from good[:5]
        raise OSError("the disk is gone")

    steps = []
    with pytest.raises(vj.BatchError, match="after step 5: the disk is gone") as error:
        vj.fit(
            KEY,
            ROWS,
            TABLE,
            breaking(),
            num_steps=6,
            chunk_size=2,
            callbacks=[lambda progress: steps.append(progress.step)],
        )
    assert steps == [2, 4, 5]
    assert isinstance(error.value.__cause__, OSError)
    first = error.value.result
    rest = vj.fit(KEY, ROWS, None, iter(good[5:]), num_steps=1, resume=first, chunk_size=2)
    whole = vj.fit(KEY, ROWS, TABLE, iter(good), num_steps=6, chunk_size=2)
    assert_same(whole.carry, rest.carry)
    with pytest.raises(OSError, match="at once"):  # nothing was done yet: the error as it is
        vj.fit(KEY, ROWS, TABLE, (_ for _ in [1] if _raise(OSError("at once"))), num_steps=1)


def _raise(error):
    raise error


class Counting:
    """An iterator that can tell its place: how many batches it has given."""

    def __init__(self):
        self.batches, self.number = [*epochs(2)], 0

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        return self.batches[self.number - 1]

    def get_state(self):
        return {"number": self.number}


def test_a_chunk_knows_the_iterators_place_after_its_own_batches():
    """One of another size, already read, belongs to the next chunk."""
    take = from_iterator(Counting(), SHARED, 4)
    chunks = [take(0, 4) for _ in range(3)]
    assert [chunk.size for chunk in chunks] == [2, 1, 2]
    assert [chunk.place["number"] for chunk in chunks] == [2, 3, 5]
    assert [chunk.data.x.shape[:2] for chunk in chunks] == [(2, 5), (1, 2), (2, 5)]


def test_a_run_with_checkpoints_goes_on_at_the_iterators_place(tmp_path):
    """Though a batch of another size, and a chunk, had been read ahead when it was ended."""
    settings = {"num_steps": 6, "chunk_size": 4}
    whole = vj.fit(KEY, ROWS, TABLE, epochs(2), **settings)
    for last in (2, 3):

        def ended(progress, last=last):
            if progress.step == last:
                raise RuntimeError("the process ends")

        settings["checkpoint"] = vj.Checkpoint(tmp_path / f"{last}", every_seconds=0.0)
        with pytest.raises(RuntimeError, match="ends"):
            vj.fit(KEY, ROWS, TABLE, vj.Replay(lambda: epochs(2)), callbacks=[ended], **settings)
        rest = vj.fit(KEY, ROWS, TABLE, vj.Replay(lambda: epochs(2)), **settings)
        assert_same((whole.carry, whole.history), (rest.carry, rest.history))


def test_grain_is_an_iterator():
    """Batches of a Grain pipeline, of which the last is short."""
    grain = pytest.importorskip("grain.python")
    rows = grain.MapDataset.range(N).map(lambda i: vj.Batch(X[i], np.int32(i)))
    loader = rows.shuffle(seed=1).batch(5).repeat(2)
    result = vj.fit(KEY, ROWS, TABLE, iter(loader.to_iter_dataset()), num_steps=100)
    assert result.num_steps == 6
    state = ROWS.init(KEY, TABLE)
    for number, batch in enumerate(loader.to_iter_dataset()):
        state, _ = jax.jit(ROWS.step)(step_key(KEY, jnp.int32(number)), state, batch)
    assert_close(result.params, ROWS.params(state))
