"""Who looks on between two chunks of `fit`: the callbacks."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from vijax.optimize.results import FitResult, Progress

Callbacks = Sequence[Callable[[Progress], Any]]


class Keeper:
    """Between two chunks of `fit`: calls the callbacks. As a context it sees how the run ends.

    Attributes:
      result: where the run stands.
      stopped: did a callback end it?
      place: in the data, if they are an iterator that can tell it.
    """

    def __init__(self, result: FitResult, callbacks: Callbacks):
        self.result, self.stopped = result, False
        self.place: Any = None
        self._callbacks = callbacks

    def look(self, seen: Progress, interrupted: Sequence[int], place: Any) -> FitResult:
        """The result, after everybody has seen it, marked if it is the last.

        Args:
          interrupted: not empty after a Ctrl-C.
          place: after the batches that it is made of.
        """
        self.place = place
        stop = [bool(callback(seen)) for callback in self._callbacks]
        self.stopped = any(stop)
        self.result = seen.result._replace(interrupted=self.stopped or bool(interrupted))
        return self.result

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is kept."""
