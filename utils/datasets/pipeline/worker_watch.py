"""Watch over loader workers: a stopped one is named and ended, so that a training never waits for it for ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import TracebackType

from utils.core.interrupt import request_stop
from utils.core.log import LOGGER
from utils.core.process_state import is_stopped

STOPPED_S = 30.0  # how long the training waits for a batch while a worker is stopped
_POLL_S = 0.5


def describe_end(number: int, process: BaseProcess) -> str:
    """Describe how a worker ended: `data loader worker 1 (process 4711) was killed by SIGKILL`."""
    code = process.exitcode or 0
    try:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    except ValueError:  # a real-time signal
        how = f"was killed by signal {-code}"
    return f"data loader worker {number} (process {process.pid}) {how}"


class WorkerWatch:
    """Context manager with a thread that ends workers that are stopped while the training waits for a batch.

    The time is counted in polls of this process, which does not count while the whole process group is stopped.

    Args:
        processes: The workers.
    """

    def __init__(self, processes: Sequence[BaseProcess]) -> None:
        self._processes = processes
        self._waiting = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="worker watch", daemon=True)

    def __enter__(self) -> WorkerWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark that the training waits for a batch."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def _watch(self) -> None:
        stopped_s = dict.fromkeys(range(len(self._processes)), 0.0)
        while not self._end.wait(_POLL_S):
            for number, process in enumerate(self._processes):
                stopped = self._waiting and process.pid is not None and is_stopped(process.pid)
                stopped_s[number] = stopped_s[number] + _POLL_S if stopped else 0.0
                if stopped_s[number] >= STOPPED_S:
                    text = f"data loader worker {number} (process {process.pid}) is stopped"
                    if not request_stop(f"{text} and gave nothing for {STOPPED_S:.0f} s"):
                        LOGGER.warning(f"{text} for {STOPPED_S:.0f} s; ending it")
                    process.kill()
