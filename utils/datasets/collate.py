"""Samples to a `Batch`: one buffer of pixels, one table of boxes (behaviour.md 4.8 step 1, 4.9)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import get_worker_info

from utils.core.contracts import Batch, Geometry, ImageInfo
from utils.datasets.sample import Sample

_EDGE_PX = 1e-3  # boxes end this far inside the image


def new_images(count: int, shape_hw: tuple[int, int]) -> Tensor:
    """Return an unfilled (count, H, W, 3) uint8 tensor, in a worker in memory that the main process can see."""
    images = torch.empty((count, *shape_hw, 3), dtype=torch.uint8)
    return images.share_memory_() if get_worker_info() is not None else images


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


def collate(images: Tensor, samples: list[Sample], info: list[ImageInfo]) -> Batch:
    """Return the batch of (B, H, W, 3) pixels and their samples; the images are only viewed, never copied."""
    shape_hw = (images.shape[1], images.shape[2])
    rows = [normalised_rows(sample, number, shape_hw) for number, sample in enumerate(samples)]
    semantic = None
    if samples and all(sample.semantic is not None for sample in samples):
        semantic = torch.from_numpy(np.stack([s.semantic for s in samples if s.semantic is not None]))
    return Batch(
        images=images.permute(0, 3, 1, 2),
        boxes=torch.from_numpy(np.concatenate(rows) if rows else np.zeros((0, 6), np.float32)),
        info=info,
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
