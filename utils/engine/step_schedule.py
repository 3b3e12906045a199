"""Learning rate, momentum and gradient accumulation as functions of the step, so that resuming needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.core.hyp import Hyp
from utils.core.train_settings import TrainSettings
from utils.engine.schedules import SCHEDULES, SchedulePoint


@dataclass(frozen=True)
class StepSchedule:
    """Schedule of one run with linear warmup. Steps count batches from 0 over the whole run."""

    hyp: Hyp
    epochs: int
    steps_per_epoch: int
    batch_size: int
    name: str = "linear"  # in SCHEDULES
    steps: tuple[int, ...] = ()  # options of the schedules: see SchedulePoint
    gamma: float = 0.1
    cycles: int = 3
    power: float = 0.9
    backbone_warmup: float = 0.0  # epochs in which the learning rate of the backbone rises from 0

    @classmethod
    def from_settings(cls, settings: TrainSettings, hyp: Hyp, steps_per_epoch: int) -> StepSchedule:
        """Build the schedule that `settings` and `hyp` describe."""
        return cls(
            hyp,
            settings.epochs,
            steps_per_epoch,
            int(settings.batch_size),
            name=settings.schedule_name,
            steps=settings.lr_epochs,
            gamma=settings.lr_gamma,
            cycles=settings.lr_cycles,
            power=settings.lr_power,
            backbone_warmup=settings.backbone_warmup,
        )

    @property
    def warmup_steps(self) -> int:
        """Length of the warmup in batches, at least `warmup_min_steps`; -1 without warmup."""
        if self.hyp.warmup_epochs <= 0:
            return -1
        return max(round(self.hyp.warmup_epochs * self.steps_per_epoch), round(self.hyp.warmup_min_steps))

    def factor(self, epoch: int) -> float:
        """Return the multiplier of lr0 in an epoch."""
        point = SchedulePoint(epoch, self.epochs, self.hyp.lrf, self.steps, self.gamma, self.cycles, self.power)
        return float(SCHEDULES.get(self.name)(point))

    def _warm_up(self, step: int, start: float, end: float) -> float:
        return float(np.interp(step, [0, self.warmup_steps], [start, end]))

    def accumulate(self, step: int) -> int:
        """Compute the number of batches that are accumulated for one optimizer step."""
        target = self.hyp.nominal_batch / self.batch_size
        return max(1, round(self._warm_up(step, 1, target) if step <= self.warmup_steps else target))

    def _group_scale(self, group: dict[str, Any], step: int) -> float:
        """Return the learning-rate multiplier of a parameter group: layer, semantic head, warmup of the backbone."""
        scale: float = group.get("scale", 1.0)
        rising = self.backbone_warmup * self.steps_per_epoch
        return scale * min(step / rising, 1.0) if group.get("backbone") and rising else scale

    def apply(self, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> None:
        """Set learning rate and momentum of every parameter group for batch `step` of the run."""
        target = self.hyp.lr0 * self.factor(epoch)
        warming_up = step <= self.warmup_steps
        for group in optimizer.param_groups:
            start, scale = self.hyp.warmup_bias_lr if group["role"] == "bias" else 0.0, self._group_scale(group, step)
            rate = target * scale
            group["lr"] = self._warm_up(step, start * min(scale, 1.0), rate) if warming_up else rate
            if "momentum" in group:
                low, high = self.hyp.warmup_momentum, self.hyp.momentum
                group["momentum"] = self._warm_up(step, low, high) if warming_up else high
