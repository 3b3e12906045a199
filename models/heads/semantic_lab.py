"""The semantic head with an atrous pyramid and a detail path (after DeepLabv3+, arXiv 1802.02611; 12.2, Lab)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.heads.semantic_head import SemanticHead, semantic_row
from models.kernels.conv_commute import pointwise
from models.kernels.winograd import WideConv
from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv
from models.layers.context import ASPP
from models.layers.fusion import FFM, classify_pixels
from utils.core.contracts import Raw

DETAIL, CONTEXT = 48, 256  # channels, for every model size


def _plan(row: Row) -> Plan:
    given = semantic_row(row, 2)
    if given.repeats > 4:
        raise ValueError(f"the second argument divides channels by 5 - repeats: {given.repeats} (scaled) is above 4")
    return Plan((given.num_classes, row.channels, given.channels, 5 - given.repeats), 0)


@HEADS.register("segmasklab")
class SegMaskLab(SemanticHead):
    """Early details beside dilated convolutions over a coarser level."""

    plan = staticmethod(_plan)

    def __init__(self, num_classes: int, in_channels: Sequence[int], hidden: int, reduction: int) -> None:
        super().__init__(num_classes)
        fine, coarse = in_channels
        self.detail = nn.Sequential(Conv(fine, DETAIL), Conv(DETAIL, DETAIL, 3))
        self.encoder = nn.Sequential(
            Conv(coarse, 2 * hidden), ASPP(2 * hidden, CONTEXT, (3, 6, 9), with_global_pool=False, reduction=reduction)
        )
        self.decoder = nn.Sequential(
            FFM(DETAIL + CONTEXT, CONTEXT, kernel=1), WideConv(CONTEXT, hidden), nn.Conv2d(hidden, num_classes, 1)
        )

    def forward(self, features: list[Tensor]) -> Raw:
        """Take two maps, finest first, return logits (B, C, h, w) at the size of the first."""
        parts: Any = self.decoder
        fusion, refine, classify = parts
        joined = pointwise(fusion.convblk, [self.detail(features[0]), self.encoder(features[1])])
        return {"logits": classify_pixels(classify, refine(joined, factors=fusion.channel_factors(joined)))}
