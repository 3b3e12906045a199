"""What every head with anchor boxes shares: level maps, decoding, anchors, initial biases (behaviour.md 1.3, 2.1)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers.common import is_exporting
from utils.core.contracts import HeadSpec, Raw

OBJECTS_PER_IMAGE, IMAGE_PX = 8, 640  # what the initial objectness expects
CLASS_SHARE = 0.6


def as_full(values: Tensor) -> Tensor:
    """Return half-precision values as fp32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


_WHOLE_COLUMNS = ContextVar("whole_columns", default=False)


@contextlib.contextmanager
def whole_columns() -> Iterator[None]:
    """Let graphs recorded meanwhile suit runtimes that hold maps with their channels last.

    There a convolution of each anchor's own gives its columns side by side, as the outputs have them: nothing is turned
    over, nothing is cut out.
    """
    token = _WHOLE_COLUMNS.set(True)
    try:
        yield
    finally:
        _WHOLE_COLUMNS.reset(token)


def decode_level(raw: Tensor, anchors_px: Tensor, stride: int, num_classes: int) -> Tensor:
    """Return (B, A*H*W, columns) boxes cxcywh in pixels, objectness and classes in [0, 1], the rest as it is.

    `raw` is (B, A, H, W, columns), `anchors_px` (A, 2). Half-precision maps are decoded in fp32: box centres of large
    images do not fit fp16.
    """
    raw = as_full(raw)
    if is_exporting():
        decode = _decode_whole_columns if _WHOLE_COLUMNS.get() else _decode_in_channels
        return decode(raw, anchors_px, stride, num_classes)
    height, width = raw.shape[2], raw.shape[3]
    cells_xy = torch.stack(_cells(height, width, raw), dim=-1) - 0.5  # (H, W, 2)
    values = raw[..., : 5 + num_classes].sigmoid()
    centre = (values[..., :2] * 2 + cells_xy) * stride
    size = (values[..., 2:4] * 2) ** 2 * anchors_px.to(raw.dtype)[:, None, None]
    parts = [centre, size, values[..., 4:]]
    if raw.shape[4] > 5 + num_classes:  # some runtimes of exported files cannot join an empty tensor
        parts.append(raw[..., 5 + num_classes :])
    return torch.cat(parts, dim=-1).flatten(1, 3)


def _cells(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (H, W) numbers of every cell's column and row."""
    rows = torch.arange(height, device=like.device, dtype=like.dtype).view(height, 1).expand(height, width)
    columns = torch.arange(width, device=like.device, dtype=like.dtype).view(1, width).expand(height, width)
    return columns, rows


def _decode_whole_columns(raw: Tensor, anchors_px: Tensor, stride: int, num_classes: int) -> Tensor:
    """Return the same numbers in one pass: every column is s (p + q s) + r raw + t, where s is the sigmoid of raw."""
    height, width, count = raw.shape[2:]
    corners_xy = (torch.stack(_cells(height, width, raw), dim=-1).flatten(0, 1) - 0.5) * stride  # (H * W, 2)
    moved = functional.pad(corners_xy, (0, count - 2))  # t: (H * W, columns)
    column = torch.arange(count, device=raw.device)
    scores = (column >= 4) & (column < 5 + num_classes)
    linear = scores.to(raw.dtype) + 2 * stride * (column < 2).to(raw.dtype)  # p
    square = functional.pad(4 * anchors_px.to(raw.dtype)[:, None], (2, count - 4))  # q: (A, 1, columns)
    values = raw.flatten(2, 3)
    share = values.sigmoid()
    found = share * (linear + share * square) + moved
    if count > 5 + num_classes:
        found = found + values * (column >= 5 + num_classes).to(raw.dtype)
    return found.flatten(1, 2)


def _decode_in_channels(raw: Tensor, anchors_px: Tensor, stride: int, num_classes: int) -> Tensor:
    """Return the same numbers, in the order of steps that other runtimes are fast at.

    They copy in blocks what is cut out of and joined along channels, and number by number what is cut out of columns.
    """
    columns = raw.permute(0, 1, 4, 2, 3)  # as the convolution has it: the two permutations go away in a graph
    height, width = columns.shape[3], columns.shape[4]
    cells_xy = torch.stack(_cells(height, width, raw)).flatten(1) - 0.5  # (2, H * W)
    columns = columns.flatten(3)  # (B, A, columns, H * W)
    values = columns[:, :, : 5 + num_classes].sigmoid()
    centre = (values[:, :, :2] * 2 + cells_xy) * stride
    size = (values[:, :, 2:4] * 2) ** 2 * anchors_px.to(raw.dtype)[:, :, None]
    parts = [centre, size, values[:, :, 4:]]
    if raw.shape[4] > 5 + num_classes:
        parts.append(columns[:, :, 5 + num_classes :])
    return torch.cat(parts, dim=2).transpose(2, 3).flatten(1, 2)


def _of_each_anchor(convolution: nn.Module, feature: Tensor, anchors: int) -> Tensor:
    """Return (B, A, H, W, columns) of a head's convolution of (B, c, H, W), by one convolution per anchor."""
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    kernels = zip(convolution.weight.chunk(anchors), convolution.bias.chunk(anchors), strict=True)
    maps = [functional.conv2d(feature, weight, bias).permute(0, 2, 3, 1) for weight, bias in kernels]
    return torch.stack(maps, dim=1)


class BoxHead(nn.Module):
    """One 1x1 convolution per level; columns are x, y, w, h, objectness, classes, mask coefficients.

    Anchors are pixels until `set_up` knows the strides; afterwards the buffer holds grid units, as YOLOv5's files do.
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
            raise ValueError(f"takes [nc, anchors], not {num_classes!r:.40} and {anchors_px!r:.40}")
        if len(anchors_px) != len(in_channels):
            raise ValueError(f"has {len(in_channels)} input levels, `anchors` has {len(anchors_px)}")
        self.num_classes, self.num_masks = num_classes, num_masks
        self.strides: tuple[int, ...] = ()
        self.register_buffer("anchors", torch.tensor(anchors_px, dtype=torch.float32).view(len(anchors_px), -1, 2))
        self.num_columns = 5 + num_classes + num_masks
        self.num_anchors = self.anchors.shape[1]
        self.m = nn.ModuleList(nn.Conv2d(c, self.num_columns * self.num_anchors, 1) for c in in_channels)

    def set_up(self, strides: tuple[int, ...]) -> None:
        """Take the strides of the inputs: put anchors into grid units and biases to their initial values."""
        self.strides = strides
        self.set_anchors(self.anchors)
        for convolution, stride in zip(self.m, strides, strict=True):
            assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
            with torch.no_grad():
                bias = convolution.bias.view(self.num_anchors, self.num_columns)
                bias[:, 4] += math.log(OBJECTS_PER_IMAGE / (IMAGE_PX / stride) ** 2)
                bias[:, 5 : 5 + self.num_classes] += math.log(CLASS_SHARE / (self.num_classes - 0.99999))

    def set_anchors(self, anchors_px: Tensor) -> None:
        """Take (L, A, 2) widths and heights in pixels; levels are reversed if sizes run against the strides."""
        if tuple(anchors_px.shape) != tuple(self.anchors.shape):
            raise ValueError(f"anchors must have shape {tuple(self.anchors.shape)}, got {tuple(anchors_px.shape)}")
        areas = anchors_px.prod(dim=-1).mean(dim=-1)  # in pixels: grid units would hide the order
        growth = 0.0 if areas.is_meta else float(areas[-1] - areas[0])
        ordered = anchors_px.flip(0) if growth * (self.strides[-1] - self.strides[0]) < 0 else anchors_px
        strides = torch.tensor(self.strides, dtype=torch.float32, device=self.anchors.device)
        self.anchors.copy_(ordered.to(self.anchors.device) / strides.view(-1, 1, 1))

    def level_maps(self, features: list[Tensor]) -> Raw:
        """Return (B, A, H, W, columns) per level, finest first, as level0, level1, …"""
        maps = {}
        for index, (convolution, feature) in enumerate(zip(self.m, features, strict=True)):
            if is_exporting() and _WHOLE_COLUMNS.get():
                maps[f"level{index}"] = _of_each_anchor(convolution, feature, self.num_anchors)
                continue
            values = convolution(feature)
            batch, _, height, width = values.shape
            split = values.view(batch, self.num_anchors, self.num_columns, height, width)
            maps[f"level{index}"] = split.permute(0, 1, 3, 4, 2)  # columns last: no copy in channels-last memory
        return maps

    def decode_levels(self, raw: Raw) -> Tensor:
        """Return (B, N, columns), levels finest first, in each anchor by anchor, row by row."""
        levels = [
            decode_level(raw[f"level{index}"], self.anchors[index].float() * stride, stride, self.num_classes)
            for index, stride in enumerate(self.strides)
        ]
        return torch.cat(levels, dim=1)

    @property
    def spec(self) -> HeadSpec:
        """Return what losses and post-processing need; reads the anchors from the device."""
        strides = torch.tensor(self.strides, dtype=torch.float32).view(-1, 1, 1)
        anchors = tuple(tuple((w, h) for w, h in level) for level in (self.anchors.float().cpu() * strides).tolist())
        return HeadSpec(self.name, self.num_classes, self.strides, anchors, self.num_masks)
