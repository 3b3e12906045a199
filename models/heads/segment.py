"""The instance segmentation head: boxes, mask coefficients and mask prototypes (YOLACT, arXiv 1904.02689)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from models.heads.anchor_head import BoxHead, as_full
from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv
from utils.core.contracts import Decoded, Raw


class Proto(nn.Module):
    """Mask prototypes at twice the size of the finest level.

    Args:
        in_channels: channels of the finest level.
        hidden_channels: channels of the two 3x3 convolutions.
        out_channels: number of prototypes.
    """

    def __init__(self, in_channels: int, hidden_channels: int = 256, out_channels: int = 32) -> None:
        super().__init__()
        self.cv1, self.cv2 = (Conv(channels, hidden_channels, 3) for channels in (in_channels, hidden_channels))
        self.cv3 = Conv(hidden_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, 2H, 2W)."""
        enlarged = functional.interpolate(self.cv1(x), scale_factor=2, mode="nearest")
        return self.cv3(self.cv2(enlarged))


def _plan(row: Row) -> Plan:
    if not 2 <= len(row.arguments) <= 4:
        raise ValueError(f"expected [nc, anchors, masks, prototype channels], got {len(row.arguments)} arguments")
    num_masks = row.arguments[2] if len(row.arguments) > 2 else 32
    width = row.arguments[3] if len(row.arguments) > 3 else 256
    return Plan((row.arguments[0], row.arguments[1], num_masks, row.scale_width(width), row.channels), 0)


@HEADS.register("segment")
class Segment(BoxHead):
    """Boxes and classes with mask coefficients, and the prototypes of the image."""

    name = "segment"
    plan = staticmethod(_plan)

    def __init__(
        self, num_classes: int, anchors_px: Sequence[Sequence[float]], num_masks: int, proto_channels: int,
        in_channels: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__(num_classes, anchors_px, in_channels, num_masks)
        self.proto = Proto(in_channels[0], proto_channels, num_masks)

    def forward(self, features: list[Tensor]) -> Raw:
        """Return level0, level1, …: (B, A, H, W, 5 + C + M), and prototypes (B, M, 2H0, 2W0)."""
        return {**self.level_maps(features), "prototypes": self.proto(features[0])}

    def decode(self, raw: Raw) -> Decoded:
        """Return predictions (B, N, 5 + C + M), coefficients not activated, and prototypes (B, M, 2H0, 2W0)."""
        prototypes = raw["prototypes"]
        return {"predictions": self.decode_levels(raw), "prototypes": as_full(prototypes)}
