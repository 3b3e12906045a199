"""Registry of learning-rate schedules: functions from a `SchedulePoint` to a multiplier of lr0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from utils.core.registry import Registry


@dataclass(frozen=True)
class SchedulePoint:
    """One epoch of a run and the options of all schedules."""

    epoch: float  # from 0
    epochs: int  # of the whole run
    final: float = 0.01  # final multiplier (hyperparameter lrf)
    steps: tuple[int, ...] = ()  # epochs of the drops of multi-step; empty: at 220/300 and 250/300 of the run
    gamma: float = 0.1  # factor of each drop
    cycles: int = 3  # of cosine-restarts
    power: float = 0.9  # of polynomial

    @property
    def progress(self) -> float:
        """Completed fraction of the run, 0 to 1."""
        return self.epoch / self.epochs


SCHEDULES: Registry[Callable[[SchedulePoint], float]] = Registry("schedule", "utils.engine.schedules")
