"""A logger in a thread of its own: one that waits for a network, or fails, costs the run nothing."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType

from utils.core.contracts import Logger
from utils.core.errors import UserError
from utils.core.log import LOGGER

WAITING = 256  # messages that may wait; more are left out
START_SECONDS = 60.0  # for which a run waits for a logger to start
FINISH_SECONDS = 300.0  # and to send what is left at the end

Call = Callable[[Logger], None]


class _Fault:
    """A `with` block that ends at any error of the logger's and keeps it for the report."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def __enter__(self) -> _Fault:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


class Courier:
    """Hand calls to `logger` in their order. After an error it gets no more; the user is told once."""

    def __init__(self, name: str, logger: Logger) -> None:
        self.name, self.logger = name, logger
        self.active = True
        self._left_out = 0
        self._calls: queue.Queue[Call] = queue.Queue(WAITING)
        self._fault: Exception | None = None
        threading.Thread(target=self._work, name=f"logger {name}", daemon=True).start()

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            if self.active:
                with _Fault() as fault:
                    call(self.logger)
                if fault.error is not None:
                    self.active, self._fault = False, fault.error
            self._calls.task_done()

    def _report(self) -> None:
        if self._fault is not None:
            error, self._fault = self._fault, None
            LOGGER.warning(f"logger {self.name} failed and is switched off: {reason_of(error)}")

    def send(self, call: Call) -> None:
        """Hand over a call, at once; where too many wait already, it is left out."""
        self._report()
        if not self.active:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._left_out:
                LOGGER.warning(f"logger {self.name} is too slow for this run; some of what it should get is left out")
            self._left_out += 1

    def wait(self, seconds: float, say: str = "") -> bool:
        """Wait until every call has been answered, `seconds` at most; return whether it was. `say` is what for."""
        start, told = time.monotonic(), not say
        while self._calls.unfinished_tasks and time.monotonic() - start < seconds:
            if not told and time.monotonic() - start > 2:
                LOGGER.info(f"logger {self.name}: {say} (Ctrl-C leaves it)")
                told = True
            time.sleep(0.005)
        answered = not self._calls.unfinished_tasks
        self._report()
        return answered

    def start(self, call: Call) -> None:
        """Hand over the first call; what the user can put right is raised here, as nothing is lost yet."""
        self._calls.put(call)
        end = time.monotonic() + START_SECONDS
        while self._calls.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.005)
        if isinstance(self._fault, UserError):
            raise self._fault
        self._report()

    def finish(self, call: Call) -> None:
        """Hand over the last call and wait, though not for ever."""
        self.send(call)
        if not self.wait(FINISH_SECONDS, "sending what is left"):
            LOGGER.warning(
                f"logger {self.name} did not finish in {FINISH_SECONDS:.0f} s; what it wrote may lack the end"
            )
        if self._left_out:
            LOGGER.warning(f"logger {self.name}: {self._left_out} messages were left out")


def reason_of(error: Exception) -> str:
    """Return an error in one line; with its kind, unless it is one whose text speaks for itself."""
    text = next(iter(str(error).splitlines()), "")
    plain = isinstance(error, (OSError, RuntimeError, ValueError, UserError))
    return text if text and plain else f"{type(error).__name__}: {text}".rstrip(": ")
