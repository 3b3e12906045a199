"""Learning-rate curves over the epochs, found by name: a function of a `Moment` that returns a multiplier of lr0."""

from __future__ import annotations

from dataclasses import dataclass

from utils.core.registry import Registry

SCHEDULES = Registry("schedule", "utils.engine.schedules")


@dataclass(frozen=True)
class Moment:
    """An epoch of a run, and what a curve may be told. Curves read what they need."""

    epoch: float  # from 0
    epochs: int  # of the whole run
    final: float = 0.01  # what the curve ends at, as a fraction of lr0: the hyper-parameter lrf
    steps: tuple[int, ...] = ()  # epochs at which multi-step falls; empty: at 220/300 and 250/300 of the run
    gamma: float = 0.1  # and the factor by which
    cycles: int = 3  # of cosine-restarts
    power: float = 0.9  # of polynomial

    @property
    def progress(self) -> float:
        """Return the share of the run that is over, 0 to 1."""
        return self.epoch / self.epochs
