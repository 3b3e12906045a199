"""Semantic head with an atrous pyramid and a detail path (after DeepLabv3+, arXiv 1802.02611)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.heads.semantic_head import SemanticHead, parse_semantic_row
from models.kernels.conv_commute import conv1x1_over_levels
from models.kernels.winograd import WideConv
from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv
from models.layers.context import ASPP
from models.layers.fusion import FFM, classify_pixels
from utils.core.contracts import Raw

DETAIL, CONTEXT = 48, 256  # channels, for every model size
MAX_REPEATS = 4


def _plan(row: Row) -> Plan:
    given = parse_semantic_row(row, 2)
    if given.repeats > MAX_REPEATS:
        raise ValueError(f"the second argument (scaled) must be at most {MAX_REPEATS}, got {given.repeats}")
    return Plan((given.num_classes, row.channels, given.channels, MAX_REPEATS + 1 - given.repeats), 0)


@HEADS.register("segmasklab")
class SegMaskLab(SemanticHead):
    """Early details fused with dilated convolutions over a coarser level.

    Args:
        num_classes: number of classes.
        in_channels: channels of the two inputs, finest first.
        hidden: channels before the classifier; the atrous pyramid's input has twice as many.
        reduction: divides those to give the channels of the pyramid's branches.
    """

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
        """Compute logits (B, C, h, w) at the size of the first of two maps, finest first."""
        parts: Any = self.decoder
        fusion, refine, classifier = parts
        joined = conv1x1_over_levels(fusion.convblk, [self.detail(features[0]), self.encoder(features[1])])
        return {"logits": classify_pixels(classifier, refine(joined, factors=fusion.channel_factors(joined)))}
