"""Who is kept together with a run: iterators that can tell their place, callbacks that remember."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Stateful(Protocol):
    """An iterator of batches, such as Grain's, whose state is its place in the data; a callback
    that remembers something, such as the best score so far.
    """

    def get_state(self) -> Any:
        """All that is to be remembered, made of dicts, lists, numbers, words, bytes and arrays."""
        ...

    def set_state(self, state: Any) -> None:
        """Be as when `get_state` returned this."""
        ...


class Replay:
    """An iterator that can tell its place, of any function that makes one: to go on at batch n, it
    is made anew and n batches are dropped.

        fit(key, algorithm, params, vijax.Replay(lambda: batches(np.random.default_rng(0))), ...)

    Args:
      make: () -> iterator, of the same batches at every call: what is random is made inside.
    """

    def __init__(self, make: Callable[[], Iterator[Any]]):
        self._make = make
        self.set_state(0)

    def __iter__(self) -> "Replay":
        return self

    def __next__(self) -> Any:
        item = next(self._iterator)
        self._taken += 1
        return item

    def get_state(self) -> int:
        """How many were taken."""
        return self._taken

    def set_state(self, state: int) -> None:
        """Go to where so many have been taken."""
        self._iterator, self._taken = self._make(), 0
        for _ in range(state):
            next(self)
