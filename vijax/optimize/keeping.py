"""Checkpoints that `fit` writes by itself, and from which the same call goes on later."""

import pathlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from vijax.optimize import container
from vijax.optimize.checkpoint import newest, pieces, unpacked
from vijax.optimize.hooks import Callbacks, Keeper
from vijax.optimize.identity import described, refuse_others
from vijax.optimize.loop import Program
from vijax.optimize.results import BatchError, FitResult, NonFiniteError, Progress
from vijax.optimize.stateful import Stateful, put_back, state_of

KEPT = 2  # the newest files
Found = tuple[pathlib.Path, list[Any]]  # of `newest`


class Checkpoint(NamedTuple):
    """Where and how often `fit(checkpoint=)` keeps a run.

    Attributes:
      folder: of this run alone; made if it is missing. The two newest checkpoints stay in it.
      every_seconds: at the first end of a chunk after so many seconds; 0 for every chunk. At the
        end, at Ctrl-C and before a step that was not finite there is one in any case.
    """

    folder: str | pathlib.Path
    every_seconds: float = 60.0

    @property
    def step(self) -> int:
        """Of the newest checkpoint; 0 if there is none."""
        return container.newest_step(pathlib.Path(self.folder))


def begun(checkpoint: Checkpoint | None) -> bool:
    """Is there something to go on from?"""
    if not isinstance(checkpoint, Checkpoint):
        return False
    return bool(container.newest_first(pathlib.Path(checkpoint.folder)))


def keeper(
    checkpoint: Checkpoint | None,
    result: FitResult,
    program: Program,
    data: Any,
    callbacks: Callbacks,
    *,
    num_steps: int,
    fresh: bool,
) -> Keeper:
    """Who keeps the run; its `result` is where to go on.

    Args:
      result: the start.
      data: of `fit`.
      num_steps: from the start on.
      fresh: is the start made of parameters, not another result?

    Raises:
      ValueError: if the checkpoint in the folder is of another run, or none there is whole.
      TypeError: if an iterator cannot tell its place, so that nothing could go on from it.
      OSError: if the folder cannot be written.
    """
    if checkpoint is None:
        return Keeper(result, callbacks)
    if not isinstance(checkpoint, Checkpoint) or not checkpoint.every_seconds >= 0.0:
        raise ValueError(
            f"fit: checkpoint={checkpoint!r}: write vijax.Checkpoint(folder, every_seconds=60.0), "
            "seconds of at least 0."
        )
    iterator = data if isinstance(data, Iterator) else None
    if iterator is not None and not isinstance(iterator, Stateful):
        raise TypeError(
            f"fit: checkpoint= with an iterator of type {type(iterator).__name__}, which cannot "
            "tell its place: after a restart nobody would know which batches it had given. Give "
            "one with get_state() and set_state(state), such as Grain's, or "
            "vijax.Replay(make), with a function that makes the iterator anew."
        )
    found = newest(pathlib.Path(checkpoint.folder)) if begun(checkpoint) else None
    origin = None if iterator is None else state_of(iterator)
    if origin is not None and found is not None:
        then = found[1][0]["run"].get("origin")
        origin = origin if then is None else then
    run = described(program, result, data, origin, fresh=fresh)
    return FolderKeeper(checkpoint, result, callbacks, iterator, run, found, num_steps)


class FolderKeeper(Keeper):
    """The keeper of a run that has a folder.

    Of writes that fail, the first of all is an error, before a step is taken; a later one is a
    warning, and training goes on: hours of work are worth more than their copy.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        result: FitResult,
        callbacks: Callbacks,
        iterator: Stateful | None,
        run: Mapping[str, Any],
        found: Found | None,
        num_steps: int,
    ):
        super().__init__(result, callbacks)
        self._folder, self._every = pathlib.Path(checkpoint.folder), checkpoint.every_seconds
        self._iterator, self._run = iterator, dict(run)
        self.place = None if iterator is None else state_of(iterator)
        self._remembering = [one for one in callbacks if isinstance(one, Stateful)]
        self._mark, self._saved, self._warned = time.monotonic(), -1, False
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if found is None:
                self._write()
            else:
                (self._folder / "probe.part").touch()
            for half in self._folder.glob("*.part"):  # of writers that were killed
                half.unlink(missing_ok=True)
        except OSError as problem:
            raise OSError(
                f"fit: checkpoints cannot be written into {self._folder} ({problem}), so nothing "
                "was begun. Give a folder that can be written to, on a disk with room."
            ) from problem
        if found is not None:
            self._go_on(*found, num_steps)

    def look(self, seen: Progress, interrupted: Sequence[int], place: Any) -> FitResult:
        """The same, and a checkpoint if it is time."""
        result = super().look(seen, interrupted, place)
        if time.monotonic() - self._mark >= self._every:
            self._try()
        return result

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Keep the end, also where batches fail to come; the state before a bad step too, unless
        batches were read beyond it. Other errors leave things half done.
        """
        if isinstance(error, NonFiniteError) and self._iterator is None:
            self.result = error.result
        elif error is not None and not isinstance(error, BatchError):
            return
        if self._saved != self.result.num_steps:
            self._try()
        if self._saved != self.result.num_steps:
            warnings.warn(
                f"fit: ended at step {self.result.num_steps}, but the last checkpoint in "
                f"{self._folder} is of step {self._saved}: keep the result elsewhere, by "
                "vijax.save.",
                stacklevel=3,
            )

    def _try(self) -> None:
        try:
            self._write()
        except OSError as problem:
            if not self._warned:
                warnings.warn(
                    f"fit: the checkpoint of step {self.result.num_steps} could not be written "
                    f"({problem}). That of step {self._saved} stays, training goes on, and it is "
                    "tried again when the next one is due.",
                    stacklevel=4,
                )
            self._warned = True

    def _write(self) -> None:
        step = self.result.num_steps
        run = {
            **self._run,
            "stopped": self.stopped,
            "place": self.place,
            "callbacks": [[type(one).__name__, one.get_state()] for one in self._remembering],
        }
        try:
            container.write(self._folder / container.name_of(step), pieces(self.result, run))
        except TypeError as problem:
            raise TypeError(
                f"fit: a checkpoint cannot hold what get_state() of the iterator or of a callback "
                f"returned ({problem}). Make it of dicts, lists, numbers, words, bytes and arrays."
            ) from problem
        finally:
            self._mark = time.monotonic()
        self._saved = step
        container.keep_newest(self._folder, KEPT)

    def _go_on(self, path: pathlib.Path, found: list[Any], num_steps: int) -> None:
        """From that checkpoint, if it is of this run, between its start and its end."""
        then, first = found[0]["run"], self.result.num_steps
        if not then:
            raise ValueError(f"fit: {path} was written by vijax.save: give a folder of its own.")
        refuse_others(path, then, self._run)
        result = unpacked(path, found, self.result.algorithm, self.result.carry)
        step = result.num_steps
        if not first <= step <= first + num_steps:
            raise ValueError(
                f"fit: {path} is at step {step}, but this call goes from step {first} to "
                f"{first + num_steps}: num_steps counts from params= or resume=, not from the "
                "checkpoint. Give another folder, or at least as many steps as were taken."
            )
        kinds = [kind for kind, _ in then["callbacks"]]
        if kinds != [type(one).__name__ for one in self._remembering]:
            raise ValueError(
                f"fit: {path} remembers callbacks with get_state of types {kinds}, but there are "
                f"{[type(one).__name__ for one in self._remembering]} now. Give those of before, "
                "in their order."
            )
        for one, (_, state) in zip(self._remembering, then["callbacks"], strict=True):
            one.set_state(state)
        if self._iterator is not None:
            put_back(self._iterator, then["place"])
        self.result, self.stopped = result._replace(interrupted=False), then["stopped"]
        self.place, self._saved = then["place"], step
        self._run["start"] = then["start"]
        for bad in container.newest_first(self._folder):
            if bad > path:
                bad.rename(bad.with_suffix(".damaged"))
