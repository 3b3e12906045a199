"""Timers for blocks and functions, and the format of durations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import device


class Stopwatch:
    """Context manager that adds up the time spent in its blocks.

    Attributes:
        seconds: Time in all blocks so far.
        last: Time in the last block.

    Args:
        target: Device of the timed work; CUDA devices are synchronised before each reading of the clock.
    """

    def __init__(self, target: device | None = None) -> None:
        self.seconds = 0.0
        self.last = 0.0
        self._cuda = target is not None and target.type == "cuda"
        self._start = 0.0

    def _now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def __enter__(self) -> Stopwatch:
        self._start = self._now()
        return self

    def __exit__(self, *exception: object) -> None:
        self.last = self._now() - self._start
        self.seconds += self.last


def time_alternately(
    actions: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 3,
    target: device | None = None,
    twice: bool = False,
) -> dict[str, list[float]]:
    """Time several actions in alternation, so that other load on the machine affects all of them alike.

    Args:
        actions: Functions to time, by name.
        rounds: Number of timed rounds, each of which runs every action once.
        warm_up: Number of additional rounds before that.
        target: Device that the actions compute on.
        twice: Run every action once more, untimed, before each timing. Until then the idle threads of another
            runtime may still occupy the cores.

    Returns:
        The seconds of each round, by name.
    """
    watch = Stopwatch(target)
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(warm_up + rounds):
        for name, action in actions.items():
            if twice:
                action()
            with watch:
                action()
            if turn >= warm_up:
                seconds[name].append(watch.last)
    return seconds


def duration(seconds: float) -> str:
    """Format a duration: 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
