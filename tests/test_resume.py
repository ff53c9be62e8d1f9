"""A run that is killed and started again ends with the bits of one that never stopped, and what is
not that run is refused.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import killed_runs
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from fit_problems import ADAM, DATA, GLOBAL, KEY, LOCAL, ROWS, SHARED, START, TABLE, N, bad_data

import vijax as vj
from vijax.optimize import container

HERE = pathlib.Path(__file__).parent
LAST_STEP = killed_runs.CHUNK * killed_runs.CHUNKS


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A process that has imported everything and forks one that works per line."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    process = subprocess.Popen(
        [sys.executable, str(HERE / "killed_runs.py")],
        env=os.environ | cache | {"PYTHONPATH": f"{HERE.parent}:{HERE}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.stdout.close()
    assert process.wait(timeout=60) == 0


def begin(server, name, folder):
    server.stdin.write(f"{name},{folder}\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def kill(server, child):
    os.kill(child, signal.SIGKILL)
    assert int(server.stdout.readline()) == signal.SIGKILL


def newest(folder):
    return max((path.name for path in folder.glob("*.run")), default="")


@pytest.mark.parametrize(("name", "kills"), [("rows drawn", 6), ("iterator", 5)])
def test_a_run_killed_again_and_again_has_the_bits_of_one_that_never_stopped(
    name, kills, server, tmp_path
):
    rng, folder, places = random.Random(7), tmp_path / "run", []
    for number in range(kills):
        before, child = newest(folder), begin(server, name, folder)
        if number % 4 == 3:  # at any moment: at its start, while it reads, while it compiles
            time.sleep(rng.uniform(0.0, 0.6))
        else:
            while newest(folder) <= before:  # while it trains
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.04))
        kill(server, child)
        places.append(newest(folder))
    assert len(set(places)) >= kills // 2 and "" < places[-1] < container.name_of(LAST_STEP)
    whole, seen = killed_runs.fit(name, None)
    last, remembered = killed_runs.fit(name, vj.Checkpoint(folder))
    assert_same_bits(
        (whole.params, whole.state, whole.history), (last.params, last.state, last.history)
    )
    assert remembered == seen and len(seen) == killed_runs.CHUNKS
    assert last.num_steps == LAST_STEP and not last.interrupted
    found = vj.restore(folder, last.algorithm, killed_runs.RUNS[name]()[1])
    assert_same_bits(found.state, last.state)


def test_a_writer_that_is_killed_leaves_whole_files_alone(server, tmp_path):
    rng = random.Random(3)
    for _ in range(5):
        child, before = begin(server, "write", tmp_path), newest(tmp_path)
        while newest(tmp_path) == before:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.02))
        kill(server, child)
        files = container.newest_first(tmp_path)
        assert 1 <= len(files) <= 3
        for path in files:
            told, numbers = container.read(path)
            assert path.name == container.name_of(told["step"])
            assert np.all(numbers == told["step"]) and numbers.shape == (400_000,)
    # What a killed writer left half done is cleared away by the next run
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"{container.name_of(3)}.77.part").write_bytes(b"half")
    short(tmp_path / "run")
    assert sorted(path.suffix for path in (tmp_path / "run").iterdir()) == [".run", ".run"]


def short(folder, **settings):
    """Twelve steps of the global problem, kept at every chunk of three."""
    given = dict(num_steps=12, batch_size=4, chunk_size=3, record_every=3) | settings
    algorithm, params = given.pop("algorithm", SHARED), given.pop("params", START)
    key, data = given.pop("key", KEY), given.pop("data", DATA)
    where = vj.Checkpoint(folder, every_seconds=0.0)
    return vj.fit(key, algorithm, params, data, checkpoint=where, **given)


def without(**settings):
    given = dict(num_steps=12, batch_size=4, chunk_size=3, record_every=3) | settings
    return vj.fit(KEY, SHARED, START, DATA, **given)


def assert_same_run(one, other):
    assert_same_bits(
        (one.params, one.state, one.history), (other.params, other.state, other.history)
    )


@pytest.mark.parametrize(("algorithm", "params"), [(SHARED, START), (ROWS, TABLE)])
def test_keeping_changes_no_bit_and_a_finished_run_is_read_not_run(algorithm, params, tmp_path):
    """Steps of a table work in place, on the very buffers that were written."""
    given = dict(num_steps=12, batch_size=4, chunk_size=3, record_every=3)
    plain = vj.fit(KEY, algorithm, params, DATA, **given)
    kept = short(tmp_path / "run", algorithm=algorithm, params=params)
    assert_same_run(kept, plain)
    names = [path.name for path in container.newest_first(tmp_path / "run")]
    assert names == [container.name_of(12), container.name_of(9)]
    steps = []
    again = short(tmp_path / "run", algorithm=algorithm, params=params, callbacks=[steps.append])
    assert_same_run(again, plain)
    assert not steps
    longer = short(tmp_path / "run", algorithm=algorithm, params=params, num_steps=15)
    assert_same_run(longer, vj.fit(KEY, algorithm, params, DATA, **given | {"num_steps": 15}))


def test_num_steps_counts_from_the_start_that_was_given(tmp_path):
    whole, first = without(), without(num_steps=5)
    rest = dict(params=None, num_steps=7, resume=first)
    assert_same_run(short(tmp_path / "rest", **rest), whole)
    again = short(tmp_path / "rest", **rest)  # nothing is left to do
    assert again.num_steps == 12
    short(tmp_path / "run", num_steps=9)
    with pytest.raises(ValueError, match="at step 9, but this call goes from step 0 to 6"):
        short(tmp_path / "run", num_steps=6)
    with pytest.raises(ValueError, match="at step 9, but this call goes from step 12"):
        short(tmp_path / "run", params=None, num_steps=3, resume=whole)
    assert newest(tmp_path / "run") == container.name_of(9)


def scaled(estimator, factor):
    """The same but for a number inside of the model: all names and shapes are equal."""

    def estimate(key, params, state, batch):
        seen, state = estimator.estimate(key, params, state, batch)
        return seen._replace(loss=factor * seen.loss), state

    return estimator._replace(estimate=estimate)


OTHERS = {
    "another algorithm": (dict(algorithm=ROWS, params=TABLE), "algorithm was descent"),
    "another optimiser": (
        dict(algorithm=vj.descent(GLOBAL, optax.sgd(0.1))),
        "algorithm was descent",
    ),
    "another rate": (dict(algorithm=vj.descent(GLOBAL, optax.adam(0.06))), "a step computes"),
    "another model": (
        dict(algorithm=vj.descent(scaled(GLOBAL, 2.0), optax.adam(0.05))),
        "a step computes",
    ),
    "another average": (dict(averaging=vj.algorithms.since(3)), "algorithm was descent"),
    "another key": (dict(key=jax.random.key(6)), "key was"),
    "another start": (
        dict(params=jax.tree.map(lambda leaf: leaf + 0.01, START)),
        "started from have other values",
    ),
    "another type": (
        dict(params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), START)),
        "state was float32",
    ),
    "another batch": (dict(batch_size=6), "batch_size was 4 and is 6"),
    "another history": (dict(record_every=2), "record_every was 3 and is 2"),
    "other data": (dict(data=DATA.astype(jnp.bfloat16)), "data was float32"),
    "other columns": (dict(data=DATA[:, :1]), "data was"),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(name, tmp_path):
    settings, what = OTHERS[name]
    first = short(tmp_path, num_steps=6)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"checkpoint of another run: .*{what}"):
        short(tmp_path, **settings)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert_same_run(short(tmp_path), without())
    assert first.num_steps == 6


def test_a_start_that_another_machine_rounds_otherwise_is_the_same(tmp_path):
    start = START._replace(phi=jax.tree.map(lambda leaf: leaf + 1.0, START.phi))
    short(tmp_path, num_steps=6, params=start)
    rounded = jax.tree.map(lambda leaf: leaf * (1.0 + 2.0**-22), start)
    assert short(tmp_path, params=rounded).num_steps == 12


def test_another_version_is_refused_and_may_be_gone_on_from_on_purpose(tmp_path, monkeypatch):
    short(tmp_path, num_steps=6)
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    with pytest.raises(ValueError, match=r"jax was .* and is 0\.0\.1"):
        short(tmp_path)
    found = vj.restore(tmp_path, SHARED, START)
    faster = vj.descent(GLOBAL, optax.adam(0.2))
    on = vj.fit(KEY, faster, None, DATA, num_steps=6, batch_size=4, resume=found)
    assert on.num_steps == 12


def test_a_number_of_rows_other_than_before_is_refused(tmp_path):
    short(tmp_path, num_steps=6)
    guide = vj.guides.shared(vj.families.diag_normal(2))
    model = vj.models.bayes_model(
        lambda theta, w: -jnp.sum(w**2), lambda theta, w, x: -jnp.sum((x - w) ** 2)
    )
    est = vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=N - 1)
    with pytest.raises(ValueError, match="num_data was 12 and is 11"):
        short(tmp_path, algorithm=vj.descent(est, optax.adam(0.05)), data=DATA[: N - 1])


class Batches:
    """Rows in turn, and where it is."""

    def __init__(self, at=0):
        self.at = at

    def __iter__(self):
        return self

    def __next__(self):
        rows = (np.arange(4) + 4 * self.at) % N
        self.at += 1
        return vj.Batch(np.asarray(DATA)[rows], rows)

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def test_an_iterator_is_put_back_to_its_place(tmp_path):
    given = dict(batch_size=None)
    whole = vj.fit(KEY, SHARED, START, Batches(), num_steps=12, chunk_size=3, record_every=3)
    stop = [lambda seen: seen.step >= 6]
    cut = short(tmp_path, data=Batches(), callbacks=stop, **given)
    assert cut.num_steps == 6 and cut.interrupted
    assert_same_run(short(tmp_path, data=Batches(), **given), whole)
    elsewhere = short(tmp_path / "new", data=Batches(at=1), **given)
    with pytest.raises(AssertionError):
        assert_same_run(elsewhere, whole)  # the check would see a wrong place
    replay = vj.Replay(Batches)
    assert_same_run(short(tmp_path / "replay", data=replay, num_steps=7, **given), cut_at_7())
    assert replay.get_state() == 7
    assert_same_run(short(tmp_path / "replay", data=vj.Replay(Batches), **given), whole)


class Uneven(Batches):
    """Two batches of five rows, then one of two."""

    def __next__(self):
        first = [0, 5, 10][self.at % 3]
        rows = np.arange(first, min(first + 5, N))
        self.at += 1
        return vj.Batch(np.asarray(DATA)[rows], rows)


class Whole(Batches):
    """All rows, every time."""

    def __next__(self):
        self.at += 1
        return vj.Batch(np.asarray(DATA), np.arange(N))


def test_the_same_iterator_may_be_given_again_and_again(tmp_path):
    """It stands at a short batch then, or ahead of what was kept."""
    given, source = dict(batch_size=None), Uneven()
    whole = vj.fit(KEY, SHARED, START, Uneven(), num_steps=12, chunk_size=3, record_every=3)
    for stop in (2, 5, 7, 12):
        last = short(tmp_path, data=source, num_steps=stop, **given)
    assert_same_run(last, whole)
    with pytest.raises(ValueError, match=r"data was float32\[5, 2\] .* is float32\[4, 2\]"):
        short(tmp_path, data=Batches(), num_steps=15, **given)
    with pytest.raises(ValueError, match="origin was {'at': 0} and is None"):
        short(tmp_path, num_steps=15, **given)
    short(tmp_path / "array", num_steps=3, **given)
    with pytest.raises(ValueError, match="origin was None and is"):
        short(tmp_path / "array", data=Whole(), **given)


class Live(Batches):
    """It gives its own dict away, and goes on changing it."""

    def __init__(self):
        self.state = {"at": 0}

    at = property(lambda self: self.state["at"], lambda self, value: self.state.update(at=value))

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


def test_a_state_that_changes_after_it_was_told_costs_no_batch(tmp_path):
    given = dict(batch_size=None)
    whole = vj.fit(KEY, SHARED, START, Batches(), num_steps=12, chunk_size=3, record_every=3)
    assert_same_run(
        short(tmp_path, data=Live(), num_steps=6, **given),
        short(tmp_path / "plain", data=Batches(), num_steps=6, **given),
    )
    assert_same_run(short(tmp_path, data=Live(), **given), whole)


def test_an_iterator_that_is_not_made_anew_or_is_shorter_than_before_is_refused(tmp_path):
    there = Batches()
    with pytest.raises(ValueError, match="returned the same iterator twice"):
        short(tmp_path / "there", data=vj.Replay(lambda: there), batch_size=None)

    def first(number):
        return vj.Replay(
            lambda: [batch for _, batch in zip(range(number), Batches(), strict=False)]
        )

    assert short(tmp_path, data=first(6), batch_size=None).num_steps == 6
    with pytest.raises(ValueError, match="gave 2 batches, but the place to go on from is after 6"):
        short(tmp_path, data=first(2), batch_size=None)


def cut_at_7():
    return vj.fit(KEY, SHARED, START, Batches(), num_steps=7, chunk_size=3, record_every=3)


def test_an_iterator_that_cannot_tell_its_place_is_refused_before_it_is_too_late(tmp_path):
    with pytest.raises(TypeError, match=r"generator, which cannot tell its place.*vijax\.Replay"):
        short(
            tmp_path / "run",
            data=(batch for batch in [vj.Batch(DATA, jnp.arange(N))]),
            batch_size=None,
        )
    assert not (tmp_path / "run").exists()


class Odd(list):
    """A callback whose state cannot be written."""

    def __call__(self, progress):
        self.append(progress.step)

    def get_state(self):
        return {"a set": {1, 2}}

    def set_state(self, state):
        raise AssertionError


def test_a_state_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    odd = Odd()
    with pytest.raises(TypeError, match="get_state.. of the iterator or of a callback"):
        short(tmp_path, callbacks=[odd])
    assert not odd and not list(tmp_path.iterdir())


def test_a_run_that_a_callback_stopped_asks_it_again(tmp_path):
    """One that stops by what it sees stops at the same step; one by the clock goes on."""
    early = [lambda seen: seen.step >= 6]
    assert short(tmp_path, callbacks=early).num_steps == 6
    again = short(tmp_path, callbacks=early)
    assert again.num_steps == 6 and again.interrupted
    assert_same_run(short(tmp_path, callbacks=[lambda seen: False]), without())


class Count:
    """A callback that remembers how often it was called, in a dict."""

    def __init__(self):
        self.calls = 0

    def __call__(self, progress):
        self.calls += 1

    def get_state(self):
        return {"calls": self.calls}

    def set_state(self, state):
        self.calls = state["calls"]


class List(Count):
    """In a list."""

    def get_state(self):
        return [self.calls]

    def set_state(self, state):
        (self.calls,) = state


def test_callbacks_are_told_apart(tmp_path):
    short(tmp_path, callbacks=[Count(), List()])
    with pytest.raises(ValueError, match=r"\['Count', 'List'\], but there are \['List', 'Count'\]"):
        short(tmp_path, callbacks=[List(), Count()])
    both = [Count(), List()]
    short(tmp_path, callbacks=both)
    assert [one.calls for one in both] == [4, 4]


def test_a_start_whose_numbers_changed_places_is_another_run(tmp_path):
    def start(first, second):
        loc = jnp.array([first, second])
        return START._replace(phi={"w": {**START.phi["w"], "loc": loc}})

    short(tmp_path, params=start(1.0, 2.0))
    with pytest.raises(ValueError, match="the parameters that it started from"):
        short(tmp_path, params=start(2.0, 1.0))


def test_results_saved_beside_checkpoints_are_not_taken_for_some(tmp_path):
    where = vj.Checkpoint(tmp_path)
    vj.save(tmp_path / "best.run", short(tmp_path, num_steps=6))
    assert where.step == 6
    assert_same_run(short(tmp_path), without())
    assert_same_bits(vj.restore(tmp_path, SHARED, START).state, without().state)
    assert vj.restore(tmp_path / "best.run", SHARED, START).num_steps == 6


def test_a_file_of_another_byte_order_is_kept_too(tmp_path):
    np.save(tmp_path / "x.npy", np.asarray(DATA).astype(">f4"))
    data = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_same_run(short(tmp_path / "run", data=data), without())


def test_the_state_before_a_bad_step_is_kept(tmp_path):
    with pytest.raises(vj.NonFiniteError) as bad:
        short(tmp_path, data=bad_data())
    found = vj.restore(tmp_path, SHARED, START)
    assert_same_bits(found.state, bad.value.result.state)
    assert short(tmp_path).num_steps == 12  # with better data


def test_random_keys_in_a_state_come_back_as_keys(tmp_path):
    noisy = vj.descent(
        GLOBAL, optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(3)), optax.sgd(0.1))
    )
    whole = vj.fit(KEY, noisy, START, DATA, num_steps=12, batch_size=4, chunk_size=3)
    short(tmp_path, algorithm=noisy, num_steps=6, record_every=10)
    last = short(tmp_path, algorithm=noisy, record_every=10)
    assert_same_bits(whole.params, last.params)


def test_what_was_spread_over_devices_comes_back_to_them(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    data, params = jax.device_put(DATA, rows), jax.device_put(START, everywhere)
    given = dict(data=data, params=params)
    short(tmp_path, num_steps=6, **given)
    last = short(tmp_path, **given)
    assert all(len(leaf.devices()) == 4 for leaf in jax.tree.leaves(last.params))
    plain = dict(num_steps=12, batch_size=4, chunk_size=3, record_every=3)
    assert_same_run(last, vj.fit(KEY, SHARED, params, data, **plain))


def test_the_file_of_a_table_is_put_back_to_where_the_checkpoint_is(tmp_path):
    """It is of the step that the process died in."""
    rows = vj.rowwise.on_host(vj.rowwise.lazy(ADAM), path=str(tmp_path / "table.npy"))
    algorithm = vj.descent(LOCAL, ADAM, rows=rows)
    given = dict(algorithm=algorithm, params=TABLE)
    whole = vj.fit(KEY, ROWS, TABLE, DATA, num_steps=12, batch_size=4, chunk_size=3, record_every=3)

    def die(progress):
        if progress.step == 9:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        short(tmp_path / "run", callbacks=[die], **given)
    assert newest(tmp_path / "run") == container.name_of(6)
    with pytest.raises(ValueError, match="batch_size was 4 and is 6"):
        short(tmp_path / "run", batch_size=6, **given)
    last = short(tmp_path / "run", **given)
    assert_same_bits(whole.params, jax.tree.map(jnp.asarray, last.params))
    found = vj.restore(tmp_path / "run", algorithm, TABLE)
    assert_same_bits(found.state.packed.words, np.asarray(last.state.packed.words))
    words = found.state.packed.words
    assert isinstance(words, np.ndarray)  # it was never whole on the device
