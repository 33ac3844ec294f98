"""SIGINT and SIGTERM end long work in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_LISTENING: list[Callable[[], bool]] = []
"""What asks the work to end, of every context that is open; one may hold another."""


@contextmanager
def on_signals(stop: Callable[[], bool]) -> Iterator[None]:
    """Call a function on the first SIGINT or SIGTERM; the second one ends the work at once.

    Args:
        stop: asks the work to end; returns False when it was asked before, or cannot be. Of
            contexts in each other all are asked.

    Raises:
        KeyboardInterrupt: in the work, where ``stop`` returned False.
    """
    previous: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        heard = [listener() for listener in _LISTENING]  # every one of them has to be asked
        if not any(heard):
            raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handle)
    _LISTENING.append(stop)
    try:
        yield
    finally:
        _LISTENING.remove(stop)
        for caught, handler in previous.items():
            signal.signal(caught, handler)
