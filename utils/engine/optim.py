"""The optimizer and its three groups of parameters."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from utils.core.hyp import Hyp


def parameter_groups(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort the trainable parameters: biases, weights that decay, weights of normalisation layers.

    The order is that of YOLOv5 since v6.2, so that x/lr0 in results.csv is the biases' rate (behaviour.md 3.3).
    """
    norms = tuple(kind for name, kind in nn.__dict__.items() if "Norm" in name and isinstance(kind, type))
    groups: dict[str, list[nn.Parameter]] = {"bias": [], "decay": [], "norm": []}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                groups["bias"].append(parameter)
            elif name == "weight" and isinstance(module, norms):
                groups["norm"].append(parameter)
            else:
                groups["decay"].append(parameter)
    return groups


def build_optimizer(network: nn.Module, name: str, hyp: Hyp, batch_size: int, device: torch.device) -> Any:
    """Return the optimizer called `name`; weight decay is scaled to the images per update (behaviour.md 3.2)."""
    accumulate = max(round(hyp.nominal_batch / batch_size), 1)
    decay = hyp.weight_decay * batch_size * accumulate / hyp.nominal_batch
    groups = [
        {"params": parameters, "role": role, "weight_decay": decay if role == "decay" else 0.0}
        for role, parameters in parameter_groups(network).items()
        if parameters
    ]
    # fused: one kernel for all tensors; on CPUs and others the multi-tensor form
    speed = {"fused": True} if device.type in {"cuda", "cpu"} else {"foreach": True}
    if name == "SGD":
        return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=hyp.momentum > 0, **speed)
    if name == "RMSProp":
        return torch.optim.RMSprop(groups, lr=hyp.lr0, momentum=hyp.momentum, foreach=True)
    kind: Callable[..., Any] = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[name]
    return kind(groups, lr=hyp.lr0, betas=(hyp.momentum, 0.999), **speed)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float = 10.0) -> Tensor:
    """Scale the gradients so that their common norm is at most `limit`; return the norm before."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), limit, foreach=True)
