"""Ctrl-C and SIGTERM as a wish to stop, not as an exception."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

WISHES = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` on Ctrl-C or SIGTERM (what batch systems and launchers send), for the length of a block.

    A second Ctrl-C raises KeyboardInterrupt. Outside the main thread, to which alone Python delivers signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {wish: signal.getsignal(wish) for wish in WISHES}

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        action()

    for wish in WISHES:
        signal.signal(wish, handle)
    try:
        yield
    finally:
        for wish, handler in before.items():
            signal.signal(wish, handler)
