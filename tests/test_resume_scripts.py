"""A script that was ended goes on with its results folder: the numbers are those of a run that was
never ended.
"""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from checks import assert_same_bits
from fit_problems import DATA, KEY, SHARED, START

import vijax as vj
from experiments.common import harness
from experiments.common.harness import Outcome
from experiments.compare import __main__ as compare
from experiments.compare.runs import load
from experiments.sbn import __main__ as sbn
from experiments.vae import __main__ as vae

ROOT = pathlib.Path(__file__).parent.parent
OF_TIME = ("seconds", "compil", "environment")


def untimed(value):
    """Metrics without what depends on the clock."""
    if isinstance(value, dict):
        return {
            name: untimed(inner)
            for name, inner in value.items()
            if not any(word in name for word in OF_TIME)
        }
    return value


def assert_same_folder(one, other):
    """Every number but times, bit for bit."""
    (_, metrics, arrays), (_, others, other_arrays) = harness.read(one), harness.read(other)
    assert metrics["status"] == "finished"
    np.testing.assert_equal(untimed(metrics), untimed(others))
    assert arrays.keys() == other_arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, other_arrays[name], err_msg=name)
    for name, table in harness.read_tables(one).items():
        columns = [column for column in table if "seconds" not in column]
        other_table = harness.read_tables(other)[name]
        np.testing.assert_array_equal(table[columns].values, other_table[columns].values)
    with np.load(one / "params.npz") as mine, np.load(other / "params.npz") as theirs:
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


VAE = ["--smoke", "--latent_dim=3", "--widths=8", "--max_scored=32"]


def run_vae(args):
    """`vae.main` without its figures."""
    config = harness.parse(vae.Config, "", args, smoke=vae.smoke_settings)
    return harness.execute("vae", config, vae.run, vae.summary, lambda folder: [])


def test_a_vae_that_was_killed_goes_on_with_its_folder(tmp_path):
    whole = run_vae([*VAE, f"--results_dir={tmp_path / 'whole'}"])
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.vae", *VAE, f"--results_dir={tmp_path / 'cut'}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def steps():
        return sorted(int(path.stem) for path in (tmp_path / "cut").rglob("seed_0/*.run"))

    end = time.monotonic() + 300.0
    while steps()[-1:] <= [57]:  # the second part of five is kept
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (folder,) = (tmp_path / "cut" / "vae").iterdir()
    assert 57 < steps()[-1] < 230
    assert load(folder).status == "running"
    told = compare.report(compare.run(compare.Config((str(whole), str(folder)))))
    assert "B is UNFINISHED: running" in told
    assert (folder / "summary.txt").read_text().startswith("UNFINISHED (running")
    assert run_vae([f"--resume={folder}"]) == folder
    assert_same_folder(folder, whole)
    assert not (folder / "checkpoints").exists()
    with pytest.raises(ValueError, match="that run is finished; there is nothing to go on with"):
        vae.main([f"--resume={folder}"])


def cut(train, kept):
    """The last of a training that is left after three parts and begun anew."""
    begun = train(kept)
    for _ in range(3):
        next(begun)
    begun.close()
    assert kept.step > 0
    *_, last = train(kept)
    return last


def test_the_rows_of_test_images_that_a_learning_curve_carries_on_come_back(tmp_path):
    given = [*VAE, "--guide=per_datapoint", "--epochs=4"]
    config = harness.parse(vae.Config, "", given, smoke=vae.smoke_settings)
    job = vae.build(config)
    held_out, learn = vae.held_out_fitter(config, job), vae.learner(config, job)

    def train(kept):
        return vae.train(KEY, config, job, learn, held_out, None, kept)

    *_, whole = train(None)
    last = cut(train, vj.Checkpoint(tmp_path))
    assert_same_bits(whole.params, last.params)
    curves = [[point._replace(seconds=0.0) for point in one.history] for one in (whole, last)]
    assert curves[0] == curves[1] and len(curves[0]) > 3 and last.epochs == whole.epochs


def test_a_sigmoid_belief_net_remembers_where_it_was_at_every_checkpoint(tmp_path):
    config = harness.parse(sbn.Config, "", ["--smoke", "--rules=nvil"], smoke=sbn.smoke_settings)
    job = sbn.build(config)

    def train(kept):
        with harness.progress_bar(5, None, "point") as bar:
            yield from sbn.training(KEY, config, job, "nvil", bar, kept)

    *_, whole = train(None)
    last = cut(train, vj.Checkpoint(tmp_path))
    assert_same_bits(
        (whole.path, whole.at, whole.step, whole.curve), (last.path, last.at, last.step, last.curve)
    )
    assert len(last.path) == 6 and len(last.seconds) == 6 and not last.interrupted


@dataclasses.dataclass(frozen=True)
class Config:
    """Of a script of one fit."""

    rate: tuple[float, ...] = (0.1, 0.2)
    bound: float = float("inf")
    results_dir: str = "results"
    resume: str | None = None


def main(args, broken=()):
    """Four fits, before those in `broken` of which the script fails."""

    def run(config):
        losses = []
        for number in range(4):
            if number in broken:
                raise RuntimeError("broken")
            result = vj.fit(
                KEY,
                SHARED,
                START,
                DATA,
                num_steps=6 + number,
                checkpoint=harness.checkpoint(f"fit_{number}"),
            )
            losses.append(float(result.history.loss[-1]))
            yield Outcome({"losses": losses, "bound": config.bound}, {"a": np.zeros(1)})

    config = harness.parse(Config, "A toy.", args)
    return config, harness.execute("toy", config, run, lambda o: str(o.metrics), lambda f: [])


def test_a_folder_that_is_resumed_keeps_its_settings_and_what_it_had(tmp_path):
    with pytest.raises(RuntimeError):
        main([f"--results_dir={tmp_path}", "--rate=0.3,0.4"], broken=(2,))
    (folder,) = (tmp_path / "toy").iterdir()
    before = json.loads((folder / "metrics.json").read_text())
    assert before["status"] == "failed" and len(before["losses"]) == 2
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["fit_0", "fit_1"]
    spent = json.loads((folder / "environment.json").read_text())["seconds"]
    with pytest.raises(RuntimeError):
        main(["--resume", str(folder)], broken=(0,))
    after = json.loads((folder / "metrics.json").read_text())
    assert after == before  # of a second failure nothing is lost
    assert json.loads((folder / "environment.json").read_text())["seconds"] >= spent
    config, found = main(["--resume", str(folder)])
    assert found == folder and config == Config(
        (0.3, 0.4), float("inf"), str(tmp_path), str(folder)
    )
    metrics = harness.read(folder)[1]
    assert metrics["status"] == "finished" and metrics["losses"][:2] == before["losses"]
    assert metrics["bound"] == float("inf") and len(list((tmp_path / "toy").iterdir())) == 1
    assert json.loads((folder / "config.json").read_text())["resume"] is None


def test_what_cannot_be_resumed_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        main([f"--results_dir={tmp_path}"], broken=(1,))
    (folder,) = (tmp_path / "toy").iterdir()
    with pytest.raises(ValueError, match="takes all settings from .*leave out --rate"):
        main([f"--resume={folder}", "--rate=0.5,0.6"])
    with pytest.raises(ValueError, match="another script or version; only one .* alpha"):
        vae.main([f"--resume={folder}"])
    with pytest.raises(FileNotFoundError, match="no results folder, it has no config.json"):
        main([f"--resume={tmp_path}"])
    assert harness.checkpoint("fit") is None  # outside of a results folder
