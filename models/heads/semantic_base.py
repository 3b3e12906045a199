"""The plainest semantic head: blocks on the finest map, pooled at several sizes (behaviour.md 12.2, Base)."""

from __future__ import annotations

from torch import Tensor, nn

from models.heads.semantic_head import SemanticHead, semantic_row
from models.layer_plan import HEADS, Plan, Row
from models.layers.context import WideC3, WideC3SPP
from utils.core.contracts import Raw


def _plan(row: Row) -> Plan:
    given = semantic_row(row, 1)
    return Plan((given.num_classes, row.channels[0], given.channels, given.repeats, given.shortcut), 0)


@HEADS.register("segmaskbase")
class SegMaskBase(SemanticHead):
    """`C3`, pyramid pooling, dropout, a 3x3 convolution to the classes."""

    plan = staticmethod(_plan)

    def __init__(self, num_classes: int, c1: int, hidden: int, repeats: int, shortcut: bool) -> None:
        super().__init__(num_classes)
        wide = int(1.5 * hidden)
        self.m = nn.Sequential(
            WideC3(c1, hidden, repeats, shortcut),
            WideC3SPP(hidden, wide),
            nn.Dropout(0.1),
            nn.Conv2d(wide, num_classes, 3, padding=1, bias=False),
        )

    def forward(self, features: list[Tensor]) -> Raw:
        """Take one map (B, c1, h, w), return logits (B, C, h, w)."""
        return {"logits": self.m(features[0])}
