"""Going on with a results folder whose run was ended: what lies in it, its settings, and where its
fits are kept.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import vijax as vj
from experiments.common.folders import INFINITE

CHECKPOINTS: ContextVar[Path | None] = ContextVar("checkpoints", default=None)


def checkpoint(name: str) -> vj.Checkpoint | None:
    """For the argument of that name of a fit that the script calls by this name, and no other; None
    where no results folder is being written.
    """
    folder = CHECKPOINTS.get()
    return None if folder is None else vj.Checkpoint(folder / name)


def steps_ahead(
    kept: vj.Checkpoint | None, result: vj.FitResult | None, part: int, total: int
) -> int:
    """`num_steps` of the next call of a fit in parts, each of which ends at a multiple of `part`
    steps or at `total`: from `result`, or from the first step and what is kept since.
    """
    begin = 0 if result is None else result.num_steps
    done = kept.step if result is None and kept is not None else begin
    return min(done // part * part + part, total) - begin


@contextmanager
def checkpoints_in(folder: Path) -> Iterator[None]:
    """Where `checkpoint` puts them, inside."""
    token = CHECKPOINTS.set(folder)
    try:
        yield
    finally:
        CHECKPOINTS.reset(token)


class Begun(NamedTuple):
    """What lies in a folder before a process goes on with it.

    Attributes:
      metrics: as they are written, without the status.
      seconds: that were spent.
    """

    metrics: dict[str, Any]
    summary: str
    seconds: float


def begun(folder: Path) -> Begun:
    """Of a new folder: nothing."""
    metrics, summary, seconds = {}, "There is no result.", 0.0
    if (folder / "metrics.json").is_file():
        metrics = json.loads((folder / "metrics.json").read_text())
    if (folder / "summary.txt").is_file():
        head, _, rest = (folder / "summary.txt").read_text().rstrip("\n").partition("\n")
        summary = rest if head.startswith("UNFINISHED") else summary
    if (folder / "environment.json").is_file():
        seconds = json.loads((folder / "environment.json").read_text())["seconds"]
    rest = {name: value for name, value in metrics.items() if name not in ("status", "error")}
    return Begun(rest, summary, seconds)


def unfinished(folder: Path) -> Path:
    """The folder of a run that was begun and not finished, to be gone on with.

    Raises:
      FileNotFoundError: if it is no results folder.
      ValueError: if the run is finished.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"--resume {folder}: no results folder, it has no config.json.")
    metrics = folder / "metrics.json"
    if metrics.is_file() and json.loads(metrics.read_text()).get("status") == "finished":
        raise ValueError(
            f"--resume {folder}: that run is finished; there is nothing to go on with."
        )
    return folder


def stored_settings(folder: Path) -> dict[str, Any]:
    """The settings in a results folder's config.json, lists as tuples."""
    values = json.loads((unfinished(folder) / "config.json").read_text())
    back = {word: number for number, word in INFINITE.items()}
    return {
        name: tuple(value) if isinstance(value, list) else back.get(str(value), value)
        for name, value in values.items()
    }
