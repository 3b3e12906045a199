"""Masks of single objects: from polygons, from prototypes, their overlap, their outlines (behaviour.md 2.3, 4.10)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from utils.core.contracts import Geometry
from utils.ops.boxes import to_original

_FAR_PX = 2**14  # outlines are cut here: what a strong perspective throws further away would overflow in OpenCV
_HALF = 127  # of what stands for a whole pixel
_CHUNK = 2**23  # pixels of masks that are held as floats at a time


# ----------------------------------------------------------------------------------------------------------------------
# Labels


def polygon_mask(polygon: np.ndarray, image_hw: tuple[int, int], ratio: int = 1, strict: bool = False) -> np.ndarray:
    """Return the (H // ratio, W // ratio) uint8 mask, 0 or 1, of a (k, 2) pixel polygon; of no points it is empty.

    A pixel that is half covered counts, unless `strict` asks for more than half: training and scoring differ in that
    (behaviour.md 4.10, 6.6), which is worth a hundredth of mAP50-95.
    """
    height, width = image_hw
    mask: np.ndarray = np.zeros((height, width), np.uint8)
    if len(polygon):
        corners = np.floor(np.clip(polygon, -_FAR_PX, _FAR_PX))  # a cast alone would pull what is outside to the edge
        cv2.fillPoly(mask, [corners.astype(np.int32)], 2 * _HALF)
    if ratio > 1:
        mask = cv2.resize(mask, (width // ratio, height // ratio), interpolation=cv2.INTER_LINEAR)
    return (mask > _HALF if strict else mask >= _HALF).view(np.uint8)


def polygon_masks(
    polygons: Sequence[np.ndarray], image_hw: tuple[int, int], ratio: int = 1, strict: bool = False
) -> np.ndarray:
    """Return (n, H // ratio, W // ratio) uint8, one mask per polygon."""
    masks = np.zeros((len(polygons), image_hw[0] // ratio, image_hw[1] // ratio), np.uint8)
    for row, polygon in enumerate(polygons):
        masks[row] = polygon_mask(polygon, image_hw, ratio, strict)
    return masks


def instance_map(
    polygons: Sequence[np.ndarray], image_hw: tuple[int, int], ratio: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return one map of all objects and the order it numbers them in.

    Objects are numbered from 1 by falling area of their masks, and smaller ones lie on top. The map is uint8, or int32
    for more than 255 objects; `order` (n,) holds the polygon of number i + 1 at place i: reorder the labels with it.
    """
    masks = polygon_masks(polygons, image_hw, ratio)
    order = np.argsort(-masks.sum(axis=(1, 2), dtype=np.int64), kind="stable")
    joined = np.zeros(masks.shape[1:], np.uint8 if len(polygons) <= np.iinfo(np.uint8).max else np.int32)
    for number, row in enumerate(order, 1):
        joined[masks[row] > 0] = number
    return joined, order


# ----------------------------------------------------------------------------------------------------------------------
# Predictions


def inside_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Return (n, h, w) bool: whether a pixel's index lies in the box, left and upper side included."""
    rows = torch.arange(size_hw[0], device=boxes_xyxy.device)[None, :, None]
    columns = torch.arange(size_hw[1], device=boxes_xyxy.device)[None, None]
    x1, y1, x2, y2 = boxes_xyxy[:, :, None, None].unbind(1)
    return ((columns >= x1) & (columns < x2)) & ((rows >= y1) & (rows < y2))


def prototype_masks(
    prototypes: Tensor, coefficients: Tensor, boxes_xyxy: Tensor, network_hw: tuple[int, int]
) -> Tensor:
    """Return (n, mh, mw) bool masks at the resolution of the prototypes, cut to their boxes.

    `prototypes` is (M, mh, mw), `coefficients` (n, M) as suppression leaves them, boxes are (n, 4) pixels of the
    network's input.
    """
    _, mask_h, mask_w = prototypes.shape
    small = boxes_xyxy * boxes_xyxy.new_tensor([mask_w / network_hw[1], mask_h / network_hw[0]] * 2)
    flat = prototypes.flatten(1)
    masks = torch.zeros((len(coefficients), mask_h, mask_w), dtype=torch.bool, device=prototypes.device)
    for rows in chunk_slices(len(coefficients), mask_h * mask_w):
        # a sigmoid above one half is a sum above zero
        positive = (coefficients[rows] @ flat).view(-1, mask_h, mask_w) > 0
        masks[rows] = positive & inside_boxes(small[rows], (mask_h, mask_w))
    return masks


def upsampled_masks(
    prototypes: Tensor,
    coefficients: Tensor,
    boxes_xyxy: Tensor,
    network_hw: tuple[int, int],
    crop_first: bool = False,
) -> Tensor:
    """Return (n, H, W) bool masks at the resolution of the network's input; all of them are held as floats.

    They are cut to their boxes after the enlargement, or with `crop_first` before it, which softens the cut edges.
    """
    _, mask_h, mask_w = prototypes.shape
    soft = (coefficients @ prototypes.flatten(1)).sigmoid_().view(-1, mask_h, mask_w)
    if crop_first:
        small = boxes_xyxy * boxes_xyxy.new_tensor([mask_w / network_hw[1], mask_h / network_hw[0]] * 2)
        soft = soft * inside_boxes(small, (mask_h, mask_w))
    if not len(soft):
        return torch.zeros((0, *network_hw), dtype=torch.bool, device=prototypes.device)
    large = interpolate(soft[None], size=network_hw, mode="bilinear", align_corners=False)[0] > 0.5
    return large if crop_first else large & inside_boxes(boxes_xyxy, network_hw)


@dataclass(frozen=True)
class PrototypeMasks:
    """What masks of any size are made of, few at a time; satisfies `contracts.FineMasks`.

    `native` computes masks of the original's size straight from the prototypes; else masks of the network's size are
    enlarged, as YOLOv5 does without --retina-masks.
    """

    prototypes: Tensor  # (M, mh, mw)
    coefficients: Tensor  # (n, M)
    boxes_xyxy: Tensor  # (n, 4) pixels of the network's input
    geometry: Geometry
    native: bool = False

    def __len__(self) -> int:
        return len(self.coefficients)

    def cpu(self) -> PrototypeMasks:
        """Return the same in main memory."""
        moved = (self.prototypes.cpu(), self.coefficients.cpu(), self.boxes_xyxy.cpu())
        return replace(self, prototypes=moved[0], coefficients=moved[1], boxes_xyxy=moved[2])

    def network(self, rows: slice) -> Tensor:
        """Return (k, H, W) bool masks of some objects in the network's input."""
        size_hw, boxes = self.geometry.network_hw, self.boxes_xyxy[rows].float()
        prototypes, coefficients = self.prototypes.float(), self.coefficients[rows].float()
        if prototypes.device.type != "cpu":
            return upsampled_masks(prototypes, coefficients, boxes, size_hw)
        # the same, one after the other and only the pixels of each box
        soft = (coefficients @ prototypes.flatten(1)).sigmoid_().view(-1, *prototypes.shape[1:]).numpy()
        masks = torch.zeros((len(soft), *size_hw), dtype=torch.bool)
        parts = boxes.ceil().long().clamp(min=0).minimum(torch.tensor([size_hw[1], size_hw[0]] * 2)).tolist()
        for mask, one, (x1, y1, x2, y2) in zip(masks, soft, parts, strict=True):
            mask.copy_(torch.from_numpy(mask_in_original(one, Geometry(size_hw, size_hw), (x1, y1, x2, y2))))
        return masks

    def original(self, row: int) -> np.ndarray:
        """Return the (H, W) bool mask of one object in the original image."""
        geometry = self.geometry
        if self.native:
            soft = torch.einsum("m,mhw->hw", self.coefficients[row].float(), self.prototypes.float()).sigmoid().numpy()
        else:
            soft = self.network(slice(row, row + 1))[0].float().numpy()
        x1, y1, x2, y2 = (math.ceil(side) for side in to_original(self.boxes_xyxy[row].float(), geometry).tolist())
        return mask_in_original(soft, geometry, (x1, y1, x2, y2))


def mask_in_original(
    soft: np.ndarray, geometry: Geometry, part_xyxy: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Return the (H, W) bool mask of the original image that an (h, w) float32 mask of the network's input shows.

    `soft` covers the network's input at any resolution; it is looked up bilinearly at the centre of every pixel of
    `part_xyxy`, outside of which nothing is set, and counts above one half.
    """
    mask = np.zeros(geometry.original_hw, dtype=bool)
    x1, y1, x2, y2 = part_xyxy or (0, 0, geometry.original_hw[1], geometry.original_hw[0])
    if x1 >= x2 or y1 >= y2:
        return mask
    matrix = np.zeros((2, 3))  # from a pixel of the part to the place in `soft` that shows it
    for axis, first in ((0, x1), (1, y1)):
        shrink = soft.shape[1 - axis] / geometry.network_hw[1 - axis]
        step = geometry.scale_xy[axis] * shrink
        matrix[axis, axis] = step
        matrix[axis, 2] = (first + 0.5) * step + geometry.pad_xy[axis] * shrink - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    part = cv2.warpAffine(soft, matrix, (x2 - x1, y2 - y1), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    mask[y1:y2, x1:x2] = part > 0.5
    return mask


# ----------------------------------------------------------------------------------------------------------------------
# Comparing and writing


def chunk_slices(count: int, pixels: int) -> list[slice]:
    """Return slices of `count` masks of so many pixels that are held in memory at a time."""
    step = max(1, _CHUNK // max(1, pixels))
    return [slice(start, start + step) for start in range(0, count, step)]


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return (L, D) float32 overlaps of (L, h, w) with (D, h, w) bool masks."""
    flat = first.flatten(1).float()
    areas = flat.sum(dim=1)
    overlaps = torch.zeros((len(first), len(second)), device=first.device)
    for rows in chunk_slices(len(second), flat.shape[1]):
        others = second[rows].flatten(1).float()
        shared = flat @ others.T
        overlaps[:, rows] = shared / (areas[:, None] + others.sum(dim=1)[None] - shared + 1e-7)
    return overlaps


def largest_contour(mask: np.ndarray) -> np.ndarray:
    """Return (k, 2) float32 pixels: the outer contour with most points of an (H, W) mask; (0, 2) if it is empty."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((0, 2), np.float32)
    return max(contours, key=len).reshape(-1, 2).astype(np.float32)


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Return an (H, W) mask as COCO's compressed run lengths: `size` and `counts`, ready for JSON."""
    from pycocotools.mask import encode

    encoded = encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
