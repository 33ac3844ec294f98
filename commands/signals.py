"""SIGINT and SIGTERM end long work in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def on_signals(stop: Callable[[], bool]) -> Iterator[None]:
    """Call a function on the first SIGINT or SIGTERM; the second one ends the work at once.

    Args:
        stop: asks the work to end; returns False when it was asked before, or cannot be.

    Raises:
        KeyboardInterrupt: in the work, where ``stop`` returned False.
    """
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if not stop():
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
