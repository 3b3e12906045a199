"""Collation of samples to a `Batch`: one pixel buffer, one table of boxes, rasterised masks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import get_worker_info

from utils.core.contracts import Batch, Geometry, ImageInfo
from utils.datasets.pipeline.sample import Sample
from utils.ops.masks import instance_map, polygon_masks

_EDGE_PX = 1e-3  # boxes end this far inside the image, so that their centre is in a grid cell


@dataclass(frozen=True)
class MaskStyle:
    """How polygons are rasterised."""

    ratio: int  # image size divided by mask size
    overlap: bool  # one index map per image instead of one mask per object
    strict: bool = False  # see `polygon_mask`


def new_images(count: int, shape_hw: tuple[int, int]) -> Tensor:
    """Allocate a (count, H, W, 3) uint8 tensor, in shared memory within a worker."""
    return new_bytes((count, *shape_hw, 3))


def new_bytes(shape: tuple[int, ...]) -> Tensor:
    """Allocate a uint8 tensor, in shared memory within a worker, where returning it then needs no copy."""
    values = torch.empty(shape, dtype=torch.uint8)
    return values.share_memory_() if get_worker_info() is not None else values


def normalised_rows(sample: Sample, number: int, shape_hw: tuple[int, int]) -> np.ndarray:
    """Convert the boxes of a sample to rows of `Batch.boxes`.

    Args:
        sample: sample with n boxes in pixels.
        number: row of the image in the batch.
        shape_hw: network input size.

    Returns:
        (n, 6) float32: `number`, class, cx, cy, w, h, the last four normalised.
    """
    height, width = shape_hw
    boxes = sample.boxes_xyxy.astype(np.float64)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height]) - _EDGE_PX)
    rows = np.empty((len(boxes), 6), np.float32)
    rows[:, 0], rows[:, 1] = number, sample.classes
    rows[:, 2:4] = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height)
    rows[:, 4:6] = (boxes[:, 2:] - boxes[:, :2]) / (width, height)
    return rows


def rasterise_masks(samples: list[Sample], shape_hw: tuple[int, int], style: MaskStyle) -> tuple[Tensor, list[Sample]]:
    """Rasterise the polygons of a batch.

    Args:
        samples: samples with a polygon per object.
        shape_hw: network input size.
        style: mask size and kind.

    Returns:
        The masks as in `Batch.masks`, and the samples with their objects in the order of the masks.
    """
    if not style.overlap:
        each = [polygon_masks(sample.polygons, shape_hw, style.ratio, style.strict) for sample in samples]
        return torch.from_numpy(np.concatenate(each)).bool(), samples
    maps, ordered = [], []
    for sample in samples:
        overlap, order = instance_map(sample.polygons, shape_hw, style.ratio)
        maps.append(overlap)
        polygons = [sample.polygons[row] for row in order]
        boxes, classes = sample.boxes_xyxy[order], sample.classes[order]
        ordered.append(replace(sample, boxes_xyxy=boxes, classes=classes, polygons=polygons))
    return torch.from_numpy(np.stack(maps).astype(np.result_type(*maps), copy=False)), ordered


def collate(images: Tensor, samples: list[Sample], info: list[ImageInfo], masks: MaskStyle | None = None) -> Batch:
    """Collate samples to a batch.

    Args:
        images: (B, H, W, 3) uint8 pixels of the samples; the batch has a view of them.
        samples: labels of the B images.
        info: identity of the B images.
        masks: how to rasterise polygons; None: no instance masks.

    Returns:
        The batch; it has semantic maps only if all samples have one.
    """
    shape_hw = (images.shape[1], images.shape[2])
    rasterised = None
    if masks is not None:
        rasterised, samples = rasterise_masks(samples, shape_hw, masks)
    rows = [normalised_rows(sample, number, shape_hw) for number, sample in enumerate(samples)]
    labels = [sample.label for sample in samples if sample.label is not None]
    known = [sample.boxes_known for sample in samples]
    panoptic = [sample.panoptic for sample in samples if sample.panoptic is not None]
    return Batch(
        images=images.permute(0, 3, 1, 2),
        boxes=torch.from_numpy(np.concatenate(rows) if rows else np.zeros((0, 6), np.float32)),
        info=info,
        boxes_known=None if all(known) else torch.tensor(known),
        masks=rasterised,
        classes=torch.tensor(labels) if labels else None,
        panoptic=panoptic or None,
        semantic=_stack_maps([sample.semantic for sample in samples if sample.semantic is not None], len(samples)),
    )


def _stack_maps(maps: list[np.ndarray], count: int) -> Tensor | None:
    """Stack semantic maps of one size to (B, H, W); None if some samples have none."""
    if not maps or len(maps) < count:
        return None
    stacked = new_bytes((count, *maps[0].shape))
    np.stack(maps, out=stacked.numpy())
    return stacked


def quad(batch: Batch, enlarge: list[bool]) -> Batch:
    """Combine groups of four images to a quarter as many images of twice the size (--quad).

    Args:
        batch: images of one size; those that do not fill a group are dropped.
        enlarge: for each group, whether its first image is enlarged; otherwise all four are tiled.
    """
    images, boxes = [], []
    for group, enlarged in enumerate(enlarge):
        four, first = batch.images[4 * group : 4 * group + 4], 4 * group
        if enlarged:
            big = interpolate(four[:1].float(), scale_factor=2.0, mode="bilinear", align_corners=False)
            images.append(big[0].round().to(torch.uint8))
            boxes.append(_renumbered(batch.boxes, first, group))
            continue
        columns = (torch.cat((four[0], four[1]), 1), torch.cat((four[2], four[3]), 1))
        images.append(torch.cat(columns, 2))
        for member, offset_xy in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            rows = _renumbered(batch.boxes, first + member, group)
            rows[:, 2:4] += torch.tensor(offset_xy, dtype=rows.dtype)
            rows[:, 2:] /= 2
            boxes.append(rows)
    pixels = torch.stack(images).contiguous(memory_format=torch.channels_last)
    shape_hw = (pixels.shape[2], pixels.shape[3])
    info = [replace(batch.info[4 * g], geometry=Geometry(shape_hw, shape_hw)) for g in range(len(enlarge))]
    return Batch(images=pixels, boxes=torch.cat(boxes), info=info)


def _renumbered(boxes: Tensor, image: int, number: int) -> Tensor:
    rows = boxes[boxes[:, 0] == image].clone()
    rows[:, 0] = number
    return rows
