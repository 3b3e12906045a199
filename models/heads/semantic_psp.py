"""Semantic head with pyramid pooling over three joined levels (after PSPNet, arXiv 1612.01105)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.heads.semantic_head import SemanticHead, parse_semantic_row
from models.kernels.conv_commute import conv3x3_over_levels
from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv
from models.layers.context import RFB2, PyramidPooling
from models.layers.fusion import FFM
from utils.core.contracts import Raw


def _plan(row: Row) -> Plan:
    given = parse_semantic_row(row, 3)
    return Plan((given.num_classes, row.channels, given.channels), 0)


@HEADS.register("segmaskpsp")
class SegMaskPSP(SemanticHead):
    """Three levels resized to the finest, a receptive-field block, pyramid pooling and feature fusion.

    Args:
        num_classes: number of classes.
        in_channels: channels of the three inputs, finest first.
        hidden: channels of each level and of the fused map.
    """

    plan = staticmethod(_plan)

    def __init__(self, num_classes: int, in_channels: Sequence[int], hidden: int) -> None:
        super().__init__(num_classes)
        self.m8, self.m16, self.m32 = (nn.Sequential(Conv(channels, hidden)) for channels in in_channels)
        self.out = nn.Sequential(
            RFB2(3 * hidden, hidden, reduction=6, dilation=(2, 3)),
            PyramidPooling(hidden),
            FFM(hidden + 4 * (hidden // 4), hidden, inputs_are_a_list=False, kernel=3),
            nn.Conv2d(hidden, num_classes, 1),
        )

    def forward(self, features: list[Tensor]) -> Raw:
        """Compute logits (B, C, h, w) at the size of the first of three maps, finest first."""
        parts: Any = self.out
        block, pyramid, fusion, classifier = parts
        levels = [m(x) for m, x in zip((self.m8, self.m16, self.m32), features, strict=True)]
        field = block.forward_levels(levels)
        fused = conv3x3_over_levels(fusion.convblk, field, pyramid.levels(field))
        return {"logits": fusion.classify(fused, classifier)}
