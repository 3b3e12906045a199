"""Straightforward counterparts of what the toolkit does by multi-tensor and fused operations; only for comparison."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from utils.core.hyp import Hyp
from utils.engine.ema import decay_at
from utils.engine.optim import parameter_groups


class PlainEma:
    """An exponential moving average of every floating tensor of the state dict, one after the other."""

    def __init__(self, network: nn.Module) -> None:
        self.source = network
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network."""
        self.updates += 1
        keep = decay_at(self.updates)
        newest = self.source.state_dict()
        for name, average in self.network.state_dict().items():
            if average.dtype.is_floating_point:
                average.mul_(keep).add_(newest[name], alpha=1 - keep)


def plain_sgd(network: nn.Module, hyp: Hyp) -> torch.optim.SGD:
    """Return SGD over the usual three groups that steps parameter by parameter."""
    groups = [
        {"params": parameters, "weight_decay": hyp.weight_decay if role == "decay" else 0.0}
        for role, parameters in parameter_groups(network).items()
    ]
    return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=True, foreach=False, fused=False)


def plain_ciou(a_cxcywh: Tensor, b_cxcywh: Tensor, eps: float = 1e-7) -> Tensor:
    """Return the (n,) CIoU (arXiv 1911.08287) of rows by the paper's formula; autograd makes the gradient."""
    low_a, high_a = a_cxcywh[:, :2] - a_cxcywh[:, 2:] / 2, a_cxcywh[:, :2] + a_cxcywh[:, 2:] / 2
    low_b, high_b = b_cxcywh[:, :2] - b_cxcywh[:, 2:] / 2, b_cxcywh[:, :2] + b_cxcywh[:, 2:] / 2
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(1)
    union = a_cxcywh[:, 2:].prod(1) + b_cxcywh[:, 2:].prod(1) - shared + eps
    iou = shared / union
    diagonal = (torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b)).square().sum(1) + eps
    distance = (a_cxcywh[:, :2] - b_cxcywh[:, :2]).square().sum(1) / diagonal
    angle_a, angle_b = (torch.atan(boxes[:, 2] / (boxes[:, 3] + eps)) for boxes in (a_cxcywh, b_cxcywh))
    aspect = 4 / math.pi**2 * (angle_b - angle_a).square()
    with torch.no_grad():
        weight = aspect / (aspect - iou + 1 + eps)
    return iou - distance - weight * aspect
