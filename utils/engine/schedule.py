"""Learning rate, momentum and accumulation as functions of the step, so that resuming needs no state."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.core.hyp import Hyp


def linear(progress: float, final: float) -> float:
    """Return the multiplier on a straight line from 1 to `final` (behaviour.md 3.4)."""
    return (1 - progress) * (1 - final) + final


def cosine(progress: float, final: float) -> float:
    """Return the multiplier on half a cosine from 1 to `final`."""
    return (1 - math.cos(math.pi * progress)) / 2 * (final - 1) + 1


@dataclass(frozen=True)
class Schedule:
    """The plan of one run. Steps count batches from 0 over the whole run."""

    hyp: Hyp
    epochs: int
    steps_per_epoch: int
    batch_size: int
    use_cosine: bool = False

    @property
    def warmup_steps(self) -> int:
        """Return the length of the warm-up in batches, at least 100 unless it is switched off."""
        return max(round(self.hyp.warmup_epochs * self.steps_per_epoch), 100) if self.hyp.warmup_epochs > 0 else -1

    def factor(self, epoch: int) -> float:
        """Return the multiplier of the learning rate in `epoch`."""
        curve = cosine if self.use_cosine else linear
        return curve(epoch / self.epochs, self.hyp.lrf)

    def _warm(self, step: int, start: float, end: float) -> float:
        return float(np.interp(step, [0, self.warmup_steps], [start, end]))

    def accumulate(self, step: int) -> int:
        """Return how many batches make one update at `step`."""
        goal = self.hyp.nominal_batch / self.batch_size
        return max(1, round(self._warm(step, 1, goal) if step <= self.warmup_steps else goal))

    def apply(self, optimizer: Any, epoch: int, step: int) -> None:
        """Set rate and momentum of every group of `optimizer` for batch `step` of the run."""
        goal = self.hyp.lr0 * self.factor(epoch)
        warming = step <= self.warmup_steps
        for group in optimizer.param_groups:
            start = self.hyp.warmup_bias_lr if group["role"] == "bias" else 0.0
            group["lr"] = self._warm(step, start, goal) if warming else goal
            if "momentum" in group:
                low, high = self.hyp.warmup_momentum, self.hyp.momentum
                group["momentum"] = self._warm(step, low, high) if warming else high
