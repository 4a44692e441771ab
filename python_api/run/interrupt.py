"""Ctrl-C: the first asks the run to stop after the step in hand, the second stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Self

__all__ = ["Interrupted", "StopOnInterrupt"]


class Interrupted(KeyboardInterrupt):
    """A run that was stopped by its user. The command exits with 130, `path` can be read."""

    def __init__(self, message: str = "interrupted", *, path: object = None) -> None:
        super().__init__(message)
        self.path = path


class StopOnInterrupt:
    """While it is entered, the first SIGINT sets `requested` and calls `notice`; the second raises.

    Outside the main thread, where Python lets nobody handle signals, it changes nothing.
    """

    def __init__(self, notice: Callable[[], None]) -> None:
        self.requested = False
        self._notice = notice
        self._previous: object = None
        self._installed = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, *exc: object) -> None:
        if self._installed:
            # None: the handler before ours was not installed from Python
            previous = signal.SIG_DFL if self._previous is None else self._previous
            signal.signal(signal.SIGINT, previous)  # type: ignore[arg-type]
            self._installed = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._notice()
