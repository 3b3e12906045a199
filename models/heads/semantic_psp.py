"""The semantic head with pyramid pooling over three joined levels (behaviour.md 12.2, PSP)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.heads.semantic_head import SemanticHead, semantic_row
from models.kernels.conv_commute import with_levels
from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv
from models.layers.context import RFB2, PyramidPooling
from models.layers.fusion import FFM
from utils.core.contracts import Raw


def _plan(row: Row) -> Plan:
    given = semantic_row(row, 3)
    return Plan((given.num_classes, row.channels, given.channels), 0)


@HEADS.register("segmaskpsp")
class SegMaskPSP(SemanticHead):
    """Three levels at the finest one's size, a receptive-field block, pyramid pooling (arXiv 1612.01105), fusion."""

    plan = staticmethod(_plan)

    def __init__(self, num_classes: int, in_channels: Sequence[int], hidden: int) -> None:
        super().__init__(num_classes)
        self.m8, self.m16, self.m32 = (nn.Sequential(Conv(c, hidden)) for c in in_channels)
        self.out = nn.Sequential(
            RFB2(3 * hidden, hidden, reduction=6, dilation=(2, 3)),
            PyramidPooling(hidden),
            FFM(hidden + 4 * (hidden // 4), hidden, inputs_are_a_list=False, kernel=3),
            nn.Conv2d(hidden, num_classes, 1),
        )

    def forward(self, features: list[Tensor]) -> Raw:
        """Take three maps, finest first, return logits (B, C, h, w) at the size of the first."""
        parts: Any = self.out
        block, pyramid, fusion, classify = parts
        levels = [m(x) for m, x in zip((self.m8, self.m16, self.m32), features, strict=True)]
        field = block.forward_levels(levels)
        fused = with_levels(fusion.convblk, field, pyramid.levels(field))
        return {"logits": fusion.classify(fused, classify)}
