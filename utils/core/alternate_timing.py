"""Comparison of running times under the changing load of a machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from utils.core.timing import Stopwatch

if TYPE_CHECKING:
    from torch import device


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
