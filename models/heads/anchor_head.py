"""Base of the heads with anchor boxes: level outputs, decoding, anchors and initial biases."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers.common import index_range, is_exporting
from utils.core.contracts import HeadSpec, Raw

# Initial biases expect this many objects in an image of this size, and this probability of some class per object
OBJECTS_PER_IMAGE, IMAGE_PX = 8, 640
CLASS_PRIOR = 0.6
ONE_CLASS_OFFSET = 0.99999  # subtracted from the number of classes in place of 1: a single class stays finite


def to_fp32(values: Tensor) -> Tensor:
    """Convert half-precision values to fp32 and leave others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def cell_indices(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the column and the row index of every cell, (H, W) each, in the type of `like`."""
    rows = index_range(height, like).view(height, 1).expand(height, width)
    columns = index_range(width, like).view(1, width).expand(height, width)
    return columns, rows


def decode_level(raw: Tensor, anchors_px: Tensor, stride: int, num_classes: int) -> Tensor:
    """Decode one level's raw output.

    With the sigmoid s of the raw values, centres are (2 s + cell - 0.5) * stride and sizes (2 s)^2 * anchor; half-
    precision maps are decoded in fp32, since box centres of large images overflow fp16.

    Args:
        raw: (B, A, H, W, columns).
        anchors_px: (A, 2) widths and heights in pixels.
        stride: pixels per cell.
        num_classes: number of class columns after the objectness.

    Returns:
        (B, A * H * W, columns): boxes cxcywh in pixels, objectness and classes in [0, 1], other columns unchanged.
    """
    raw = to_fp32(raw)
    if is_exporting():
        return _decode_in_channels(raw, anchors_px, stride, num_classes)
    height, width = raw.shape[2], raw.shape[3]
    cells_xy = torch.stack(cell_indices(height, width, raw), dim=-1) - 0.5  # (H, W, 2)
    values = raw[..., : 5 + num_classes].sigmoid()
    centre = (values[..., :2] * 2 + cells_xy) * stride
    size = (values[..., 2:4] * 2) ** 2 * anchors_px.to(raw.dtype)[:, None, None]
    parts = [centre, size, values[..., 4:]]
    if raw.shape[4] > 5 + num_classes:  # some runtimes of exported files cannot join an empty tensor
        parts.append(raw[..., 5 + num_classes :])
    return torch.cat(parts, dim=-1).flatten(1, 3)


def _decode_in_channels(raw: Tensor, anchors_px: Tensor, stride: int, num_classes: int) -> Tensor:
    """Decode to the same values by operations that other runtimes are fast at.

    They copy slices and concatenations along channels in blocks, but those along columns element by element.
    """
    columns = raw.permute(0, 1, 4, 2, 3)  # undoes the permutation of the level's output, so that both leave the graph
    height, width = columns.shape[3], columns.shape[4]
    cells_xy = torch.stack(cell_indices(height, width, raw)).flatten(1) - 0.5  # (2, H * W)
    columns = columns.flatten(3)  # (B, A, columns, H * W)
    values = columns[:, :, : 5 + num_classes].sigmoid()
    centre = (values[:, :, :2] * 2 + cells_xy) * stride
    size = (values[:, :, 2:4] * 2) ** 2 * anchors_px.to(raw.dtype)[:, :, None]
    parts = [centre, size, values[:, :, 4:]]
    if raw.shape[4] > 5 + num_classes:
        parts.append(columns[:, :, 5 + num_classes :])
    return torch.cat(parts, dim=2).transpose(2, 3).flatten(1, 2)


class LevelDecoder:
    """How a box head arranges and decodes its levels; an export backend can give the head another one."""

    def raw_level(self, convolution: nn.Conv2d, feature: Tensor, num_anchors: int) -> Tensor:
        """Apply a level's convolution to (B, C, H, W) and split its channels: (B, A, H, W, columns)."""
        values = convolution(feature)
        batch, _, height, width = values.shape
        split = values.view(batch, num_anchors, convolution.out_channels // num_anchors, height, width)
        return split.permute(0, 1, 3, 4, 2)  # columns last: no copy in channels-last memory

    def decode(self, raw: Tensor, anchors_px: Tensor, stride: int, num_classes: int) -> Tensor:
        """Decode a level, see `decode_level`."""
        return decode_level(raw, anchors_px, stride, num_classes)


class BoxHead(nn.Module):
    """One 1x1 convolution per level; columns are x, y, w, h, objectness, classes, mask coefficients.

    Anchors are in pixels until `configure` sets the strides; then the buffer holds grid units, as in YOLOv5's files.

    Args:
        num_classes: number of classes.
        anchors_px: per level, finest first, [w, h, w, h, …] in pixels.
        in_channels: channels of each level.
        num_masks: mask coefficients per box.
    """

    name = "boxes"
    takes_list = True
    classes_key = "nc"  # of the model YAML
    anchors: Tensor

    def __init__(
        self, num_classes: int, anchors_px: Sequence[Sequence[float]], in_channels: Sequence[int], num_masks: int = 0
    ) -> None:
        super().__init__()
        if not isinstance(num_classes, int) or not isinstance(anchors_px, Sequence) or isinstance(anchors_px, str):
            raise ValueError(f"expected [nc, anchors], got {num_classes!r:.40} and {anchors_px!r:.40}")
        if len(anchors_px) != len(in_channels):
            raise ValueError(f"has {len(in_channels)} input levels, `anchors` has {len(anchors_px)}")
        self.num_classes, self.num_masks = num_classes, num_masks
        self.strides: tuple[int, ...] = ()
        self.register_buffer("anchors", torch.tensor(anchors_px, dtype=torch.float32).view(len(anchors_px), -1, 2))
        self.num_columns = 5 + num_classes + num_masks
        self.num_anchors = self.anchors.shape[1]
        self.m = nn.ModuleList(nn.Conv2d(c, self.num_columns * self.num_anchors, 1) for c in in_channels)
        self.decoder = LevelDecoder()

    def configure(self, strides: tuple[int, ...]) -> None:
        """Set the strides of the inputs: convert the anchors to grid units and initialise the biases."""
        self.strides = strides
        self.set_anchors(self.anchors)
        for convolution, stride in zip(self._convolutions(), strides, strict=True):
            assert convolution.bias is not None
            with torch.no_grad():
                bias = convolution.bias.view(self.num_anchors, self.num_columns)
                bias[:, 4] += math.log(OBJECTS_PER_IMAGE / (IMAGE_PX / stride) ** 2)
                bias[:, 5 : 5 + self.num_classes] += math.log(CLASS_PRIOR / (self.num_classes - ONE_CLASS_OFFSET))

    def _convolutions(self) -> list[nn.Conv2d]:
        return [module for module in self.m if isinstance(module, nn.Conv2d)]

    def set_anchors(self, anchors_px: Tensor) -> None:
        """Replace the anchors, (L, A, 2) widths and heights in pixels.

        Levels are reversed if the anchors' order of size is opposite to that of the strides.
        """
        if tuple(anchors_px.shape) != tuple(self.anchors.shape):
            raise ValueError(f"anchors must have shape {tuple(self.anchors.shape)}, got {tuple(anchors_px.shape)}")
        areas = anchors_px.prod(dim=-1).mean(dim=-1)  # in pixels: grid units would hide the order
        growth = 0.0 if areas.is_meta else float(areas[-1] - areas[0])
        ordered = anchors_px.flip(0) if growth * (self.strides[-1] - self.strides[0]) < 0 else anchors_px
        strides = torch.tensor(self.strides, dtype=torch.float32, device=self.anchors.device)
        self.anchors.copy_(ordered.to(self.anchors.device) / strides.view(-1, 1, 1))

    def raw_levels(self, features: list[Tensor]) -> Raw:
        """Compute level0, level1, …, finest first, (B, A, H, W, columns) each."""
        return {
            f"level{index}": self.decoder.raw_level(convolution, feature, self.num_anchors)
            for index, (convolution, feature) in enumerate(zip(self._convolutions(), features, strict=True))
        }

    def decode_levels(self, raw: Raw) -> Tensor:
        """Decode to (B, N, columns), ordered by level from the finest, then by anchor, row and column."""
        levels = [
            self.decoder.decode(raw[f"level{index}"], self.anchors[index].float() * stride, stride, self.num_classes)
            for index, stride in enumerate(self.strides)
        ]
        return torch.cat(levels, dim=1)

    @property
    def spec(self) -> HeadSpec:
        """Static description of the head; reading the anchors synchronises the device."""
        strides = torch.tensor(self.strides, dtype=torch.float32).view(-1, 1, 1)
        anchors = tuple(tuple((w, h) for w, h in level) for level in (self.anchors.float().cpu() * strides).tolist())
        return HeadSpec(self.name, self.num_classes, self.strides, anchors, self.num_masks)
