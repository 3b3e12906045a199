"""Convolutions over maps that were resized from coarser ones, done at the coarse size: the same numbers, less work.

A convolution is linear, and so is bilinear resizing: the weights can be applied first. For a 1x1 convolution the two
simply change places; a 3x3 one becomes nine 1x1 convolutions whose results are resized and shifted. Resizing is a
product with one small matrix per direction; in inference the second product adds straight to what is there.
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


def pointwise(block: Conv, maps: Sequence[Tensor]) -> Tensor:
    """Return what a 1x1 `Conv` gives for maps brought to the size of the first and joined, (B, c2, H, W)."""
    first = maps[0]
    if not use_cpu_kernels(first):
        return block(torch.cat([resize_like(part, first, "bilinear") for part in maps], dim=1))
    weights = block.conv.weight.split([part.shape[1] for part in maps], dim=1)
    total = functional.conv2d(first, weights[0], block.conv.bias)
    for part, weight in zip(maps[1:], weights[1:], strict=True):
        total = _with_resized(total, functional.conv2d(part, weight))
    return block.norm_act(total)


def _with_resized(total: Tensor, part: Tensor) -> Tensor:
    """Return the sum of (B, c, H, W), which may be overwritten, and of (B, c, h, w) resized to it."""
    if total.shape[2:] == part.shape[2:] or not _can_add(total):
        return total + resize_like(part, total, "bilinear")
    down, along = (
        resizing(small, large, total.dtype) for small, large in zip(part.shape[2:], total.shape[2:], strict=True)
    )
    wide = torch.matmul(along, part.permute(0, 2, 3, 1))  # (B, h, W, c)
    return _added(total, down, wide.flatten(2))


def with_levels(block: WideConv, x: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Return what a 3x3 `Conv` gives for `x` (B, c, H, W) joined with small maps brought to its size, (B, c2, H, W)."""
    if not use_cpu_kernels(x):
        return block(torch.cat([x, *(resize_like(level, x, "bilinear") for level in levels)], dim=1))
    _, *others = block.conv.weight.split([x.shape[1], *(level.shape[1] for level in levels)], dim=1)
    return block.norm_act(_with_resized_after(block.convolve_first(x), levels, others))


def _with_resized_after(total: Tensor, levels: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return (B, c2, H, W) and the sum of 3x3 convolutions over small maps (B, c, h, w) resized to that size."""
    height, width = total.shape[2:]
    parts, columns = [], []
    for level, weight in zip(levels, weights, strict=True):
        batch, (h, w), out_channels = level.shape[0], level.shape[2:], weight.shape[0]
        taps = weight.permute(2, 3, 0, 1).reshape(9 * out_channels, -1, 1, 1)
        tapped = functional.conv2d(level, taps).view(batch, 3, 3, out_channels, h, w)
        tapped = tapped.permute(0, 1, 4, 2, 5, 3).reshape(batch, 3 * h, 3 * w, out_channels)
        parts.append(torch.matmul(shifted(w, width, tapped.dtype), tapped))  # (B, 3h, W, c2)
        columns.append(shifted(h, height, tapped.dtype))
    stacked = torch.cat(parts, dim=1).flatten(2)  # (B, sum of 3h, W * c2)
    if _can_add(total):
        return _added(total, torch.cat(columns, dim=1), stacked)
    joined = torch.matmul(torch.cat(columns, dim=1), stacked)
    return total + joined.unflatten(2, (width, -1)).permute(0, 3, 1, 2)


def _can_add(total: Tensor) -> bool:
    """Tell whether a product can be added to a map where it lies."""
    plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return plain and total.is_contiguous(memory_format=torch.channels_last)


def _added(total: Tensor, down: Tensor, wide: Tensor) -> Tensor:
    """Add the product of (H, n) and (B, n, W * c) to (B, c, H, W), which is overwritten."""
    rows = total.permute(0, 2, 3, 1).flatten(2)  # a view
    rows.baddbmm_(down.expand(len(rows), -1, -1), wide)
    return total


@lru_cache(maxsize=128)
def resizing(length: int, resized: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return (resized, length): bilinear resizing, corners on corners, as a product."""
    with torch.inference_mode(False):  # what is kept from inference must serve in training
        eye = torch.eye(length, dtype=torch.float64).unsqueeze(0)
        found = functional.interpolate(eye, size=resized, mode="linear", align_corners=True)[0].t()
        return found.to(dtype).contiguous()


@lru_cache(maxsize=128)
def shifted(length: int, resized: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return (resized, 3 * length): resizing, and then shifting by -1, 0 and 1; zero outside."""
    with torch.inference_mode(False):
        padded = functional.pad(resizing(length, resized, dtype), (0, 0, 1, 1))  # (resized + 2, length)
        return torch.cat([padded[tap : tap + resized] for tap in range(3)], dim=1)
