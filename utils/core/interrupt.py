"""Handlers that turn Ctrl-C, SIGTERM and SIGHUP into a request to stop at the next safe point."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, ClassVar

from utils.core.distributed import world_size
from utils.core.log import LOGGER

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class StopSignal(KeyboardInterrupt):
    """The process stops because of a signal, or for another reason if `number` is 0.

    Attributes:
        status: Exit status, as a shell reports it: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number, self.status = number, 128 + number
        self.text = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def raise_stop_signal(number: int, frame: FrameType | None) -> None:
    """Raise `StopSignal`; a signal handler for programs."""
    raise StopSignal(number)


def handle_signals(handler: Any) -> dict[int, Any]:
    """Set the handler of the stop signals, except of those that the parent process ignores, as nohup does with SIGHUP.

    Returns:
        The previous handlers by signal number; empty outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


class Interrupt:
    """Context manager that records the first stop signal; the second one acts as usual.

    Attributes:
        requested: Whether to stop at the next safe point.
        number: The signal, 0 if there was none.
        reason: Why to stop, if not because of a signal.

    Args:
        text: Warning that is logged at the first signal.
    """

    active: ClassVar[Interrupt | None] = None  # that of the training in progress

    def __init__(self, text: str) -> None:
        self.requested, self.number, self.reason = False, 0, ""
        self._text, self._process = text, os.getpid()
        self._previous_handlers: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child that has not set its own handlers yet
            return
        self.requested, self.number = True, number
        LOGGER.warning(self._text)
        self._restore()
        if world_size() > 1:  # the launcher also sends SIGTERM to every rank, and kills it only after 30 s
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def __enter__(self) -> Interrupt:
        self._previous_handlers = handle_signals(self._handle)
        Interrupt.active = self
        return self

    def _restore(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def __exit__(self, *exception: object) -> None:
        self._restore()
        Interrupt.active = None


def request_stop(reason: str) -> bool:
    """Ask the training in progress to save and stop; return whether there is one."""
    if Interrupt.active is None:
        return False
    Interrupt.active.requested, Interrupt.active.reason = True, reason
    return True
