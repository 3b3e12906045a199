"""Timers for blocks and functions, and the format of durations."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import device
    from torch.cuda import Event

_MAX_PENDING = 256  # blocks; older ones have ended long ago, so that reading them does not wait


class Stopwatch:
    """Context manager that adds up the time spent in its blocks.

    On a CUDA device, blocks are timed by events in its stream: timing alone never makes the host wait for the device,
    reading a time does.

    Args:
        target: Device of the timed work.
    """

    def __init__(self, target: device | None = None) -> None:
        self._target = target if target is not None and target.type == "cuda" else None
        self._seconds = 0.0
        self._last = 0.0
        self._start = 0.0
        self._start_event: Event | None = None
        self._pending: deque[tuple[Event, Event]] = deque()  # blocks whose time is not read yet

    @property
    def seconds(self) -> float:
        """Time in all blocks so far."""
        self._read(0)
        return self._seconds

    @property
    def last(self) -> float:
        """Time in the last block."""
        self._read(0)
        return self._last

    def _read(self, remaining: int) -> None:
        """Add up the times of the oldest blocks until only so many are left."""
        while len(self._pending) > remaining:
            start, end = self._pending.popleft()
            end.synchronize()
            self._last = start.elapsed_time(end) / 1000
            self._seconds += self._last

    def _event(self) -> Event:
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._target))
        return event

    def __enter__(self) -> Stopwatch:
        if self._target is None:
            self._start = time.perf_counter()
        else:
            self._start_event = self._event()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._start_event is None:
            self._last = time.perf_counter() - self._start
            self._seconds += self._last
        else:
            self._pending.append((self._start_event, self._event()))
            self._read(_MAX_PENDING)


def duration(seconds: float) -> str:
    """Format a duration: 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
