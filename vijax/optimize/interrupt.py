"""Ctrl-C as a request that a loop answers when it is ready."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Request:
    """A SIGINT handler: the first Ctrl-C is noted, here and by the requests around this one; a
    further one raises KeyboardInterrupt, but not while XLA compiles.

    Attributes:
      seen: signals so far; becomes non-empty at the first.
      owed: was there a further one while XLA compiled?
      outer: the handler that this one replaced, if it is of this kind.
    """

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.owed = False
        before: Any = signal.getsignal(signal.SIGINT)
        self.outer: Request | None = before if isinstance(before, Request) else None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Called by Python in the main thread, between two of its instructions."""
        again = self.asked()
        self.note(number)
        self.owed = again and compiling(frame)
        if again and not self.owed:
            raise KeyboardInterrupt

    def asked(self) -> bool:
        """Has there been a Ctrl-C since the outermost of these requests was opened?"""
        return bool(self.seen) or (self.outer is not None and self.outer.asked())

    def note(self, number: int) -> None:
        """Remember a signal, in all that are open."""
        self.seen.append(number)
        if self.outer is not None:
            self.outer.note(number)


def compiling(frame: FrameType | None) -> bool:
    """Does this frame wait for XLA's compiler?

    JAX lets an exception end the waiting, but not the compilation: an interpreter that then comes
    to its end pulls the client away from under the compiler's thread (SIGSEGV, JAX 0.10).
    """
    while frame is not None and not frame.f_code.co_name.startswith("backend_compile"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Yields a list that becomes non-empty at Ctrl-C; a second Ctrl-C raises KeyboardInterrupt, at
    once or, if XLA is compiling, at the end of the block. Main thread only.

    Nested (a fit in a callback of another), all of them learn of it: the inner loop ends, then the
    outer one does.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    request = Request()
    before = signal.signal(signal.SIGINT, request)
    try:
        yield request.seen
    finally:
        signal.signal(signal.SIGINT, before)
    if request.owed:
        raise KeyboardInterrupt
