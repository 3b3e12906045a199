"""Learning rate, momentum and accumulation as functions of the step, so that resuming needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.core.hyp import Hyp
from utils.core.train_settings import TrainSettings
from utils.engine.schedules import SCHEDULES, SchedulePoint


@dataclass(frozen=True)
class Schedule:
    """The plan of one run. Steps count batches from 0 over the whole run."""

    hyp: Hyp
    epochs: int
    steps_per_epoch: int
    batch_size: int
    curve: str = "linear"  # a name in SCHEDULES
    steps: tuple[int, ...] = ()  # what some curves are told: see SchedulePoint
    gamma: float = 0.1
    cycles: int = 3
    power: float = 0.9
    backbone_warmup: float = 0.0  # epochs in which the backbone's rate rises from 0

    @classmethod
    def of(cls, settings: TrainSettings, hyp: Hyp, steps_per_epoch: int) -> Schedule:
        """Return the plan that `settings` and `hyp` describe."""
        return cls(
            hyp,
            settings.epochs,
            steps_per_epoch,
            int(settings.batch_size),
            curve=settings.curve,
            steps=settings.lr_epochs,
            gamma=settings.lr_gamma,
            cycles=settings.lr_cycles,
            power=settings.lr_power,
            backbone_warmup=settings.backbone_warmup,
        )

    @property
    def warmup_steps(self) -> int:
        """Return the length of the warm-up in batches, at least 100 unless it is switched off."""
        return max(round(self.hyp.warmup_epochs * self.steps_per_epoch), 100) if self.hyp.warmup_epochs > 0 else -1

    def factor(self, epoch: int) -> float:
        """Return the multiplier of the learning rate in `epoch`."""
        now = SchedulePoint(epoch, self.epochs, self.hyp.lrf, self.steps, self.gamma, self.cycles, self.power)
        return float(SCHEDULES.get(self.curve)(now))

    def _warm(self, step: int, start: float, end: float) -> float:
        return float(np.interp(step, [0, self.warmup_steps], [start, end]))

    def accumulate(self, step: int) -> int:
        """Return how many batches make one update at `step`."""
        goal = self.hyp.nominal_batch / self.batch_size
        return max(1, round(self._warm(step, 1, goal) if step <= self.warmup_steps else goal))

    def _share(self, group: dict[str, Any], step: int) -> float:
        """Return the part of the common rate that a group gets: its layers' own, less while the backbone warms up."""
        share: float = group.get("scale", 1.0)
        rising = self.backbone_warmup * self.steps_per_epoch
        return share * min(step / rising, 1.0) if group.get("backbone") and rising else share

    def apply(self, optimizer: Any, epoch: int, step: int) -> None:
        """Set rate and momentum of every group of `optimizer` for batch `step` of the run."""
        goal = self.hyp.lr0 * self.factor(epoch)
        warming = step <= self.warmup_steps
        for group in optimizer.param_groups:
            start = self.hyp.warmup_bias_lr if group["role"] == "bias" else 0.0
            group["lr"] = (self._warm(step, start, goal) if warming else goal) * self._share(group, step)
            if "momentum" in group:
                low, high = self.hyp.warmup_momentum, self.hyp.momentum
                group["momentum"] = self._warm(step, low, high) if warming else high
