"""SGD whose updates of weight matrices are mixed with their orthogonalised form (Muon, Jordan et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.engine.eager_optimizer import eager
from utils.engine.optimizers import OPTIMIZERS, OptimizerOptions, ParamGroups

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # coefficients of x, x^3 and x^5, which move singular values towards 1
_ITERATIONS = 5
_TINY = 1e-7


class MuonSgd(torch.optim.Optimizer):
    """Nesterov SGD in which matrices move along `muon` x orthogonalised update + `sgd` x update.

    Matrices are the weights of linear layers and convolutions, the latter with one row per output channel, in groups of
    the role `decay`; their weight decay is decoupled. Other parameters follow SGD.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        momentum: Momentum of both parts.
        weight_decay: Default weight decay of matrices.
        muon: Weight of the orthogonalised update.
        sgd: Weight of the plain update.
    """

    def __init__(
        self,
        params: ParamGroups,
        lr: float,
        momentum: float = 0.937,
        weight_decay: float = 0.0,
        muon: float = 0.5,
        sgd: float = 0.5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "muon": muon, "sgd": sgd}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        grads = [parameter.grad for parameter in params if parameter.grad is not None]
        buffers = []
        for parameter in params:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers.append(state["momentum_buffer"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, grads)
        updates = list(torch._foreach_add(grads, buffers, alpha=group["momentum"]))
        if group.get("role", "decay") == "decay":
            matrices = [index for index, parameter in enumerate(params) if parameter.ndim >= 2]
            for index, straight in zip(matrices, orthogonalise([updates[i] for i in matrices]), strict=True):
                updates[index] = updates[index].mul(group["sgd"]).add_(straight, alpha=group["muon"])
            if group["weight_decay"] and matrices:
                torch._foreach_mul_([params[i] for i in matrices], 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-group["lr"])


def orthogonalise(updates: Sequence[Tensor]) -> list[Tensor]:
    """Replace the singular values of matrices by about 1, times the root of max(1, rows / columns).

    Matrices of one shape are computed as a batch, since a network has many small ones.

    Args:
        updates: Tensors with at least two dimensions; all but the first count as columns.

    Returns:
        Tensors of the same shapes.
    """
    by_shape: dict[tuple[int, int, torch.device], list[int]] = {}
    flat = [update.reshape(update.shape[0], -1).float() for update in updates]
    for index, matrix in enumerate(flat):
        rows, columns = matrix.shape
        by_shape.setdefault((min(rows, columns), max(rows, columns), matrix.device), []).append(index)
    found: dict[int, Tensor] = {}
    for members in by_shape.values():
        wide = [flat[i] if flat[i].shape[0] <= flat[i].shape[1] else flat[i].T for i in members]
        for index, matrix in zip(members, newton_schulz(torch.stack(wide)), strict=True):
            rows, columns = flat[index].shape
            straight = matrix if rows <= columns else matrix.T
            scale = max(1.0, rows / columns) ** 0.5
            found[index] = straight.mul(scale).reshape(updates[index].shape).to(updates[index].dtype)
    return [found[index] for index in range(len(updates))]


def newton_schulz(matrices: Tensor) -> Tensor:
    """Iterate x -> a x + b (x x^T) x + c (x x^T)^2 x on (n, rows, columns) matrices with rows <= columns."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + _TINY)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.float()


@OPTIMIZERS.register("MuonSGD")
def muon_sgd(groups: ParamGroups, options: OptimizerOptions) -> torch.optim.Optimizer:
    """Build SGD mixed with Muon."""
    return eager(MuonSgd)(groups, lr=options.lr, momentum=options.momentum)
