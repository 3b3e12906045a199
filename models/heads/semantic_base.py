"""Semantic head on the finest map, with spatial pyramid pooling."""

from __future__ import annotations

from torch import Tensor, nn

from models.heads.semantic_head import SemanticHead, parse_semantic_row
from models.layer_plan import HEADS, Plan, Row
from models.layers.context import WideC3, WideC3SPP
from utils.core.contracts import Raw

WIDENING = 1.5  # channels after the pyramid, as a multiple of those before


def _plan(row: Row) -> Plan:
    given = parse_semantic_row(row, 1)
    return Plan((given.num_classes, row.channels[0], given.channels, given.repeats, given.shortcut), 0)


@HEADS.register("segmaskbase")
class SegMaskBase(SemanticHead):
    """CSP block, spatial pyramid pooling, dropout and a 3x3 convolution to the classes.

    Args:
        num_classes: number of classes.
        in_channels: channels of the input.
        hidden: channels of the CSP block.
        repeats: its bottlenecks.
        shortcut: whether they are residual.
    """

    plan = staticmethod(_plan)

    def __init__(self, num_classes: int, in_channels: int, hidden: int, repeats: int, shortcut: bool) -> None:
        super().__init__(num_classes)
        wide = int(WIDENING * hidden)
        self.m = nn.Sequential(
            WideC3(in_channels, hidden, repeats, shortcut),
            WideC3SPP(hidden, wide),
            nn.Dropout(0.1),
            nn.Conv2d(wide, num_classes, 3, padding=1, bias=False),
        )

    def forward(self, features: list[Tensor]) -> Raw:
        """Compute logits (B, C, h, w) from one map (B, in_channels, h, w)."""
        return {"logits": self.m(features[0])}
