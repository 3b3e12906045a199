"""Anchor-free instance segmentation head: boxes, mask coefficients, and prototypes from all levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from models.heads.anchor_head import to_fp32
from models.heads.dense import Dense
from models.heads.segment import NUM_MASKS, PROTO_CHANNELS, Proto
from models.layer_plan import HEADS, Plan, Row
from models.layers.common import Conv
from utils.core.contracts import Decoded, Raw


def _plan(row: Row) -> Plan:
    if not 1 <= len(row.arguments) <= 4:
        raise ValueError(f"expected [nc, bins, masks, prototype channels], got {len(row.arguments)} arguments")
    defaults: tuple[int, ...] = (0, 16, NUM_MASKS, PROTO_CHANNELS)
    num_classes, bins, num_masks, width = row.arguments + defaults[len(row.arguments) :]
    if isinstance(num_masks, bool) or not isinstance(num_masks, int) or num_masks < 1:
        raise ValueError(f"masks must be a whole number of at least 1, got {num_masks!r}")
    return Plan((num_classes, row.channels, bins, num_masks, row.scale_width(width)), 0)


@HEADS.register("densesegment")
class DenseSegment(Dense):
    """The `dense` head with instance masks.

    A third branch of every level predicts mask coefficients. Prototypes come from the sum of the finest level and 1x1
    convolutions of the other levels, enlarged to its size. While it is trained, a semantic branch classifies the
    pixels of the sum, which teaches it to separate objects from background; folding the network for inference
    (`models.fuse`) removes this branch.

    Args:
        num_classes: number of classes C.
        in_channels: channels of every input level, finest first.
        bins: values per side of a box; 1 for direct regression.
        num_masks: mask coefficients per box and prototypes, M.
        proto_channels: channels of the convolutions before the prototypes.
    """

    name = "segment"
    loss = "dense_segment"
    plan = staticmethod(_plan)

    def __init__(
        self, num_classes: int, in_channels: Sequence[int], bins: int = 16, num_masks: int = NUM_MASKS,
        proto_channels: int = PROTO_CHANNELS,
    ) -> None:  # fmt: skip
        super().__init__(num_classes, in_channels, bins, num_masks=num_masks)
        finest = in_channels[0]
        self.lateral = nn.ModuleList(nn.Conv2d(channels, finest, 1) for channels in in_channels[1:])
        self.proto = Proto(finest, proto_channels, num_masks)
        self.semantic: nn.Module | None = nn.Sequential(Conv(finest, finest, 3), nn.Conv2d(finest, num_classes, 1))

    def forward(self, features: list[Tensor]) -> Raw:
        """Map feature levels to logits and prototypes.

        Args:
            features: per level (B, c, H, W), finest first.

        Returns:
            `level0`, `level1`, ...: (B, 4 x bins + C + M, H, W); `prototypes` (B, M, 2 H0, 2 W0); in training also
            `semantic` (B, C, H0, W0) logits.
        """
        fused = features[0]
        for convolution, feature, stride in zip(self.lateral, features[1:], self._ratios(features), strict=True):
            fused = fused + functional.interpolate(convolution(feature), scale_factor=float(stride), mode="nearest")
        raw = super().forward(features) | {"prototypes": self.proto(fused)}
        return raw | {"semantic": self.semantic(fused)} if self.training and self.semantic is not None else raw

    def _ratios(self, features: Sequence[Tensor]) -> list[int]:
        """Compute the ratio of the size of the finest level to that of each other one."""
        if self.strides:
            return [stride // self.strides[0] for stride in self.strides[1:]]
        return [features[0].shape[2] // feature.shape[2] for feature in features[1:]]  # while strides are measured

    def decode(self, raw: Raw) -> Decoded:
        """Decode to predictions (B, N, 5 + C + M), coefficients not activated, and prototypes (B, M, 2 H0, 2 W0)."""
        return {**super().decode(raw), "prototypes": to_fp32(raw["prototypes"])}

    def remove_training_parts(self) -> None:
        """Remove the semantic branch, which inference does not use."""
        self.semantic = None
