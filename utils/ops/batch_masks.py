"""Instance masks of all images of a batch at once, with few launches on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.ops.masks import chunk_slices

_GPU_CHUNK = 2**26  # mask pixels held as floats at a time
_EPS = 1e-7


def batch_prototype_masks(
    prototypes: Tensor, coefficients: Tensor, boxes_xyxy: Tensor, network_hw: tuple[int, int]
) -> Tensor:
    """Compute the masks of `prototype_masks` for a batch, padded to the same number per image, with few launches.

    Args:
        prototypes: (B, M, mh, mw).
        coefficients: (B, L, M).
        boxes_xyxy: (B, L, 4) boxes in pixels of the network input; without area for padding.
        network_hw: Height and width of the network input.

    Returns:
        (B, L, mh, mw) bool, empty for padding.
    """
    batch, _, height, width = prototypes.shape
    most = coefficients.shape[1]
    x, y = boxes_xyxy[..., 0::2] * (width / network_hw[1]), boxes_xyxy[..., 1::2] * (height / network_hw[0])
    columns, rows = torch.arange(width, device=x.device), torch.arange(height, device=x.device)
    inside_x = (columns >= x[..., :1]) & (columns < x[..., 1:])  # (B, L, mw)
    inside_y = (rows >= y[..., :1]) & (rows < y[..., 1:])
    masks = torch.empty((batch, most, height, width), dtype=torch.bool, device=prototypes.device)
    for some in chunk_slices(batch, most * height * width, _GPU_CHUNK):
        foreground = (coefficients[some] @ prototypes[some].flatten(2)).unflatten(2, (height, width)) > 0
        inside = inside_x[some, :, None] & inside_y[some, :, :, None]
        torch.logical_and(foreground, inside, out=masks[some])
    return masks


def batch_mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """Compute the IoU of `mask_iou` within every image of a batch.

    Args:
        first: (B, N, h, w) bool, padded with empty masks.
        second: (B, D, h, w) bool, padded with empty masks.

    Returns:
        (B, N, D) float32, 0 for padding.
    """
    batch, number, height, width = first.shape
    iou = torch.zeros((batch, number, second.shape[1]), device=first.device)
    for some in chunk_slices(batch, max(number, second.shape[1]) * height * width, _GPU_CHUNK):
        labels, others = first[some].flatten(2).float(), second[some].flatten(2).float()
        intersection = labels @ others.transpose(1, 2)
        areas = labels.sum(dim=2)[..., None] + others.sum(dim=2)[:, None]
        torch.div(intersection, areas - intersection + _EPS, out=iou[some])
    return iou
