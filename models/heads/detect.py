"""The detection head."""

from __future__ import annotations

from torch import Tensor

from models.heads.anchor_head import BoxHead
from models.layer_plan import HEADS, Plan, Row
from utils.core.contracts import Decoded, Raw


def _plan(row: Row) -> Plan:
    if len(row.arguments) != 2:
        raise ValueError(f"expected [nc, anchors], got {len(row.arguments)} arguments")
    return Plan((row.arguments[0], row.arguments[1], row.channels), 0)


@HEADS.register("detect")
class Detect(BoxHead):
    """Boxes and classes from several feature levels."""

    name = "detect"
    plan = staticmethod(_plan)

    def forward(self, features: list[Tensor]) -> Raw:
        """Compute level0, level1, …: (B, A, H, W, 5 + C) each."""
        return self.raw_levels(features)

    def decode(self, raw: Raw) -> Decoded:
        """Decode to predictions (B, N, 5 + C): cxcywh in pixels, objectness, classes."""
        return {"predictions": self.decode_levels(raw)}
