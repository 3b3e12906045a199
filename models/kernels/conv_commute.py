"""Convolutions over enlarged maps, computed at the original size of the maps: the same values for less work.

Convolution and bilinear resizing are both linear, so that the weights can be applied first. A 1x1 convolution and a
resize simply commute; a 3x3 convolution becomes nine 1x1 convolutions whose results are resized and shifted. Resizing
is a product with one small matrix per direction; in inference the second product accumulates into its target.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from models.kernels.winograd import WideConv
from models.layers.common import Conv, use_cpu_kernels
from models.layers.fusion import resize_like

CACHED_MATRICES = 128  # of each kind; a network with open input sizes needs a few per size


def conv1x1_over_levels(block: Conv, maps: Sequence[Tensor]) -> Tensor:
    """Apply a 1x1 `Conv` to maps resized to the size of the first and concatenated.

    Args:
        block: from the channels of all maps to `out_channels`.
        maps: (B, C_i, h_i, w_i) each; the first is (B, C_0, H, W).

    Returns:
        (B, out_channels, H, W).
    """
    first = maps[0]
    if not use_cpu_kernels(first):
        return block(torch.cat([resize_like(part, first, "bilinear") for part in maps], dim=1))
    weights = block.conv.weight.split([part.shape[1] for part in maps], dim=1)
    total = functional.conv2d(first, weights[0], block.conv.bias)
    for part, weight in zip(maps[1:], weights[1:], strict=True):
        total = _add_resized(total, functional.conv2d(part, weight))
    return block.norm_act(total)


def _add_resized(total: Tensor, part: Tensor) -> Tensor:
    """Add (B, C, h, w), resized, to (B, C, H, W), which may be overwritten."""
    if total.shape[2:] == part.shape[2:] or not _can_accumulate(total):
        return total + resize_like(part, total, "bilinear")
    down, along = (
        resize_matrix(small, large, total.dtype) for small, large in zip(part.shape[2:], total.shape[2:], strict=True)
    )
    wide = torch.matmul(along, part.permute(0, 2, 3, 1))  # (B, h, W, C)
    return _accumulate(total, down, wide.flatten(2))


def conv3x3_over_levels(block: WideConv, x: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Apply a 3x3 `Conv` to a map concatenated with smaller maps resized to its size.

    Args:
        block: from the channels of `x` and all levels to `out_channels`.
        x: (B, C, H, W).
        levels: (B, C_i, h_i, w_i) each.

    Returns:
        (B, out_channels, H, W).
    """
    if not use_cpu_kernels(x):
        return block(torch.cat([x, *(resize_like(level, x, "bilinear") for level in levels)], dim=1))
    _, *weights = block.conv.weight.split([x.shape[1], *(level.shape[1] for level in levels)], dim=1)
    return block.norm_act(_add_convolved(block.convolve_leading(x), levels, weights))


def _add_convolved(total: Tensor, levels: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Add 3x3 convolutions over resized levels to (B, out_channels, H, W), which may be overwritten."""
    height, width = total.shape[2:]
    parts, columns = [], []
    for level, weight in zip(levels, weights, strict=True):
        batch, (h, w), out_channels = level.shape[0], level.shape[2:], weight.shape[0]
        taps = weight.permute(2, 3, 0, 1).reshape(9 * out_channels, -1, 1, 1)
        tapped = functional.conv2d(level, taps).view(batch, 3, 3, out_channels, h, w)
        tapped = tapped.permute(0, 1, 4, 2, 5, 3).reshape(batch, 3 * h, 3 * w, out_channels)
        parts.append(torch.matmul(resize_shift_matrix(w, width, tapped.dtype), tapped))  # (B, 3h, W, out_channels)
        columns.append(resize_shift_matrix(h, height, tapped.dtype))
    stacked = torch.cat(parts, dim=1).flatten(2)  # (B, sum of 3h, W * out_channels)
    if _can_accumulate(total):
        return _accumulate(total, torch.cat(columns, dim=1), stacked)
    product = torch.matmul(torch.cat(columns, dim=1), stacked)
    return total + product.unflatten(2, (width, -1)).permute(0, 3, 1, 2)


def _can_accumulate(total: Tensor) -> bool:
    """Check whether a product can be added to a map in place."""
    plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return plain and total.is_contiguous(memory_format=torch.channels_last)


def _accumulate(total: Tensor, down: Tensor, wide: Tensor) -> Tensor:
    """Add the product of (H, n) and (B, n, W * C) to (B, C, H, W) in place."""
    rows = total.permute(0, 2, 3, 1).flatten(2)  # a view
    rows.baddbmm_(down.expand(len(rows), -1, -1), wide)
    return total


@lru_cache(maxsize=CACHED_MATRICES)
def resize_matrix(length: int, resized: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Build the (resized, length) matrix of bilinear resizing with aligned corners."""
    with torch.inference_mode(False):  # a matrix cached during inference must also serve in training
        eye = torch.eye(length, dtype=torch.float64).unsqueeze(0)
        matrix = functional.interpolate(eye, size=resized, mode="linear", align_corners=True)[0].t()
        return matrix.to(dtype).contiguous()


@lru_cache(maxsize=CACHED_MATRICES)
def resize_shift_matrix(length: int, resized: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Build the (resized, 3 * length) matrix of resizing followed by shifts of -1, 0 and 1 with zero padding."""
    with torch.inference_mode(False):
        padded = functional.pad(resize_matrix(length, resized, dtype), (0, 0, 1, 1))  # (resized + 2, length)
        return torch.cat([padded[tap : tap + resized] for tap in range(3)], dim=1)
