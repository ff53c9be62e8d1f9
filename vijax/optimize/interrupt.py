"""Ctrl-C as a request that a loop answers when it is ready."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def interruptible():
    """Yields a list that becomes non-empty at Ctrl-C; a second Ctrl-C interrupts at once. Main
    thread only.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number, frame):
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
