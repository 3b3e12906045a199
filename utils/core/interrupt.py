"""Ctrl-C and SIGTERM as a request that the loop answers at the next safe moment."""

import signal
import threading
from types import FrameType
from typing import Any

from utils.core.distributed import world_size
from utils.core.log import LOGGER


class Interrupt:
    """While the `with` block runs, the first signal sets `requested`; the second acts at once, as usual."""

    def __init__(self, text: str) -> None:
        self.requested = False
        self._text = text
        self._old: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        LOGGER.warning(self._text)
        self._restore()
        if world_size() > 1:  # the launcher, interrupted too, asks every rank to end at once; it waits half a minute
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def __exit__(self, *exception: object) -> None:
        self._restore()
