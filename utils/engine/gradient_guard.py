"""Optimizer steps that skip non-finite gradients, without making the host wait for a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.engine.parameter_groups import clip_gradients

MAX_BAD_STEPS = 20  # skipped steps after which a run is aborted
# With a gradient scaler, skipped steps in a row: it starts at 2^16 and halves its scale at each of them.
MAX_BAD_STEPS_IN_A_ROW = 40


class GradientGuard:
    """Clip gradients, make optimizer steps, and count those that are skipped because gradients are not finite.

    Fused optimizers and the gradient scaler decide on the device whether to skip a step. The counts are copied to the
    host asynchronously, so `bad_steps` may lag behind by a few steps until `synchronize()`.

    Args:
        optimizer: Optimizer whose gradients are checked.
        scaler: Gradient scaler of fp16 training; may be disabled.
        device: Device of the parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, device: torch.device) -> None:
        self.optimizer, self.scaler, self.device = optimizer, scaler, device
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # in total, in a row
        self._host = torch.zeros(2, dtype=torch.int64)
        if device.type == "cuda":
            self._host = self._host.pin_memory()
        self._decides_on_device = all(group.get("fused") for group in optimizer.param_groups)

    def restore(self, bad_steps: int) -> None:
        """Set the number of steps that were skipped before the run was resumed."""
        self._host[0] = bad_steps
        self._counts.copy_(self._host)

    @property
    def bad_steps(self) -> int:
        """Skipped steps that the host knows of."""
        return int(self._host[0])

    @property
    def failed(self) -> bool:
        """Whether so many steps were skipped that the run cannot recover."""
        if self.scaler.is_enabled():
            return int(self._host[1]) > MAX_BAD_STEPS_IN_A_ROW
        return self.bad_steps > MAX_BAD_STEPS

    def step(self) -> None:
        """Clip the gradients and make one step, or skip it if a gradient is not finite; then clear the gradients."""
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(parameter for group in self.optimizer.param_groups for parameter in group["params"])
        bad = ~torch.isfinite(norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # skips such steps itself
            self.scaler.update()
        elif self.device.type == "cuda" and self._decides_on_device:
            self._step_unless(bad)
        elif not bool(bad):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(bad)

    def _step_unless(self, bad: Tensor) -> None:
        """Make a step that fused optimizers skip on the device where `bad` is set, as they do for a scaler."""
        self.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        del self.optimizer.found_inf, self.optimizer.grad_scale  # type: ignore[attr-defined]

    def _count(self, bad: Tensor) -> None:
        self._counts += bad
        self._counts[1] *= bad
        self._host.copy_(self._counts, non_blocking=True)

    def synchronize(self) -> None:
        """Wait until the counts of all steps have reached the host."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
