"""What a script does about errors and signals, what its folder then holds, and how it reads its
settings.
"""

import dataclasses
import importlib
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from fit_problems import DATA, KEY, SHARED, START

import vijax as vj
from experiments.common import folders, harness
from experiments.common.harness import Outcome
from vijax.optimize.interrupt import compiling, interruptible

ROOT = Path(__file__).parent.parent

# A script of two parts, the second a fit that only a signal ends; STUBBORN then goes on for ever.
SCRIPT = """
import dataclasses, sys, time
import jax, numpy as np, optax
import vijax as vj
from experiments.common import harness
from experiments.common.harness import Outcome
from vijax.types import Batch

@dataclasses.dataclass(frozen=True)
class Config:
    stubborn: bool = False
    results_dir: str = "results"

def run(config):
    yield Outcome({"part": 1}, {"a": np.arange(3.0)})
    model = vj.models.latent_model(
        lambda key: (), lambda theta, z, x: vj.densities.standard_normal(z - x).sum())
    guide = vj.guides.per_datapoint(vj.families.diag_normal(1), num_data=4)
    est = vj.estimator(model, guide, rules=vj.rules.pathwise(), num_data=4)
    def started(seen):
        print("training", file=sys.stderr, flush=True)
    result = vj.fit(
        jax.random.key(0), vj.descent(est, optax.adam(0.1)), est.init_params(jax.random.key(1)),
        np.zeros((4, 1)), num_steps=10**9, chunk_size=50, callbacks=[started])
    yield Outcome({"part": 2, "cut": result.interrupted}, {"a": np.arange(3.0)}, {}, result.params)
    while config.stubborn:
        time.sleep(0.01)

def main(args):
    config = harness.parse(Config, "Does it stop?", args)
    return harness.execute("toy", config, run, lambda done: f"part {done.metrics['part']}",
                           lambda folder: [folder])

if __name__ == "__main__":
    harness.console(main)
"""


def started(tmp_path, *args):
    """The script as a process, in its fit."""
    (tmp_path / "toy.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "toy.py"), f"--results_dir={tmp_path}", *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "training\n"
    return process


def left(tmp_path):
    """(metrics, summary) of the only run."""
    (folder,) = (tmp_path / "toy").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text())
    return folder, metrics, (folder / "summary.txt").read_text()


def wait_until(true, seconds=120.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sigterm_ends_a_fit_and_keeps_everything(tmp_path):
    process = started(tmp_path)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    folder, metrics, summary = left(tmp_path)
    assert metrics == {"status": "interrupted", "part": 2, "cut": True}
    assert summary.startswith("UNFINISHED (interrupted after") and "part 2" in summary
    assert "part 2" in out and err.splitlines()[-1].startswith("interrupted: what there was is in")
    assert (folder / "params.npz").is_file()


def test_two_ctrl_c_a_second_apart_end_at_once_with_what_there_was(tmp_path):
    process = started(tmp_path, "--stubborn")
    process.send_signal(signal.SIGINT)
    wait_until(lambda: left(tmp_path)[1].get("part") == 2)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    assert left(tmp_path)[1]["status"] == "interrupted" and left(tmp_path)[1]["part"] == 2
    assert "Traceback" not in err


def test_ctrl_c_while_xla_compiles_does_not_leave_the_compiler_alone():
    """An exception there ends the waiting, not the compiling, and then the process by SIGSEGV."""

    def backend_compile_and_load(presses):
        for _ in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
        return presses

    steps = []
    with pytest.raises(KeyboardInterrupt), interruptible() as seen:
        steps.append(backend_compile_and_load(2))
        steps.append(len(seen))  # a loop ends here; what is owed comes after it
    assert steps == [2, 2]
    with pytest.raises(KeyboardInterrupt), interruptible():
        backend_compile_and_load(2)
        os.kill(os.getpid(), signal.SIGINT)
        steps.append(0)
    with interruptible() as seen:
        backend_compile_and_load(1)
        assert len(seen) == 1
    assert steps == [2, 2]


def test_the_frame_in_which_jax_compiles_has_the_name_that_is_looked_for():
    main, compiled, found = threading.main_thread().ident, threading.Event(), []

    def look():
        while not compiled.is_set():
            found.append(compiling(sys._current_frames()[main]))
            time.sleep(0.001)

    def function(x):
        for i in range(60):
            x = jnp.sin(x @ x) + i
        return x

    thread = threading.Thread(target=look)
    thread.start()
    jax.jit(function).lower(jnp.ones((4, 4))).compile()
    compiled.set()
    thread.join()
    assert any(found) and not found[0]


def test_ctrl_c_in_a_fit_within_a_fit_ends_both():
    inner = []

    def callback(progress):
        if progress.step == 20:
            press = lambda seen: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
            settings = {"num_steps": 1000, "chunk_size": 10, "callbacks": [press]}
            inner.append(vj.fit(KEY, SHARED, START, DATA, **settings))

    settings = {"num_steps": 1000, "chunk_size": 10, "callbacks": [callback]}
    outer = vj.fit(KEY, SHARED, START, DATA, **settings)
    assert inner[0].interrupted and inner[0].num_steps <= 20
    assert outer.interrupted and outer.num_steps == 20


@dataclasses.dataclass(frozen=True)
class Config:
    steps: int = 100  # of something
    width: int = 7
    sizes: tuple[int, ...] = (1,)
    smoke: bool = False
    results_dir: str = "results"


def execute(run, tmp_path):
    return harness.execute(
        "toy", Config(results_dir=str(tmp_path)), run, lambda done: "so far", lambda folder: []
    )


def test_a_part_lies_in_the_folder_as_soon_as_it_is_there(tmp_path):
    """So even SIGKILL leaves it, and it is marked."""

    def run(config):
        assert left(tmp_path)[1] == {"status": "running"}
        yield Outcome({"part": 1}, {})
        assert left(tmp_path)[1] == {"status": "running", "part": 1}
        assert left(tmp_path)[2].startswith("UNFINISHED (running after")

    folder = execute(run, tmp_path)
    assert left(tmp_path)[1]["status"] == "finished"
    assert (folder / "summary.txt").read_text() == "so far\n"


def test_a_failed_run_is_marked_and_keeps_what_it_had(tmp_path):
    def run(config):
        yield Outcome({"part": 1}, {})
        raise ValueError("no such thing:\nwrite another")

    with pytest.raises(ValueError, match="no such thing"):
        execute(run, tmp_path)
    folder, metrics, summary = left(tmp_path)
    assert metrics == {"status": "failed", "error": "no such thing: write another", "part": 1}
    assert summary.startswith("UNFINISHED (failed after") and "so far" in summary
    assert "in run\n" in (folder / "traceback.txt").read_text()


def test_a_run_that_fails_at_once_is_marked_too(tmp_path):
    def run(config):
        raise TypeError("impossible")

    with pytest.raises(TypeError, match="impossible"):
        execute(run, tmp_path)
    assert left(tmp_path)[1] == {"status": "failed", "error": "TypeError: impossible"}


def test_a_signal_outside_of_a_fit_ends_the_run_where_it_stands(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def run(config):
        yield Outcome({"part": 1}, {})
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60.0)
        yield Outcome({"part": 2}, {})

    with pytest.raises(harness.Interrupted) as caught:
        execute(run, tmp_path)
    assert caught.value.number == signal.SIGTERM
    assert left(tmp_path)[1] == {"status": "interrupted", "part": 1}
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_while_a_part_is_written_is_not_lost(tmp_path):
    """It waits until the files are whole, then it counts."""

    def report(done):
        if done.metrics["part"] == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return "so far"

    def run(config):
        for part in (1, 2, 3):
            yield Outcome({"part": part}, {})

    with pytest.raises(harness.Interrupted):
        harness.execute("toy", Config(results_dir=str(tmp_path)), run, report, lambda folder: [])
    assert left(tmp_path)[1] == {"status": "interrupted", "part": 1}


def strict(text):
    """JSON without the words that are none."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_json_does_not_have_are_written_as_json_and_read_back(tmp_path):
    metrics = {"a": [math.nan, -math.inf, 1.5], "b": {"c": np.float32("inf"), "d": np.arange(2)}}
    table = pd.DataFrame({"x": [1.0, math.nan, math.inf], "name": ["u", "v", "w"]})
    folder = execute(lambda config: Outcome(metrics, {}, {"t": table}), tmp_path)
    text = strict((folder / "metrics.json").read_text())
    assert text["status"] == "finished" and text["a"] == [None, "-inf", 1.5]
    assert strict((folder / "t.json").read_text())[1] == {"x": None, "name": "v"}
    back = harness.read(folder)[1]
    np.testing.assert_array_equal(back["a"], metrics["a"])
    assert back["b"] == {"c": math.inf, "d": [0, 1]}
    pd.testing.assert_frame_equal(harness.read_tables(folder)["t"], table)


def test_parameters_are_read_back_leaf_by_leaf(tmp_path):
    params = vj.Params({"w": np.eye(2), "b": [np.zeros(3)]}, {"z": np.arange(4)}, ())
    folder = execute(lambda config: Outcome({}, {}, {}, {"seed_0": params}), tmp_path)
    with np.load(folder / "params.npz") as stored:
        assert sorted(stored.files) == ["seed_0/phi/z", "seed_0/theta/b/0", "seed_0/theta/w"]
    back = harness.read_params(folder, {"seed_0": jax.tree.map(np.zeros_like, params)})["seed_0"]
    jax.tree.map(np.testing.assert_array_equal, back, params)
    with pytest.raises(ValueError, match="other settings.*theta/w"):
        harness.read_params(folder, {"seed_0": params._replace(theta={"w": np.eye(3)})})


def test_what_is_given_wins_over_the_short_run():
    def smoke(config):
        return dataclasses.replace(config, steps=3, width=2, sizes=(5, 5))

    def parsed(*args):
        config = harness.parse(Config, "", args, smoke=smoke)
        return config.steps, config.width, config.sizes

    assert parsed() == (100, 7, (1,))
    assert parsed("--smoke") == (3, 2, (5, 5))
    assert parsed("--smoke", "--steps", "9") == (9, 2, (5, 5))
    assert parsed("--steps=100", "--smoke=true", "--sizes=8,9") == (100, 2, (8, 9))  # a default
    assert parsed("--smoke=false", "--width=1") == (100, 1, (1,))


def test_settings_below_their_least_value_are_refused():
    harness.at_least(Config(), steps=1, width=7, sizes=1)
    for settings, words in (({"steps": 0}, "--steps=0 must"), ({"sizes": (2, 0)}, "--sizes=2,0")):
        with pytest.raises(ValueError, match=words):
            harness.at_least(dataclasses.replace(Config(), **settings), steps=1, sizes=1)


@pytest.fixture
def program(monkeypatch, capsys, tmp_path):
    """Runs a script's file as a program, in this process; returns (exit code, lines on stderr)."""
    cores, flags = os.sched_getaffinity(0), os.environ["XLA_FLAGS"]  # benchmarks change them

    def run(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *args])
        path = ROOT.joinpath(*name.split("."))
        file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(file), run_name="__main__")
        return stop.value.code, capsys.readouterr().err.splitlines()

    monkeypatch.chdir(tmp_path)
    yield run
    os.sched_setaffinity(0, cores)
    os.environ["XLA_FLAGS"] = flags


WRONG = {
    "experiments.vae": ("--epochs=0", "--epochs=0 must be at least 1"),
    "experiments.sbn": ("--num_steps=1503", "write --num_steps=1500"),
    "experiments.gradient_variance": ("--preset=nothing", "choose from"),
    "experiments.compare": ("--results_dir=r", "0 folders given"),
    "experiments.benchmarks.bayes": ("--only=nothing", "no workload"),
    "experiments.benchmarks.phi_tables": ("--only=nothing", "no workload"),
    "experiments.benchmarks.refinement": ("--only=nothing", "no workload"),
    "experiments.benchmarks.rules": ("--pairs=0", "--pairs=0 must be at least 1"),
    "experiments.benchmarks.vae": ("--only=nothing", "no workload"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_of_the_user_is_one_line(name, program):
    setting, words = WRONG[name]
    code, lines = program(name, setting)
    assert code == 1 and len(lines) == 1 and words.lower() in lines[0].lower(), lines
    code, lines = program(name, "--nonsense=3")
    assert code == 2 and len(lines) == 1 and "--nonsense=3" in lines[0], lines


def test_a_benchmark_keeps_the_rows_it_has(program, tmp_path, capsys):
    pairs = importlib.import_module("experiments.benchmarks.common.pairs")  # `program` undoes it

    def rows(config):
        yield pairs.Row("first", 1.0, 2.0, 0.5, math.inf, 3.0, 4.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60.0)

    with pytest.raises(harness.Interrupted):
        pairs.main([f"--json={tmp_path / 'rows.json'}"], "", rows)
    written = strict((tmp_path / "rows.json").read_text())
    assert written["status"] == "UNFINISHED" and written["rows"][0]["name"] == "first"
    assert written["rows"][0]["must"] == "inf"
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("first") and said[-1] == "UNFINISHED"


def test_debug_shows_the_traceback(program):
    with pytest.raises(ValueError, match="0 folders"):  # Python then prints it
        program("experiments.compare", "--debug")


def test_arrays_of_the_same_name_in_two_outcomes_are_those_of_the_last(tmp_path):
    def run(config):
        for size in (2, 3):
            yield Outcome({}, {"a": np.zeros(size)}, {"t": pd.DataFrame({"x": range(size)})})

    folder = execute(run, tmp_path)
    assert harness.read(folder)[2]["a"].shape == (3,)
    assert len(harness.read_tables(folder)["t"]) == 3
    assert not list(folder.glob("*.part"))
    assert folders.config_hash(Config(steps=1)) != folders.config_hash(Config())
