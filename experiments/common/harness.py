"""What every script shares: it runs a job into a results folder, ends as it should when a signal or
an error ends it, and shows progress. Settings are in `settings`, files in `folders`; both are
reached from here.

**Partial results.** A `run` that takes long is a generator: it yields an `Outcome` of all that
there is so far whenever there is something new, the last one being the whole.

    def run(config: Config) -> Iterator[Outcome]:
        rows = []
        for name in config.estimators:
            rows.append(measure(name))
            yield Outcome(metrics(rows), {}, {"leaderboard": table(rows)})

Each is written to the folder as it comes, with its summary, so nothing has to be saved when a
signal arrives: whatever ends the run, even SIGKILL, the last one lies there. `metrics.json` begins
with `status`: "running", "finished", "interrupted" or "failed" (then `error` says why, and
traceback.txt where); summary.txt begins with UNFINISHED unless the run is finished. `report` must
do with every outcome that is yielded; figures are drawn at the end only, or by --replot.

**Going on.** A script whose Config has the field `resume` and which gives every long fit a
`checkpoint=harness.checkpoint(NAME)` takes `--resume FOLDER`: the settings are those of the folder,
`run` begins anew, fits that had ended are read, the one that was cut goes on where its last
checkpoint is, and what is quickly measured is measured again: the same numbers as of a run that
nothing ended. The checkpoints lie in FOLDER/checkpoints until the run is finished.

**Signals.** SIGINT and SIGTERM are the same. Inside `vijax.fit` the first one ends the loop between
two chunks: the result says `interrupted`, `run` yields what it has and returns without beginning
anything new (or finishes what is short, as a score), figures are drawn, the run is marked. Anywhere
else, and at a second signal, KeyboardInterrupt ends `run` where it stands.
"""

import dataclasses
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tqdm.auto import tqdm

from experiments.common.folders import (
    Outcome,
    config_hash,
    environment,
    new_folder,
    over_seeds,
    read,
    read_params,
    read_tables,
    write,
    write_json,
)
from experiments.common.resuming import begun, checkpoint, checkpoints_in, steps_ahead, unfinished
from experiments.common.settings import at_least, parse
from experiments.common.signals import Interrupted, stoppable
from vijax.optimize.interrupt import interruptible

__all__ = [
    "Interrupted",
    "Outcome",
    "at_least",
    "checkpoint",
    "config_hash",
    "console",
    "execute",
    "over_seeds",
    "parse",
    "progress_bar",
    "read",
    "read_params",
    "read_tables",
    "script",
    "steps_ahead",
    "stoppable",
    "write_json",
]


def script(
    name: str,
    config_type: type,
    description: str | None,
    args: Sequence[str] | None,
    run: Callable[[Any], Outcome | Iterator[Outcome]],
    report: Callable[[Outcome], str],
    plot: Callable[[Path], Sequence[Path]],
    *,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    smoke: Callable[[Any], Any] | None = None,
) -> Path:
    """What a script's `main` does: read the settings, then `execute`, or with --replot FOLDER draw
    that folder's figures again and nothing else. Returns the folder.
    """
    config = parse(config_type, description or "", args, presets=presets, smoke=smoke)
    if config.replot is not None:
        print(*plot(Path(config.replot)), sep="\n")
        return Path(config.replot)
    return execute(name, config, run, report, plot)


def execute(
    name: str,
    config: Any,
    run: Callable[[Any], Outcome | Iterator[Outcome]],
    report: Callable[[Outcome], str],
    plot: Callable[[Path], Sequence[Path]],
) -> Path:
    """Run a script's job and write its folder: config, environment, metrics, arrays, parameters,
    summary and figures. Returns it.

    The config's field `results_dir` says where: the folder is results_dir/NAME/<UTC>-<hash of the
    config>. If it has a field `resume` that is not None, that folder is gone on with.

    Raises:
      Interrupted: if a signal ended the run; the folder has what there was.
      ValueError: if the folder to be resumed is finished.
    """
    resume = getattr(config, "resume", None)
    if resume is None:
        folder = new_folder(name, config)
        write_json(folder / "config.json", dataclasses.asdict(config))
    else:
        folder = unfinished(Path(resume))
        (folder / "traceback.txt").unlink(missing_ok=True)
    former, started = begun(folder), time.perf_counter()
    surroundings = environment()
    kept: list[tuple[Outcome, str]] = []

    def keep(status: str, why: str = "") -> None:
        """Write what there is."""
        seconds = round(former.seconds + time.perf_counter() - started, 2)
        outcome, summary = kept[-1] if kept else (None, former.summary)
        if status != "finished":
            summary = f"UNFINISHED ({status} after {seconds} s) {why}\n{summary}"
        state = {"status": status} | ({"error": why} if why else {})
        write(folder, outcome, state if kept else state | former.metrics, summary)
        write_json(folder / "environment.json", surroundings | {"seconds": seconds})

    with stoppable() as stop, checkpoints_in(folder / "checkpoints"):
        try:
            keep("running")
            for outcome in _outcomes(run(config)):
                signals = len(stop.seen)
                with interruptible():  # a signal waits until all files are of one outcome
                    kept.append((outcome, report(outcome)))
                    keep("running")
                if len(stop.seen) > signals:
                    raise KeyboardInterrupt
            status = "interrupted" if stop.seen else "finished"
            print(kept[-1][1])
            figures = plot(folder)
            keep(status)
            if status == "finished":
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        except BaseException as error:
            stop.closed = True
            stopped = isinstance(error, KeyboardInterrupt)
            keep("interrupted" if stopped else "failed", "" if stopped else one_line(error))
            if not stopped:
                (folder / "traceback.txt").write_text(traceback.format_exc())
                raise
            raise Interrupted(f"interrupted: what there was is in {folder}", stop.number) from error
    print(f"{len(figures)} figures and all numbers are in {folder}")
    if status == "interrupted":
        raise Interrupted(f"interrupted: what there was is in {folder}", stop.number)
    return folder


def _outcomes(made: Outcome | Iterator[Outcome]) -> Iterator[Outcome]:
    return iter([made]) if isinstance(made, Outcome) else made


def console(main: Callable[[Sequence[str]], Any]) -> None:
    """Run a script's `main` as a program: an error is one line on stderr (its traceback with
    --debug) and exit code 1, a signal one line and 128 + its number.
    """
    debug = "--debug" in sys.argv
    try:
        main([arg for arg in sys.argv[1:] if arg != "--debug"])
    except KeyboardInterrupt as stop:
        _leave(str(stop) or "interrupted", getattr(stop, "number", signal.SIGINT))
    except Exception as error:
        if debug:
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def one_line(error: BaseException) -> str:
    """The message without its line breaks; the type where the message alone would not do."""
    words = " ".join(str(error).split())
    plain = isinstance(error, ValueError | FileNotFoundError) and words
    return words if plain else f"{type(error).__name__}: {words}"


def _leave(words: str, number: int) -> NoReturn:
    """End the process at once. XLA may still be compiling or computing in another thread, which the
    interpreter's ordinary end would pull the ground from under (SIGSEGV).
    """
    print(f"\n{words}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)


def progress_bar(total: int, what: str | None, unit: str) -> tqdm:
    """A progress bar on stderr, silent for `what=None`; where stderr is no terminal, only after two
    seconds of work.
    """
    delay = 0.2 if sys.stderr.isatty() else 2.0
    return tqdm(
        total=total, desc=what, unit=unit, delay=delay, mininterval=0.2, disable=what is None
    )
