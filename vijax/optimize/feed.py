"""What chunks of steps are given, one after the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vijax.types import PyTree


class Chunk(NamedTuple):
    """The data of some steps.

    Attributes:
      data: as `loop.take_batch` takes them.
      size: how many steps they are for; 0: there are no more.
      index: [size, B] the steps' rows, on the host; None: nobody asks.
      place: of an iterator that can tell it (`get_state()`), that after these batches.
    """

    data: PyTree
    size: int
    index: np.ndarray | None = None
    place: Any = None


Take = Callable[[int, int], Chunk]
"""(first step, most steps) -> what the chunk of steps from there is given."""


class Feed:
    """Chunks one after the other, the next one fetched while the device computes."""

    def __init__(self, take: Take, *, ahead: bool) -> None:
        self._take, self._reads_ahead = take, ahead
        self._found: list[Chunk | Exception] = []

    def ahead(self, first: int, size: int) -> None:
        """Fetch the chunk of the steps from `first` on, if there are any."""
        if self._reads_ahead and size > 0:
            try:
                self._found.append(self._take(first, size))
            except Exception as error:  # it belongs to the next chunk, and must not cost this one
                self._found.append(error)

    def get(self, first: int, size: int) -> Chunk:
        """That chunk."""
        if not self._found:
            return self._take(first, size)
        found = self._found.pop()
        if isinstance(found, Exception):
            raise found
        return found
