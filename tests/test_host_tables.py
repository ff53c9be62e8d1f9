"""Tables on the host: the same bits as on the device, whatever ends a run; and files that are
somebody else's, moved on, half written, or without room.
"""

import os
import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit_problems import ADAM, KEY, D, assert_same, log_local

import vijax as vj
from vijax import rowwise
from vijax.host import BLOCK_ROWS, Place
from vijax.optimize.minibatch import rows_of_step
from vijax.optimize.tables import entered, left

N = 60
DATA = jax.random.normal(jax.random.key(1), (N, D)) + 1.0
X = np.asarray(DATA)
SETTINGS = {"batch_size": 5, "chunk_size": 4, "record_every": 2}  # 20 of 60 rows in a chunk


def estimator():
    model = vj.models.latent_model(lambda key: jnp.zeros(D), log_local)
    guide = vj.guides.per_datapoint(vj.families.diag_normal(D), N)
    return vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=N)


LOCAL = estimator()
TABLE = LOCAL.init_params(jax.random.key(0))
RULES = {"adam": rowwise.adam(0.05), "lazy": rowwise.lazy(ADAM)}


def algorithm(rows="adam", path=None, local_steps=1, *, host=True):
    by_row = RULES[rows]
    by_row = rowwise.on_host(by_row, path) if host else by_row
    return vj.descent(LOCAL, ADAM, rows=by_row, local_steps=local_steps)


def run(chosen, data=DATA, num_steps=22, params=TABLE, **settings):
    return vj.fit(KEY, chosen, params, data, num_steps=num_steps, **(SETTINGS | settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all tests, since another path is another algorithm, compiled anew."""
    return tmp_path_factory.mktemp("tables")


@pytest.fixture
def path(folder):
    """Of a table's file, which does not exist."""
    found = folder / "table.npy"
    found.unlink(missing_ok=True)
    return found


@pytest.fixture(scope="module")
def on_device():
    """Runs with the table on the device, with adam."""
    return {steps: run(algorithm(host=False), num_steps=steps) for steps in (10, 22)}


@pytest.mark.parametrize(("rows", "local_steps"), [("adam", 3), ("lazy", 1)])
def test_a_table_on_the_host_gives_the_same_bits(rows, local_steps):
    """State, history and parameters, for every row optimiser and with an inner loop."""
    whole = run(algorithm(rows, local_steps=local_steps, host=False))
    here = run(algorithm(rows, local_steps=local_steps))
    assert_same((whole.carry, whole.history), unplaced(here))
    assert_same(whole.params, here.params)


def test_so_does_a_table_in_a_file(path, on_device):
    for chosen in (algorithm(), algorithm(path=path)):
        here = run(chosen)
        assert_same((on_device[22].carry, on_device[22].history), unplaced(here))
        assert_same(on_device[22].params, here.params)
        assert isinstance(here.params.phi["z"]["loc"], np.ndarray)
        in_file = isinstance(here.carry.state.packed.words, np.memmap)
        assert in_file == (chosen is not algorithm())


def unplaced(result):
    """Carry and history, as if the table were on the device."""
    packed = result.carry.state.packed
    state = result.carry.state._replace(packed=packed.replace(place=None))
    return result.carry._replace(state=state), result.history


def test_with_data_on_the_host_and_with_batches_of_an_iterator(on_device):
    """The rows of a chunk are those of its batches, wherever these come from."""
    assert_same(on_device[22].params, run(algorithm(), vj.on_host(DATA)).params)
    batches = [vj.Batch(X[rows], rows) for rows in drawn(10)]
    here = run(algorithm(), iter(batches), num_steps=10, batch_size=None)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        on_device[10].params,
        here.params,
    )


def drawn(num_steps):
    """The rows of the first steps."""
    rows = jax.vmap(lambda step: rows_of_step(KEY, step, num_data=N, batch_size=5))
    return np.asarray(rows(jnp.arange(num_steps)))


def test_the_comparison_catches_rows_that_are_not_written_back(on_device):
    chosen = algorithm()
    result = run(chosen, num_steps=10)
    stale = entered(result.carry, np.arange(5)[None], 1)
    stale.state.packed.words.at[:].set(0)  # a copy: nothing is written
    assert_same(on_device[10].params, run(chosen, num_steps=10).params)
    zeros = stale.state.packed.replace(words=jnp.zeros_like(stale.state.packed.words))
    back = left(stale._replace(state=stale.state._replace(packed=zeros)), result.carry)
    moved = result._replace(carry=back)
    with pytest.raises(AssertionError):
        assert_same(on_device[10].params.phi["z"]["loc"][:5], moved.params.phi["z"]["loc"][:5])
    assert_same(on_device[10].params.phi["z"]["loc"][5:], moved.params.phi["z"]["loc"][5:])


def test_a_run_is_resumed_and_may_change_sides(path, on_device):
    """From a file in that file, from memory as a copy, from the device and to it."""
    device, memory = algorithm(host=False), algorithm()
    file = algorithm(path=path)
    for first, then in ((file, file), (memory, memory), (device, memory), (memory, device)):
        part = run(first, num_steps=10)
        for _ in range(1 if first is file else 2):  # but for a file, resuming consumes nothing
            rest = run(then, num_steps=12, params=None, resume=part)
            assert_same(on_device[22].params, rest.params)
            assert_same(on_device[22].history, rest.history)


def test_a_file_that_went_on_is_not_taken_for_what_it_was(path):
    chosen = algorithm(path=path)
    part = run(chosen, num_steps=10)
    run(chosen, num_steps=2, params=None, resume=part)
    with pytest.raises(ValueError, match=r"went on to step 12, but the result is of step 10"):
        run(chosen, num_steps=2, params=None, resume=part)
    with pytest.raises(ValueError, match="went on to step 12"):
        _ = part.params
    np.load(path, mmap_mode="r+")[-1] = 0
    with pytest.raises(ValueError, match="left in the middle of a write"):
        _ = part.params


def test_a_file_of_somebody_else_is_not_written_over(path):
    path.write_text("a thesis")
    with pytest.raises(ValueError, match="exists, and is not one of 60 rows of 13 words"):
        run(algorithm(path=path))
    assert path.read_text() == "a thesis"
    path.unlink()
    part = run(algorithm(path=path), num_steps=4)
    with pytest.raises(ValueError, match="exists. It may be the table of another run"):
        run(algorithm(path=path), num_steps=4)
    assert_same(part.params, run(algorithm(), num_steps=4).params)  # nothing was lost
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="exists, and is not one of"):
        run(algorithm(path=path), num_steps=4)


def test_a_file_without_room_or_folder_is_an_error_at_once(path):
    """The whole file is reserved before the first step, under a limit as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError):
            run(algorithm(path=path))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not path.exists()
    with pytest.raises(OSError):
        run(algorithm(path=path.parent / "no folder" / "table.npy"))


def test_a_nan_leaves_the_last_good_state_on_the_host(path):
    """In the middle of a chunk; or the step is dropped and counted."""
    bad = DATA.at[7, 1].set(jnp.nan)
    file, device = algorithm(path=path), algorithm(host=False)
    with pytest.raises(vj.NonFiniteError, match=r"loc.* from rows \[7\]") as error:
        run(file, bad)
    with pytest.raises(vj.NonFiniteError) as plain:
        run(device, bad)
    here, there = error.value.result, plain.value.result
    assert str(error.value) == str(plain.value) and here.num_steps % 4
    assert_same((there.carry, there.history), unplaced(here))
    assert_same(there.params, here.params)
    rest = [
        run(one, num_steps=6, params=None, resume=part, data=DATA)
        for one, part in ((file, here), (device, there))
    ]
    assert_same(rest[0].params, rest[1].params)
    skipping = run(algorithm(), bad, skip_nonfinite=True)
    assert skipping.num_skipped == np.sum(drawn(22) == 7) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(skipping.params))
    assert_same(skipping.params.phi["z"]["loc"][7], TABLE.phi["z"]["loc"][7])


def test_ctrl_c_returns_what_there_is():
    def press(progress):
        if progress.step == 8:
            os.kill(os.getpid(), signal.SIGINT)

    result = run(algorithm(), num_steps=1000, callbacks=[press])
    assert result.interrupted and result.num_steps == 8
    assert_same(result.params, run(algorithm(host=False), num_steps=8).params)


def test_a_result_is_saved_and_restored(tmp_path, path, on_device):
    """Its words are an array as any other; the file is written anew from the saved one."""
    chosen = algorithm(path=path)
    vj.save(tmp_path / "run", run(chosen, num_steps=10))
    path.write_bytes(path.read_bytes())  # as another process finds it
    first = vj.restore(tmp_path / "run", chosen, TABLE)
    rest = run(chosen, num_steps=12, params=None, resume=first)
    assert_same(on_device[22].params, rest.params)


def test_a_run_with_a_folder_of_checkpoints_goes_on(tmp_path, path, on_device):
    """The very same call again, after the process was ended between two chunks."""
    chosen, seen = algorithm(path=path), []

    def ended(progress):
        seen.append(progress.step)
        if progress.step == 12:
            raise RuntimeError("the process ends")

    keep = {"checkpoint": vj.Checkpoint(tmp_path / "kept", every_seconds=0.0)}
    with pytest.raises(RuntimeError, match="ends"):
        run(chosen, callbacks=[ended], **keep)
    seen.clear()
    result = run(chosen, callbacks=[lambda progress: seen.append(progress.step)], **keep)
    assert seen[0] == 12
    assert_same(on_device[22].params, result.params)
    assert_same(on_device[22].history, result.history)


def test_tables_may_start_as_numpy_arrays_that_take_no_memory(on_device):
    row = jax.tree.map(lambda leaf: np.asarray(leaf)[0], TABLE.phi)
    phi = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (N, *leaf.shape)), row)
    start = TABLE._replace(phi=phi)
    assert_same(
        run(algorithm(host=False), params=start).params, run(algorithm(), params=start).params
    )


def test_a_table_of_many_blocks_is_packed_and_taken_apart_row_by_row(path):
    """The last block reaches back over rows that were done."""
    size = BLOCK_ROWS * 2 + 3
    table = {
        "a": np.arange(size * 2.0, dtype=np.float32).reshape(size, 2),
        "b": np.arange(size, dtype=np.int32),
    }
    for place in (Place(), Place(str(path))):
        packed = vj.rows.pack_at(lambda block: (block, block["a"] * 2.0), table, place)
        plain = vj.rows.pack(jax.tree.map(jnp.asarray, (table, table["a"] * 2.0)))
        assert_same(plain.words, packed.words)
        seen = []

        def apart(block, factor, seen=seen):
            seen.append(block.words.shape[0])
            return vj.rows.unpack(block)[1] * factor

        assert_same(vj.rows.unpack_at(apart, packed, 3.0), table["a"] * 6.0)
        assert seen == [BLOCK_ROWS]  # compiled once, for a block


def test_what_would_move_every_row_is_refused():
    with pytest.raises(TypeError, match="give a row optimiser"):
        rowwise.on_host("table.npy")
    with pytest.raises(ValueError, match="Write batch_size="):
        vj.fit(KEY, algorithm(), TABLE, DATA, num_steps=2)
    with pytest.raises(ValueError, match="Leave averaging out"):
        run(algorithm(), averaging=vj.algorithms.since(2))
    with pytest.raises(ValueError, match="num_data=60, but .* leading sizes"):
        run(algorithm(), DATA[:30])
    small = jax.tree.map(lambda leaf: leaf[:30], TABLE.phi)
    for chosen in (algorithm(), algorithm(host=False)):  # no row of which would be there
        with pytest.raises(ValueError, match="tables of .30. rows"):
            run(chosen, params=TABLE._replace(phi=small))
