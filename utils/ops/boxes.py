"""Conversion, normalisation, clipping and scaling of boxes.

Functions take (..., 4) boxes as a torch tensor or a NumPy array, return a new object of the same type and leave the
argument unchanged. Formats: `xyxy` corners, `cxcywh` centre and size, `xywh` upper left corner and size, all in pixels;
a trailing `n` means normalised by the width and height of the image.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import Geometry

Boxes = TypeVar("Boxes", Tensor, np.ndarray)


def _columns(boxes: Boxes) -> tuple[Boxes, Boxes, Boxes, Boxes]:
    if boxes.ndim == 0 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (..., 4), got {tuple(boxes.shape)}")
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _stack(columns: tuple[Boxes, ...]) -> Boxes:
    if isinstance(columns[0], Tensor):
        return torch.stack(columns, dim=-1)
    return np.stack(columns, axis=-1)


def _clip(values: Boxes, high: float) -> Boxes:
    if isinstance(values, Tensor):
        return values.clamp(0, high)
    return values.clip(0, high)


def cxcywh_to_xyxy(boxes_cxcywh: Boxes) -> Boxes:
    """Convert centre and size to corners, in pixels or normalised."""
    cx, cy, w, h = _columns(boxes_cxcywh)
    half_w, half_h = w / 2, h / 2
    return _stack((cx - half_w, cy - half_h, cx + half_w, cy + half_h))


def xyxy_to_cxcywh(boxes_xyxy: Boxes) -> Boxes:
    """Convert corners to centre and size, in pixels or normalised."""
    x1, y1, x2, y2 = _columns(boxes_xyxy)
    return _stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))


def xyxy_to_xywh(boxes_xyxy: Boxes) -> Boxes:
    """Convert corners to upper left corner and size, the format of COCO JSON files."""
    x1, y1, x2, y2 = _columns(boxes_xyxy)
    return _stack((x1, y1, x2 - x1, y2 - y1))


def xywh_to_xyxy(boxes_xywh: Boxes) -> Boxes:
    """Convert upper left corner and size to corners."""
    x, y, w, h = _columns(boxes_xywh)
    return _stack((x, y, x + w, y + h))


def cxcywhn_to_xyxy(boxes_cxcywhn: Boxes, size_hw: tuple[int, int], pad_xy: tuple[float, float] = (0.0, 0.0)) -> Boxes:
    """Convert normalised boxes to corners in pixels.

    Args:
        boxes_cxcywhn: (..., 4) boxes.
        size_hw: Height and width of the image in pixels.
        pad_xy: Pixels to add to x and y.
    """
    height, width = size_hw
    x1, y1, x2, y2 = _columns(cxcywh_to_xyxy(boxes_cxcywhn))
    return _stack((x1 * width + pad_xy[0], y1 * height + pad_xy[1], x2 * width + pad_xy[0], y2 * height + pad_xy[1]))


def xyxy_to_cxcywhn(boxes_xyxy: Boxes, size_hw: tuple[int, int], clip: bool = False, eps: float = 0.0) -> Boxes:
    """Convert corners in pixels to normalised boxes.

    Args:
        boxes_xyxy: (..., 4) boxes.
        size_hw: Height and width of the image in pixels.
        clip: Clip x to [0, width - eps] and y to [0, height - eps] first.
        eps: Margin of the clipping in pixels.
    """
    height, width = size_hw
    x1, y1, x2, y2 = _columns(clip_xyxy(boxes_xyxy, (height - eps, width - eps)) if clip else boxes_xyxy)
    return _stack(((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height))


def clip_xyxy(boxes_xyxy: Boxes, size_hw: tuple[float, float]) -> Boxes:
    """Clip boxes to an image of (height, width) pixels."""
    height, width = size_hw
    x1, y1, x2, y2 = _columns(boxes_xyxy)
    return _stack((_clip(x1, width), _clip(y1, height), _clip(x2, width), _clip(y2, height)))


def to_original(boxes_xyxy: Boxes, geometry: Geometry, clip: bool = True) -> Boxes:
    """Map boxes from the network input to the original image: subtract the padding, then divide by the scale.

    Args:
        boxes_xyxy: (..., 4) boxes in pixels of the network input.
        geometry: Letterbox transform of the image.
        clip: Clip the result to the original image.
    """
    (scale_x, scale_y), (pad_x, pad_y) = geometry.scale_xy, geometry.pad_xy
    x1, y1, x2, y2 = _columns(boxes_xyxy)
    mapped = _stack(((x1 - pad_x) / scale_x, (y1 - pad_y) / scale_y, (x2 - pad_x) / scale_x, (y2 - pad_y) / scale_y))
    return clip_xyxy(mapped, geometry.original_hw) if clip else mapped


def to_network(boxes_xyxy: Boxes, geometry: Geometry) -> Boxes:
    """Map boxes from the original image to the network input, the inverse of `to_original` without clipping."""
    (scale_x, scale_y), (pad_x, pad_y) = geometry.scale_xy, geometry.pad_xy
    x1, y1, x2, y2 = _columns(boxes_xyxy)
    return _stack((x1 * scale_x + pad_x, y1 * scale_y + pad_y, x2 * scale_x + pad_x, y2 * scale_y + pad_y))


def area(boxes_xyxy: Boxes) -> Boxes:
    """Compute the (...) areas of (..., 4) boxes; inverted boxes have area 0."""
    x1, y1, x2, y2 = _columns(boxes_xyxy)
    if isinstance(x1, Tensor):
        return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    return (x2 - x1).clip(0) * (y2 - y1).clip(0)
