"""How a script ends at SIGINT and SIGTERM; what a run does then is said in `harness`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from vijax.optimize.interrupt import Request


class Interrupted(KeyboardInterrupt):
    """A signal ended a run before its end; `number` is the signal's."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class Stop(Request):
    """The handler of a script's signals: notes each and raises KeyboardInterrupt.

    Attributes:
      number: of the last signal.
      closed: true while what there is is being written for the last time; signals are then ignored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number: int = signal.SIGINT
        self.closed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """A signal outside of any loop that answers one."""
        if not self.closed:
            self.note(number)
            raise KeyboardInterrupt

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM goes the way of SIGINT, to whoever listens to that."""
        self.number = number
        signal.raise_signal(signal.SIGINT)


@contextmanager
def stoppable() -> Iterator[Stop]:
    """SIGINT and SIGTERM raise KeyboardInterrupt, or end a `vijax.fit`, and are noted. Main thread
    only.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signal.SIGINT: stop, signal.SIGTERM: stop.terminate}
    before = {number: signal.signal(number, handler) for number, handler in before.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
