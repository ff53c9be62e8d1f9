"""A run on disk: the same bits after it, whole or not at all, and of nothing else."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess

import jax
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from fit_problems import DATA, KEY, ROWS, SHARED, START, TABLE

import vijax as vj
from vijax.optimize import container


@pytest.mark.parametrize(("algorithm", "params"), [(SHARED, START), (ROWS, TABLE)])
def test_a_restored_run_goes_on_with_the_same_bits(algorithm, params, tmp_path):
    whole = vj.fit(KEY, algorithm, params, DATA, num_steps=12, batch_size=4)
    first = vj.fit(KEY, algorithm, params, DATA, num_steps=5, batch_size=4)
    vj.save(tmp_path / "run", first)
    found = vj.restore(tmp_path / "run", algorithm, params)
    assert_same_bits((first.state, first.history), (found.state, found.history))
    last = vj.fit(KEY, algorithm, None, DATA, num_steps=7, batch_size=4, resume=found)
    assert_same_bits(
        (whole.params, whole.state, whole.history), (last.params, last.state, last.history)
    )
    assert last.num_steps == 12 and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_callback_may_save_and_the_file_is_always_a_whole_one(tmp_path):
    path = tmp_path / "run"

    def keep(progress):
        vj.save(path, progress.result)

    given = dict(num_steps=9, chunk_size=3, callbacks=[keep])
    result = vj.fit(KEY, SHARED, START, DATA, **given)
    assert_same_bits(result.params, vj.restore(path, SHARED, START).params)


def test_a_write_that_fails_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "run"
    first = vj.fit(KEY, SHARED, START, DATA, num_steps=2)
    vj.save(path, first)

    def full(*given):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        vj.save(path, vj.fit(KEY, SHARED, None, DATA, num_steps=2, resume=first))
    assert vj.restore(path, SHARED, START).num_steps == 2
    assert [found.name for found in tmp_path.iterdir()] == ["run"]


def test_what_is_not_that_run_is_refused(tmp_path):
    path = tmp_path / "run"
    vj.save(path, vj.fit(KEY, SHARED, START, DATA, num_steps=2))
    with pytest.raises(ValueError, match="made with algorithm"):
        vj.restore(path, ROWS, TABLE)
    wide = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), START)
    with pytest.raises(ValueError, match="other than those of this algorithm"):
        vj.restore(path, SHARED, wide)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"no result"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"no result that this version"):
            vj.restore(path, SHARED, START)
    with pytest.raises(FileNotFoundError):
        vj.restore(tmp_path / "elsewhere", SHARED, START)


def test_old_style_keys_are_kept_too(tmp_path):
    key = jax.random.PRNGKey(3)
    first = vj.fit(key, SHARED, START, DATA, num_steps=2)
    vj.save(tmp_path / "run", first)
    found = vj.restore(tmp_path / "run", SHARED, START)
    assert vj.fit(key, SHARED, None, DATA, num_steps=1, resume=found).num_steps == 3


def test_the_estimators_running_means_are_kept(tmp_path):
    model = vj.models.latent_model(lambda key: (), lambda theta, z, x: -((z[0] - x[0]) ** 2))
    rule = vj.rules.score(vj.baselines.moving_average())
    guide = vj.guides.per_datapoint(vj.families.bernoulli(1), len(DATA))
    est = vj.estimator(model, guide, rules=rule, num_samples=2, num_data=len(DATA))
    algorithm, params = vj.descent(est, optax.sgd(0.1)), est.init_params(KEY)
    result = vj.fit(KEY, algorithm, params, DATA, num_steps=3)
    vj.save(tmp_path / "run", result)
    found = vj.restore(tmp_path / "run", algorithm, params)
    assert_same_bits(result.state.estimator, found.state.estimator)
    assert float(found.state.estimator["z"]["weight"]) > 0.0


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of two checkpoints, of steps 3 and 6, and what they are of."""
    folder = tmp_path_factory.mktemp("kept")
    result = run(folder, num_steps=6)
    return folder, result


def run(folder, callbacks=(), num_steps=6):
    return vj.fit(
        KEY,
        SHARED,
        START,
        DATA,
        num_steps=num_steps,
        chunk_size=3,
        callbacks=callbacks,
        checkpoint=vj.Checkpoint(folder, every_seconds=0.0),
    )


def copied(kept, tmp_path):
    return pathlib.Path(shutil.copytree(kept[0], tmp_path / "run"))


def places(size):
    """Of bytes of a file: all of its beginning, some of its middle, all of its end."""
    return [*range(64), *range(64, size - 64, size // 40), *range(size - 64, size)]


def test_one_bit_that_is_not_as_it_was_written_is_seen(kept, tmp_path):
    whole = container.newest_first(kept[0])[0].read_bytes()
    path = tmp_path / "run"
    for at in places(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="cut short or changed on the disk"):
            vj.restore(path, SHARED, START)
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match="cut short or changed on the disk"):
            vj.restore(path, SHARED, START)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="cut short or changed on the disk"):
        vj.restore(path, SHARED, START)
    path.write_bytes(whole)
    assert_same_bits(vj.restore(path, SHARED, START).state, kept[1].state)


def test_a_damaged_checkpoint_is_put_aside_for_the_one_before_it(kept, tmp_path):
    folder = copied(kept, tmp_path)
    last, first = container.newest_first(folder)
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="no result that .* Going on from .*000003"):
        assert vj.restore(folder, SHARED, START).num_steps == 3
    with pytest.warns(UserWarning, match="no result that .* Going on from .*000003"):
        result = run(folder)
    assert_same_bits(result.params, kept[1].params)
    assert last.with_suffix(".damaged").exists()
    for path in container.newest_first(folder):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in .* is whole.*Remove them"):
        run(folder)
    with pytest.raises(ValueError, match="no checkpoint in .* is whole"):
        vj.restore(folder, SHARED, START)
    assert [path.read_bytes() for path in container.newest_first(folder)] == [b"", b""]


def test_how_often_a_run_is_kept_is_a_matter_of_seconds(tmp_path):
    steps = []

    def watch(progress):
        steps.append([path.name for path in container.newest_first(tmp_path)])

    where = vj.Checkpoint(tmp_path)
    assert where.step == 0 and where.every_seconds == 60.0
    vj.fit(
        KEY, SHARED, START, DATA, num_steps=12, chunk_size=3, callbacks=[watch], checkpoint=where
    )
    assert steps == [[container.name_of(0)]] * 4 and where.step == 12


def test_ctrl_c_keeps_what_there_is(tmp_path):
    def press(progress):
        if progress.step == 6:
            signal.raise_signal(signal.SIGINT)

    where = vj.Checkpoint(tmp_path)
    given = dict(num_steps=12, chunk_size=3)
    cut = vj.fit(KEY, SHARED, START, DATA, callbacks=[press], checkpoint=where, **given)
    assert cut.interrupted and cut.num_steps == where.step == 6
    steps = []
    last = vj.fit(KEY, SHARED, START, DATA, callbacks=[steps.append], checkpoint=where, **given)
    assert len(steps) == 2  # it was no callback that stopped it: none is asked again
    plain = vj.fit(KEY, SHARED, START, DATA, **given)
    assert_same_bits((plain.params, plain.history), (last.params, last.history))


def test_a_folder_of_nothing_and_a_file_that_is_no_run_of_a_checkpoint(kept, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint of vijax"):
        vj.restore(tmp_path, SHARED, START)
    vj.save(tmp_path / container.name_of(6), kept[1])
    with pytest.raises(ValueError, match=r"written by vijax\.save"):
        run(tmp_path)
    with pytest.raises(ValueError, match="seconds of at least 0"):
        vj.fit(KEY, SHARED, START, DATA, num_steps=1, checkpoint=vj.Checkpoint(tmp_path, -1.0))
    with pytest.raises(ValueError, match=r"write vijax\.Checkpoint"):
        vj.fit(KEY, SHARED, START, DATA, num_steps=1, checkpoint=str(tmp_path))


def test_a_folder_that_cannot_be_written_is_an_error_before_the_first_step(tmp_path):
    """Below a file there is no folder, for the superuser neither."""
    (tmp_path / "file").write_text("")
    steps = []
    with pytest.raises(OSError, match="checkpoints cannot be written into .* nothing was begun"):
        run(tmp_path / "file" / "run", [steps.append])
    with pytest.raises(OSError, match="checkpoints cannot be written into"):
        run(tmp_path / "file", [steps.append])
    assert not steps
    with pytest.raises(OSError):
        vj.save(tmp_path / "file" / "run", vj.fit(KEY, SHARED, START, DATA, num_steps=1))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for the superuser")
def test_a_read_only_folder_is_an_error_before_the_first_step(kept, tmp_path):
    folder = copied(kept, tmp_path)
    folder.chmod(0o500)
    for where in (folder, folder / "run"):
        with pytest.raises(OSError, match="checkpoints cannot be written into"):
            run(where, num_steps=9)
    folder.chmod(0o700)
    assert run(folder).num_steps == 6


@contextlib.contextmanager
def no_file_above(size):
    """Writes beyond so many bytes fail, as on a full disk, for this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_costs_no_step_and_no_checkpoint(tmp_path):
    plain = vj.fit(KEY, SHARED, START, DATA, num_steps=12, chunk_size=3)
    folder, limits = tmp_path / "run", contextlib.ExitStack()

    def fill(progress):
        if progress.step == 6:
            limits.enter_context(no_file_above(1000))

    with limits, pytest.warns(UserWarning) as seen:
        result = run(folder, [fill], num_steps=12)
    assert_same_bits((result.params, result.history), (plain.params, plain.history))
    words = [str(one.message) for one in seen]
    assert len(words) == 2  # one when it begins, one at the end
    assert "step 6 could not be written" in words[0] and "File too large" in words[0]
    assert "ended at step 12, but the last checkpoint" in words[1] and "of step 3" in words[1]
    assert [path.name for path in container.newest_first(folder)] == [
        container.name_of(3),
        container.name_of(0),
    ]
    assert len(list(folder.iterdir())) == 2  # nothing half written
    assert_same_bits(run(folder, num_steps=12).params, plain.params)
    with no_file_above(1000), pytest.raises(OSError, match="nothing was begun.*room"):
        run(tmp_path / "new")


def test_a_disk_that_has_room_again_is_used_again(tmp_path):
    limits = contextlib.ExitStack()

    def fill(progress):
        if progress.step == 6:
            limits.enter_context(no_file_above(1000))
        if progress.step == 9:
            limits.close()

    with pytest.warns(UserWarning, match="step 6 could not be written"):
        run(tmp_path, [fill], num_steps=12)
    assert vj.restore(tmp_path, SHARED, START).num_steps == 12


def test_a_real_disk_that_is_full(tmp_path):
    """One of 64 KiB, where it may be mounted; a checkpoint takes about 2 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a disk here")
    try:

        def fill(progress):
            if progress.step == 6:
                with contextlib.suppress(OSError), open(disk / "other", "wb") as file:
                    while True:
                        file.write(b"0" * 512)
                        file.flush()

        with pytest.warns(UserWarning) as seen:
            result = run(disk / "run", [fill], num_steps=12)
        assert "No space left" in str(seen[0].message) and len(seen) == 2
        found = vj.restore(disk / "run", SHARED, START)
        assert (found.num_steps, result.num_steps) == (3, 12)
        (disk / "other").unlink()
        assert_same_bits(run(disk / "run", num_steps=12).params, result.params)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
