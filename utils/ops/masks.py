"""Instance masks: from polygons or prototypes, at any resolution, their IoU, contours and run-length encoding."""

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

_MAX_COORDINATE_PX = 2**14  # polygons are clipped to it; OpenCV overflows beyond, which strong perspective can reach
_HALF = 127  # half of the value of a covered pixel before down-sampling
_CHUNK = 2**23  # mask pixels held as floats at a time
_EPS = 1e-7


# ----------------------------------------------------------------------------------------------------------------------
# Labels


def polygon_mask(polygon: np.ndarray, image_hw: tuple[int, int], ratio: int = 1, strict: bool = False) -> np.ndarray:
    """Rasterise a polygon.

    Args:
        polygon: (k, 2) vertices in pixels; without vertices the mask is empty.
        image_hw: Height H and width W of the image.
        ratio: Down-sampling factor.
        strict: Set only pixels that are more than half covered. Otherwise exactly half suffices. Training uses the
            latter and evaluation the former, a difference of about 0.01 mAP50-95.

    Returns:
        (H // ratio, W // ratio) uint8, 0 or 1.
    """
    height, width = image_hw
    mask: np.ndarray = np.zeros((height, width), np.uint8)
    if len(polygon):
        # Floor before the cast: the cast truncates, which would move points outside the image to its border.
        corners = np.floor(np.clip(polygon, -_MAX_COORDINATE_PX, _MAX_COORDINATE_PX))
        cv2.fillPoly(mask, [corners.astype(np.int32)], 2 * _HALF)
    if ratio > 1:
        mask = cv2.resize(mask, (width // ratio, height // ratio), interpolation=cv2.INTER_LINEAR)
    return (mask > _HALF if strict else mask >= _HALF).view(np.uint8)


def polygon_masks(
    polygons: Sequence[np.ndarray], image_hw: tuple[int, int], ratio: int = 1, strict: bool = False
) -> np.ndarray:
    """Rasterise n polygons to (n, H // ratio, W // ratio) uint8 masks; see `polygon_mask`."""
    masks = np.zeros((len(polygons), image_hw[0] // ratio, image_hw[1] // ratio), np.uint8)
    for row, polygon in enumerate(polygons):
        masks[row] = polygon_mask(polygon, image_hw, ratio, strict)
    return masks


def instance_map(
    polygons: Sequence[np.ndarray], image_hw: tuple[int, int], ratio: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Rasterise n polygons to one index map, in which smaller objects cover larger ones.

    Args:
        polygons: (k, 2) vertices of each object in pixels.
        image_hw: Height H and width W of the image.
        ratio: Down-sampling factor.

    Returns:
        The (H // ratio, W // ratio) map, uint8 or, for more than 255 objects, int32: 0 is background, and objects are
        numbered from 1 in descending order of area. And the (n,) order: element i is the polygon of object i + 1. The
        labels of the image have to be reordered by it.
    """
    masks = polygon_masks(polygons, image_hw, ratio)
    order = np.argsort(-masks.sum(axis=(1, 2), dtype=np.int64), kind="stable")
    indices = np.zeros(masks.shape[1:], np.uint8 if len(polygons) <= np.iinfo(np.uint8).max else np.int32)
    for number, row in enumerate(order, 1):
        indices[masks[row] > 0] = number
    return indices, order


# ----------------------------------------------------------------------------------------------------------------------
# Predictions


def inside_boxes(boxes_xyxy: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Rasterise boxes: pixel (x, y) is inside if x1 <= x < x2 and y1 <= y < y2.

    Args:
        boxes_xyxy: (n, 4) boxes in pixels of the result.
        size_hw: Height h and width w.

    Returns:
        (n, h, w) bool.
    """
    rows = torch.arange(size_hw[0], device=boxes_xyxy.device)[None, :, None]
    columns = torch.arange(size_hw[1], device=boxes_xyxy.device)[None, None]
    x1, y1, x2, y2 = boxes_xyxy[:, :, None, None].unbind(1)
    return ((columns >= x1) & (columns < x2)) & ((rows >= y1) & (rows < y2))


def prototype_masks(
    prototypes: Tensor, coefficients: Tensor, boxes_xyxy: Tensor, network_hw: tuple[int, int]
) -> Tensor:
    """Compute masks at the resolution of the prototypes, cropped to their boxes.

    Args:
        prototypes: (M, mh, mw).
        coefficients: (n, M) mask coefficients from `batched_nms`.
        boxes_xyxy: (n, 4) boxes in pixels of the network input.
        network_hw: Height and width of the network input.

    Returns:
        (n, mh, mw) bool.
    """
    _, mask_h, mask_w = prototypes.shape
    small_boxes = boxes_xyxy * boxes_xyxy.new_tensor([mask_w / network_hw[1], mask_h / network_hw[0]] * 2)
    flat = prototypes.flatten(1)
    masks = torch.zeros((len(coefficients), mask_h, mask_w), dtype=torch.bool, device=prototypes.device)
    for rows in chunk_slices(len(coefficients), mask_h * mask_w):
        foreground = (coefficients[rows] @ flat).view(-1, mask_h, mask_w) > 0  # equivalent to sigmoid > 0.5
        masks[rows] = foreground & inside_boxes(small_boxes[rows], (mask_h, mask_w))
    return masks


def upsampled_masks(
    prototypes: Tensor,
    coefficients: Tensor,
    boxes_xyxy: Tensor,
    network_hw: tuple[int, int],
    crop_first: bool = False,
) -> Tensor:
    """Compute masks at the resolution of the network input; all are held in memory as floats.

    Args:
        prototypes: (M, mh, mw).
        coefficients: (n, M) mask coefficients.
        boxes_xyxy: (n, 4) boxes in pixels of the network input.
        network_hw: Height H and width W of the network input.
        crop_first: Crop masks to their boxes before instead of after upsampling, which blurs the cropped edges.

    Returns:
        (n, H, W) bool.
    """
    _, mask_h, mask_w = prototypes.shape
    soft = (coefficients @ prototypes.flatten(1)).sigmoid_().view(-1, mask_h, mask_w)
    if crop_first:
        small_boxes = boxes_xyxy * boxes_xyxy.new_tensor([mask_w / network_hw[1], mask_h / network_hw[0]] * 2)
        soft = soft * inside_boxes(small_boxes, (mask_h, mask_w))
    if not len(soft):
        return torch.zeros((0, *network_hw), dtype=torch.bool, device=prototypes.device)
    large = interpolate(soft[None], size=network_hw, mode="bilinear", align_corners=False)[0] > 0.5
    return large if crop_first else large & inside_boxes(boxes_xyxy, network_hw)


@dataclass(frozen=True)
class PrototypeMasks:
    """Masks of one image's n objects, computed on demand from prototypes; implements `contracts.FineMasks`.

    With `native`, masks at the original size are sampled from the prototypes directly. Otherwise they are sampled from
    binary masks at the size of the network input, as YOLOv5 does without `--retina-masks`.
    """

    prototypes: Tensor  # (M, mh, mw)
    coefficients: Tensor  # (n, M)
    boxes_xyxy: Tensor  # (n, 4) in pixels of the network input
    geometry: Geometry
    native: bool = False

    def __len__(self) -> int:
        return len(self.coefficients)

    def cpu(self) -> PrototypeMasks:
        """Copy the tensors to the CPU."""
        return replace(
            self,
            prototypes=self.prototypes.cpu(),
            coefficients=self.coefficients.cpu(),
            boxes_xyxy=self.boxes_xyxy.cpu(),
        )

    def network(self, rows: slice) -> Tensor:
        """Compute the (k, H, W) bool masks of some objects at the size of the network input."""
        size_hw, boxes = self.geometry.network_hw, self.boxes_xyxy[rows].float()
        prototypes, coefficients = self.prototypes.float(), self.coefficients[rows].float()
        if prototypes.device.type != "cpu":
            return upsampled_masks(prototypes, coefficients, boxes, size_hw)
        # On a CPU it is faster to upsample the pixels of each box only.
        soft = (coefficients @ prototypes.flatten(1)).sigmoid_().view(-1, *prototypes.shape[1:]).numpy()
        masks = torch.zeros((len(soft), *size_hw), dtype=torch.bool)
        windows = boxes.ceil().long().clamp(min=0).minimum(torch.tensor([size_hw[1], size_hw[0]] * 2)).tolist()
        for mask, probabilities, (x1, y1, x2, y2) in zip(masks, soft, windows, strict=True):
            large = mask_in_original(probabilities, Geometry(size_hw, size_hw), (x1, y1, x2, y2))
            mask.copy_(torch.from_numpy(large))
        return masks

    def original(self, row: int) -> np.ndarray:
        """Compute the (H, W) bool mask of one object at the size of the original image."""
        geometry = self.geometry
        if self.native:
            soft = torch.einsum("m,mhw->hw", self.coefficients[row].float(), self.prototypes.float()).sigmoid().numpy()
        else:
            soft = self.network(slice(row, row + 1))[0].float().numpy()
        x1, y1, x2, y2 = (math.ceil(side) for side in to_original(self.boxes_xyxy[row].float(), geometry).tolist())
        return mask_in_original(soft, geometry, (x1, y1, x2, y2))


def mask_in_original(
    soft: np.ndarray, geometry: Geometry, window_xyxy: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Resample a mask of the network input to the original image, bilinearly, and threshold it at one half.

    Args:
        soft: (h, w) float32 probabilities that cover the network input, at any resolution.
        geometry: Letterbox transform of the image.
        window_xyxy: Part of the original image to compute; the mask is False outside (default: everything).

    Returns:
        (H, W) bool at the original size.
    """
    mask = np.zeros(geometry.original_hw, dtype=bool)
    x1, y1, x2, y2 = window_xyxy or (0, 0, geometry.original_hw[1], geometry.original_hw[0])
    if x1 >= x2 or y1 >= y2:
        return mask
    matrix = np.zeros((2, 3))  # from pixel indices of the window to those of `soft`, by pixel centres
    for axis, first in ((0, x1), (1, y1)):
        shrink = soft.shape[1 - axis] / geometry.network_hw[1 - axis]
        step = geometry.scale_xy[axis] * shrink
        matrix[axis, axis] = step
        matrix[axis, 2] = (first + 0.5) * step + geometry.pad_xy[axis] * shrink - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    window = cv2.warpAffine(soft, matrix, (x2 - x1, y2 - y1), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    mask[y1:y2, x1:x2] = window > 0.5
    return mask


# ----------------------------------------------------------------------------------------------------------------------
# Comparison and serialisation


def chunk_slices(count: int, pixels: int, chunk: int = _CHUNK) -> list[slice]:
    """Split `count` masks of so many pixels each into slices of `chunk` pixels, which fit into memory as floats."""
    step = max(1, chunk // max(1, pixels))
    return [slice(start, start + step) for start in range(0, count, step)]


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the IoU of all pairs of two sets of masks.

    Args:
        first: (N, h, w) bool.
        second: (D, h, w) bool.

    Returns:
        (N, D) float32.
    """
    flat = first.flatten(1).float()
    areas = flat.sum(dim=1)
    iou = torch.zeros((len(first), len(second)), device=first.device)
    for rows in chunk_slices(len(second), flat.shape[1]):
        others = second[rows].flatten(1).float()
        intersection = flat @ others.T
        iou[:, rows] = intersection / (areas[:, None] + others.sum(dim=1)[None] - intersection + _EPS)
    return iou


def largest_contour(mask: np.ndarray) -> np.ndarray:
    """Return the outer contour of a mask with the most vertices.

    Args:
        mask: (H, W).

    Returns:
        (k, 2) float32 x, y in pixels; (0, 2) for an empty mask.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    if not contours:
        return np.zeros((0, 2), np.float32)
    return max(contours, key=len).reshape(-1, 2).astype(np.float32)


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode an (H, W) mask in COCO's compressed run-length format.

    Returns:
        A dictionary with `size` and `counts` that can be written to JSON.
    """
    from pycocotools.mask import encode

    encoded = encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
