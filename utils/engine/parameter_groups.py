"""Parameter groups of the optimizer: by role, and by layer for layer-wise learning rates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from models.network import Network
from utils.core.hyp import Hyp
from utils.engine.optimizers import OPTIMIZERS, OptimizerOptions, ParamGroups

NORM_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # BatchNorm, SyncBatchNorm and InstanceNorm
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
SEMANTIC = "semantic"  # head
ROLES = ("bias", "decay", "norm")  # order of the groups, hence of the learning rates in results.csv


def parameter_role(owner: nn.Module, name: str) -> str:
    """Name the role of a parameter: `bias`, `norm` (scale of a normalisation layer) or `decay` (any other weight).

    Only parameters with the role `decay` are subject to weight decay.

    Args:
        owner: Module that holds the parameter.
        name: Name of the parameter in that module.
    """
    if name == "bias":
        return "bias"
    return "norm" if name == "weight" and isinstance(owner, NORM_LAYERS) else "decay"


def parameter_groups(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort the trainable parameters by role, each group in the order of the modules."""
    groups: dict[str, list[nn.Parameter]] = {role: [] for role in ROLES}
    for path, parameter in network.named_parameters():
        owner, _, name = path.rpartition(".")
        if parameter.requires_grad:
            groups[parameter_role(network.get_submodule(owner), name)].append(parameter)
    return groups


def layer_scales(network: Network, decay: float, semantic: float = 1.0) -> dict[str, float]:
    """Compute the learning-rate multiplier of each layer (discriminative fine-tuning, Howard and Ruder 2018).

    Heads have the full rate, the semantic head `semantic` times as much, and each earlier layer `decay` times the rate
    of the next one.

    Returns:
        Multipliers by the prefix of parameter names, such as `model.3.`.
    """
    first_head = min(network.head_rows.values())
    scales = {f"model.{row}.": decay ** max(first_head - row, 0) for row in range(len(network.model))}
    if SEMANTIC in network.head_rows:
        scales[f"model.{network.head_rows[SEMANTIC]}."] *= semantic
    return scales


def _split_groups(network: nn.Module, layer_decay: float, separate_backbone: bool, seg_lr: float) -> ParamGroups:
    """Build groups by role and, if the options ask for it, by learning-rate scale and backbone membership."""
    by_role = parameter_groups(network)
    if layer_decay == seg_lr == 1 and not separate_backbone:
        return [{"params": parameters, "role": role} for role, parameters in by_role.items() if parameters]
    assert isinstance(network, Network)
    scales = layer_scales(network, layer_decay, seg_lr)
    backbone = tuple(f"model.{row}." for row in range(len(network.architecture["backbone"])))
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
    for role, parameters in by_role.items():
        for parameter in parameters:
            name = names[parameter]
            scale = next((scale for prefix, scale in scales.items() if name.startswith(prefix)), 1.0)
            in_backbone = separate_backbone and name.startswith(backbone)
            empty: dict[str, Any] = {"params": [], "role": role, "scale": scale, "backbone": in_backbone}
            groups.setdefault((role, scale, in_backbone), empty)["params"].append(parameter)
    return list(groups.values())


def build_optimizer(
    network: nn.Module,
    name: str,
    hyp: Hyp,
    batch_size: int,
    device: torch.device,
    layer_decay: float = 1.0,
    separate_backbone: bool = False,
) -> torch.optim.Optimizer:
    """Build an optimizer whose weight decay is scaled to the number of images per step.

    Args:
        network: Network to train; a `Network` if the last two arguments are given.
        name: Name in the registry `OPTIMIZERS`.
        hyp: Hyperparameters `lr0`, `momentum`, `weight_decay`, `nominal_batch` and, of a `Network`, `seg_lr`.
        batch_size: Images per batch over all processes.
        device: Device of the parameters.
        layer_decay: Ratio of the learning rates of successive layers.
        separate_backbone: Put the parameters of the backbone into groups of their own.
    """
    accumulate = max(round(hyp.nominal_batch / batch_size), 1)
    decay = hyp.weight_decay * batch_size * accumulate / hyp.nominal_batch
    groups = _split_groups(network, layer_decay, separate_backbone, hyp.seg_lr)
    for group in groups:
        group["weight_decay"] = decay if group["role"] == "decay" else 0.0
    options = OptimizerOptions(hyp.lr0, hyp.momentum, fused=device.type in {"cuda", "cpu"})
    return OPTIMIZERS.get(name)(groups, options)


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rate of each role as `lr/0`, `lr/1`, …; with layer-wise rates the highest one."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        rates[group["role"]] = max(rates.get(group["role"], 0.0), group["lr"])
    return {f"lr/{index}": rate for index, rate in enumerate(rates.values())}


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float = 10.0) -> Tensor:
    """Scale gradients in place so that their total norm is at most `max_norm`; return the norm before."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)  # several tensors at once where the device can
