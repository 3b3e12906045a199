"""Samples to a `Batch`: one buffer of pixels, one table of boxes, masks on request (behaviour.md 4.8 to 4.10)."""

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

_EDGE_PX = 1e-3  # boxes end this far inside the image


@dataclass(frozen=True)
class MaskStyle:
    """How polygons become masks: `ratio` pixels of the image per pixel, one map of numbers per image or a mask each."""

    ratio: int
    overlap: bool
    strict: bool = False  # see `polygon_mask`


def new_images(count: int, shape_hw: tuple[int, int]) -> Tensor:
    """Return an unfilled (count, H, W, 3) uint8 tensor, in a worker in memory that the main process can see."""
    return new_bytes((count, *shape_hw, 3))


def new_bytes(shape: tuple[int, ...]) -> Tensor:
    """Return an unfilled uint8 tensor, in a worker in memory that the main process can see."""
    values = torch.empty(shape, dtype=torch.uint8)
    return values.share_memory_() if get_worker_info() is not None else values


def normalised_rows(sample: Sample, number: int, shape_hw: tuple[int, int]) -> np.ndarray:
    """Return (n, 6) float32 rows: `number`, class, cx, cy, w, h, the last four in parts of the network's input."""
    height, width = shape_hw
    boxes = sample.boxes_xyxy.astype(np.float64)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height]) - _EDGE_PX)
    rows = np.empty((len(boxes), 6), np.float32)
    rows[:, 0], rows[:, 1] = number, sample.classes
    rows[:, 2:4] = (boxes[:, :2] + boxes[:, 2:]) / 2 / (width, height)
    rows[:, 4:6] = (boxes[:, 2:] - boxes[:, :2]) / (width, height)
    return rows


def masks_of(samples: list[Sample], shape_hw: tuple[int, int], style: MaskStyle) -> tuple[Tensor, list[Sample]]:
    """Return the batch's masks as `Batch.masks` has them, and the samples with their objects in the masks' order."""
    if not style.overlap:
        each = [polygon_masks(sample.polygons, shape_hw, style.ratio, style.strict) for sample in samples]
        return torch.from_numpy(np.concatenate(each)).bool(), samples
    maps, ordered = [], []
    for sample in samples:
        joined, order = instance_map(sample.polygons, shape_hw, style.ratio)
        maps.append(joined)
        polygons = [sample.polygons[row] for row in order]
        boxes, classes = sample.boxes_xyxy[order], sample.classes[order]
        ordered.append(Sample(sample.image, boxes, classes, polygons, sample.semantic))
    return torch.from_numpy(np.stack(maps).astype(np.result_type(*maps), copy=False)), ordered


def collate(images: Tensor, samples: list[Sample], info: list[ImageInfo], masks: MaskStyle | None = None) -> Batch:
    """Return the batch of (B, H, W, 3) pixels and their samples; the images are only viewed, never copied."""
    shape_hw = (images.shape[1], images.shape[2])
    drawn = None
    if masks is not None:
        drawn, samples = masks_of(samples, shape_hw, masks)
    rows = [normalised_rows(sample, number, shape_hw) for number, sample in enumerate(samples)]
    semantic = None
    if samples and all(sample.semantic is not None for sample in samples):
        semantic = torch.from_numpy(np.stack([s.semantic for s in samples if s.semantic is not None]))
    labels = [sample.label for sample in samples if sample.label is not None]
    return Batch(
        images=images.permute(0, 3, 1, 2),
        boxes=torch.from_numpy(np.concatenate(rows) if rows else np.zeros((0, 6), np.float32)),
        info=info,
        masks=drawn,
        classes=torch.tensor(labels) if labels else None,
        semantic=semantic,
    )


def quad(batch: Batch, enlarge: list[bool]) -> Batch:
    """Return a batch of a quarter as many images of twice the size (behaviour.md 4.9).

    Group i of four images becomes its first one enlarged where `enlarge[i]`, else all four side by side. Images that
    fill no group are left out.
    """
    images, boxes = [], []
    for group, one in enumerate(enlarge):
        four, first = batch.images[4 * group : 4 * group + 4], 4 * group
        if one:
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
