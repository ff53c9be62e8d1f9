"""A run on disk: the same bits after it, whole or not at all, and of nothing else."""

import jax
import numpy as np
import optax
import pytest
from checks import assert_same_bits
from fit_problems import DATA, KEY, ROWS, SHARED, START, TABLE

import vijax as vj


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
        with pytest.raises(ValueError, match=r"no result that vijax\.save wrote whole"):
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
