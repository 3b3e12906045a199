"""The whole-image class head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv, same_padding
from utils.core.contracts import Decoded, HeadSpec, Raw

HIDDEN = 1280  # channels before the linear layer, for every model size
USUAL_PX = 224


class ClassHead(nn.Module):
    """What heads have in common that name the class of a whole image."""

    name = "classify"
    classes_key = "nc"  # of the model YAML
    num_classes: int

    def decode(self, raw: Raw) -> Decoded:
        """Return probabilities (B, C) that sum to one."""
        return {"probabilities": raw["logits"].float().softmax(dim=-1)}

    @property
    def spec(self) -> HeadSpec:
        """Return what losses and post-processing need."""
        return HeadSpec(self.name, self.num_classes, fit="centre", usual_px=USUAL_PX)


def _plan(row: Row) -> Plan:
    if not row.arguments:
        raise ValueError("the first argument must be the number of classes, there is none")
    return Plan((sum(row.channels), *row.arguments), 0)


@HEADS.register("classify")
class Classify(ClassHead):
    """Convolution to 1280 channels, global mean, dropout, linear layer.

    `hidden` 0 gives the form of YOLOv5 up to v6.1: the global mean of each input, then one convolution with bias.
    """

    takes_list = True
    plan = staticmethod(_plan)

    def __init__(
        self, in_channels: int, num_classes: int, kernel: Any = 1, stride: Any = 1, padding: Any = None,
        groups: int = 1, dropout: float = 0.0, hidden: int = HIDDEN,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_classes = num_classes
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = hidden
        if hidden:
            self.conv: nn.Module = Conv(in_channels, hidden, kernel, stride, padding, groups)
            self.drop = nn.Dropout(dropout)
            self.linear = nn.Linear(hidden, num_classes)
        else:
            border = same_padding(kernel) if padding is None else padding
            self.conv = nn.Conv2d(in_channels, num_classes, kernel, stride, border, groups=groups)

    def set_up(self, strides: tuple[int, ...]) -> None:
        """Give the head's normalisation torch's own settings, which YOLOv5's classification files were made with."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1e-5, 0.1

    def forward(self, features: list[Tensor]) -> Raw:
        """Compute logits (B, num_classes) from maps (B, C, H, W), of one size if `hidden` is not 0."""
        if not self.hidden:
            means = torch.cat([self.pool(feature) for feature in features], dim=1)
            return {"logits": self.conv(means).flatten(1)}
        mapped = self.conv(torch.cat(features, dim=1))
        return {"logits": self.linear(self.drop(self.pool(mapped).flatten(1)))}
