"""The groups of parameters that an optimizer gets: by role, and by layer where layers learn at rates of their own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from utils.core.hyp import Hyp
from utils.engine.optimizers import OPTIMIZERS, OptimizerOptions


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


def layer_scales(network: Any, decay: float) -> dict[str, float]:
    """Return by which factor each layer's rate differs, by the prefix of its parameters' names.

    Heads learn at the full rate, and every layer `decay` times as fast as the one after it (Howard and Ruder 2018).
    """
    first_head = min(network.head_rows.values())
    return {f"model.{row}.": decay ** max(first_head - row, 0) for row in range(len(network.model))}


def _grouped(network: Any, layer_decay: float, backbone_apart: bool) -> list[dict[str, Any]]:
    """Return the groups of parameters by role, and where layers learn at rates of their own also by layer."""
    by_role = parameter_groups(network)
    if layer_decay == 1 and not backbone_apart:
        return [{"params": parameters, "role": role} for role, parameters in by_role.items() if parameters]
    scales = layer_scales(network, layer_decay)
    backbone = tuple(f"model.{row}." for row in range(len(network.architecture["backbone"])))
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
    for role, parameters in by_role.items():
        for parameter in parameters:
            name = names[parameter]
            scale = next((scale for prefix, scale in scales.items() if name.startswith(prefix)), 1.0)
            in_backbone = backbone_apart and name.startswith(backbone)
            blank: dict[str, Any] = {"params": [], "role": role, "scale": scale, "backbone": in_backbone}
            groups.setdefault((role, scale, in_backbone), blank)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    network: nn.Module,
    name: str,
    hyp: Hyp,
    batch_size: int,
    device: torch.device,
    layer_decay: float = 1.0,
    backbone_apart: bool = False,
) -> Any:
    """Return the optimizer called `name`; weight decay is scaled to the images per update (behaviour.md 3.2).

    `layer_decay` below 1 makes layers nearer to the images learn slower; `backbone_apart` gives the backbone groups of
    its own. Either needs a `Network`.
    """
    accumulate = max(round(hyp.nominal_batch / batch_size), 1)
    decay = hyp.weight_decay * batch_size * accumulate / hyp.nominal_batch
    groups = _grouped(network, layer_decay, backbone_apart)
    for group in groups:
        group["weight_decay"] = decay if group["role"] == "decay" else 0.0
    options = OptimizerOptions(hyp.lr0, hyp.momentum, fused=device.type in {"cuda", "cpu"})
    return OPTIMIZERS.get(name)(groups, options)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float = 10.0) -> Tensor:
    """Scale the gradients so that their common norm is at most `limit`; return the norm before."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), limit, foreach=True)
