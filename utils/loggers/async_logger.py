"""Run a logger in a background thread, so that a slow or failing one never delays or stops the training."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable

from utils.core.contracts import Logger
from utils.core.errors import UserError
from utils.core.log import LOGGER

QUEUE_SIZE = 256  # pending calls per logger; further calls are dropped
START_TIMEOUT_S = 60.0  # how long the run waits for a logger to start
FINISH_TIMEOUT_S = 300.0  # how long the run waits at its end for pending calls
_POLL_S = 0.005
_NOTICE_S = 2.0  # a wait longer than this is announced

LoggerCall = Callable[[Logger], None]


class AsyncLogger:
    """Queue of calls to one logger, executed in order by a daemon thread.

    The first exception that the logger raises is logged at once and disables the logger: later calls are ignored and
    the run continues. Only a `UserError` raised by the first call (for example a missing package) is re-raised in
    `start`, because nothing has been trained yet.

    Args:
        name: Name of the logger in messages.
        logger: Logger to call. It must not be used by another thread.
    """

    def __init__(self, name: str, logger: Logger) -> None:
        self.name, self.logger = name, logger
        self.active = True
        self._starting = False
        self._error: Exception | None = None
        self._dropped = 0
        self._calls: queue.Queue[LoggerCall] = queue.Queue(QUEUE_SIZE)
        threading.Thread(target=self._work, name=f"logger {name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if self.active:
                try:
                    call(self.logger)
                except Exception as error:  # noqa: BLE001 - packages of services raise whatever they like
                    self.active, self._error = False, error
                    if not (self._starting and isinstance(error, UserError)):  # `start` re-raises that one
                        log_failure(self.name, error)
            self._calls.task_done()

    def start(self, call: LoggerCall) -> None:
        """Execute the first call and wait for it, `START_TIMEOUT_S` seconds at most.

        Raises:
            UserError: If the call raised one, that is, if the user can fix the problem.
        """
        self._starting = True
        self._calls.put(call)
        self._wait(START_TIMEOUT_S)
        self._starting = False
        if isinstance(self._error, UserError):
            raise self._error

    def send(self, call: LoggerCall) -> None:
        """Queue a call without waiting; it is dropped if the queue is full or the logger is disabled."""
        if not self.active:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._dropped:
                LOGGER.warning(f"logger {self.name}: too slow, {QUEUE_SIZE} calls are pending; new ones are dropped")
            self._dropped += 1

    def finish(self, call: LoggerCall) -> None:
        """Queue the last call and wait until all pending calls are done, `FINISH_TIMEOUT_S` seconds at most."""
        self.send(call)
        if not self._wait(FINISH_TIMEOUT_S, notice="sending the remaining data"):
            LOGGER.warning(
                f"logger {self.name}: not finished after {FINISH_TIMEOUT_S:.0f} s; the end of its log may be missing"
            )
        if self._dropped:
            LOGGER.warning(f"logger {self.name}: {self._dropped} calls were dropped")

    def _wait(self, timeout_s: float, notice: str = "") -> bool:
        """Wait until no call is pending; return False on timeout."""
        start, announced = time.monotonic(), not notice
        while self._calls.unfinished_tasks:
            waited = time.monotonic() - start
            if waited >= timeout_s:
                return False
            if not announced and waited > _NOTICE_S:
                LOGGER.info(f"logger {self.name}: {notice} (Ctrl-C skips this)")
                announced = True
            time.sleep(_POLL_S)
        return True


def log_failure(name: str, error: Exception) -> None:
    """Warn that a logger failed and is disabled; the traceback follows at debug level."""
    message = next(iter(str(error).splitlines()), "")
    reason = f"{type(error).__name__}: {message}".rstrip(": ")
    LOGGER.warning(f"logger {name} failed and is switched off: {reason}")
    LOGGER.debug("".join(traceback.format_exception(error)))
