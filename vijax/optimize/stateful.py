"""Who is kept together with a run: iterators that can tell their place, callbacks that remember."""

import copy
from collections.abc import Callable, Iterable, Iterator
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


def state_of(one: Stateful) -> Any:
    """Its state, a copy: one that goes on may change what it has given away."""
    return copy.deepcopy(one.get_state())


def put_back(one: Stateful, state: Any) -> None:
    """Be as in that state, which stays as it is."""
    one.set_state(copy.deepcopy(state))


class Replay:
    """An iterator that can tell its place, of any function that makes one: to go on at batch n, it
    is made anew and n batches are dropped.

        fit(key, algorithm, params, vijax.Replay(lambda: batches(np.random.default_rng(0))), ...)

    Args:
      make: () -> iterator, of the same batches at every call: what is random is made inside.

    Raises:
      ValueError: on going back, if `make` gives the same iterator again, which goes on where it is,
        or one that ends before that place.
    """

    def __init__(self, make: Callable[[], Iterable[Any]]):
        self._make = make
        self._iterator: Iterator[Any] | None = None
        self.set_state(0)

    def __iter__(self) -> "Replay":
        return self

    def __next__(self) -> Any:
        assert self._iterator is not None
        item = next(self._iterator)
        self._taken += 1
        return item

    def get_state(self) -> int:
        """How many were taken."""
        return self._taken

    def set_state(self, state: int) -> None:
        """Go to where so many have been taken."""
        before, self._iterator, self._taken = self._iterator, iter(self._make()), 0
        if self._iterator is before:
            raise ValueError(
                "Replay: make() returned the same iterator twice, and the batches that it has "
                "given are gone. Make it inside: Replay(lambda: batches(...)), not of an iterator "
                "that is there already."
            )
        for number in range(state):
            if next(self, self) is self:
                raise ValueError(
                    f"Replay: make() gave {number} batches, but the place to go on from is after "
                    f"{state}: it is not the iterator of before. Give that one."
                )
