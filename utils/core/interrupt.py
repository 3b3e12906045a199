"""Handler that turns Ctrl-C and SIGTERM into a request to stop at the next safe point."""

import signal
import threading
from types import FrameType
from typing import Any

from utils.core.distributed import world_size
from utils.core.log import LOGGER


class Interrupt:
    """Context manager that records the first SIGINT or SIGTERM in `requested`; the second one acts as usual.

    Args:
        text: Warning that is logged at the first signal.
    """

    def __init__(self, text: str) -> None:
        self.requested = False
        self._text = text
        self._previous_handlers: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        LOGGER.warning(self._text)
        self._restore()
        if world_size() > 1:  # the launcher also sends SIGTERM to every rank, and kills it only after 30 s
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def __exit__(self, *exception: object) -> None:
        self._restore()
