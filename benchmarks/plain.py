"""Straightforward counterparts of what the toolkit does by multi-tensor and fused operations; only for comparison."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from utils.core.contracts import IGNORED_PIXEL
from utils.core.hyp import Hyp
from utils.engine.ema import decay_at
from utils.engine.parameter_groups import parameter_groups


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


def plain_enlarged(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return (B, C, H, W): all images' (B, C, h, w) scores at the size of the labels, corners on corners."""
    return interpolate(maps, size=size_hw, mode="bilinear", align_corners=True)


def plain_entropy(maps: Tensor, labels: Tensor, weights: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of (B, C, h, w) scores with (B, H, W) uint8 labels, by PyTorch's functions."""
    size_hw = (labels.shape[1], labels.shape[2])
    scores = plain_enlarged(maps, size_hw)
    return cross_entropy(scores, labels.long(), weight=weights, ignore_index=IGNORED_PIXEL, label_smoothing=smoothing)


def plain_ohem(maps: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Return the mean over hard pixels, at least a sixteenth of the labelled ones (OHEM)."""
    scores = plain_enlarged(maps, (labels.shape[1], labels.shape[2]))
    losses = cross_entropy(scores, labels.long(), ignore_index=IGNORED_PIXEL, reduction="none")
    losses = losses[labels != IGNORED_PIXEL]
    hard = losses[losses > -math.log(threshold)]
    least = len(losses) // 16
    return (hard if len(hard) >= least else losses.topk(least).values).mean()


def plain_prob_ohem(maps: Tensor, labels: Tensor, threshold: float, least: int) -> Tensor:
    """Return the mean over pixels whose true class is improbable (ProbOhem)."""
    scores = plain_enlarged(maps, (labels.shape[1], labels.shape[2]))
    losses = cross_entropy(scores, labels.long(), ignore_index=IGNORED_PIXEL, reduction="none")
    losses = losses[labels != IGNORED_PIXEL]
    probability = torch.exp(-losses.detach())
    limit = max(threshold, float(probability.sort().values[min(least, len(losses)) - 1]))
    return losses[probability <= limit].mean()


def plain_focal(maps: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Return multiyolov5's product of the mean entropy and the mean of (1 - p)^gamma."""
    scores = plain_enlarged(maps, (labels.shape[1], labels.shape[2]))
    known = torch.where(labels == IGNORED_PIXEL, 0, labels).long()
    true = scores.softmax(dim=1).gather(1, known[:, None])[:, 0]
    return cross_entropy(scores, labels.long(), ignore_index=IGNORED_PIXEL) * ((1 - true) ** gamma).mean()


def plain_class_map(maps: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return the (H, W) class of every pixel of one image's (C, h, w) scores, all of them enlarged first."""
    return plain_enlarged(maps[None], size_hw)[0].argmax(dim=0).to(torch.uint8)
