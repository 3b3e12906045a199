"""The semantic head with a detail and a context path (after BiSeNet, arXiv 1808.00897; behaviour.md 12.2, BiSe)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.heads.semantic_head import SemanticHead, semantic_row
from models.kernels.winograd import WideConv
from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv
from models.layers.context import RFB2
from models.layers.fusion import FFM, resize_like
from utils.core.contracts import Raw

WIDTH = 128  # of each path, for every model size


def _plan(row: Row) -> Plan:
    return Plan((semantic_row(row, 3).num_classes, row.channels), 0)


def _auxiliary(num_classes: int) -> nn.Sequential:
    return nn.Sequential(Conv(WIDTH, WIDTH, 3), nn.Conv2d(WIDTH, num_classes, 1))


@HEADS.register("segmaskbise")
class SegMaskBiSe(SemanticHead):
    """The finest level beside what comes up from the coarser two; in training these are classified, too."""

    plan = staticmethod(_plan)

    def __init__(self, num_classes: int, in_channels: Sequence[int]) -> None:
        super().__init__(num_classes)
        fine, middle, coarse = in_channels
        self.m8 = nn.Sequential(Conv(fine, WIDTH))
        self.m16 = nn.Sequential(RFB2(middle, WIDTH, reduction=4, dilation=(2, 3)))
        self.m32 = nn.Sequential(RFB2(coarse, WIDTH, reduction=8, dilation=(2, 3), with_global_pool=True))
        self.up16 = nn.Sequential(WideConv(WIDTH, WIDTH))
        self.up32 = nn.Sequential(WideConv(WIDTH, WIDTH))
        self.out = nn.Sequential(
            FFM(2 * WIDTH, 2 * WIDTH, kernel=3), nn.Dropout(0.1), nn.Conv2d(2 * WIDTH, num_classes, 1)
        )
        self.aux16 = _auxiliary(num_classes)
        self.aux32 = _auxiliary(num_classes)

    def forward(self, features: list[Tensor]) -> Raw:
        """Take three maps, finest first, return logits (B, C, h, w) at the size of the first.

        In training also aux16 at that size and aux32 at the size of the second.
        """
        fine, middle, coarse = features
        from_coarse = resize_like(self.up32(self.m32(coarse)), middle, "bilinear")
        context = resize_like(self.up16(self.m16(middle) + from_coarse), fine, "bilinear")
        parts: Any = self.out
        fusion, dropout, classify = parts
        fused = fusion.convblk(self.m8(fine), context)
        if not self.training:
            return {"logits": fusion.classify(fused, classify)}
        logits = classify(dropout(fusion.reweight(fused)))
        return {"logits": logits, "aux16": self.aux16(context), "aux32": self.aux32(from_coarse)}
