"""Convolutions over maps that were resized from coarser ones, done at the coarse size: the same numbers, less work.

A convolution is linear, and so is bilinear resizing: the weights can be applied first. For a 1x1 convolution the two
simply change places; a 3x3 one becomes nine 1x1 convolutions whose results are resized and shifted. On GPUs, where the
plain way is one fast kernel, and while a model is exported, the plain way is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.layers.common import Conv
from models.layers.fusion import broadcast
from models.layers.winograd import WideConv


def applies(x: Tensor) -> bool:
    """Tell whether the detour is worth it."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def pointwise(block: Conv, maps: Sequence[Tensor]) -> Tensor:
    """Return what a 1x1 `Conv` gives for maps brought to the size of the first and joined, (B, c2, H, W)."""
    first = maps[0]
    if not applies(first):
        return block(torch.cat([broadcast(part, first, "bilinear") for part in maps], dim=1))
    weights = block.conv.weight.split([part.shape[1] for part in maps], dim=1)
    total = functional.conv2d(first, weights[0], block.conv.bias)
    for part, weight in zip(maps[1:], weights[1:], strict=True):
        total = total + broadcast(functional.conv2d(part, weight), first, "bilinear")
    return block.act(block.bn(total))


def with_levels(block: WideConv, x: Tensor, levels: Sequence[Tensor]) -> Tensor:
    """Return what a 3x3 `Conv` gives for `x` (B, c, H, W) joined with small maps brought to its size, (B, c2, H, W)."""
    if not applies(x):
        return block(torch.cat([x, *(broadcast(level, x, "bilinear") for level in levels)], dim=1))
    _, *others = block.conv.weight.split([x.shape[1], *(level.shape[1] for level in levels)], dim=1)
    total = block.convolve(x) + _resized_after(levels, others, (x.shape[2], x.shape[3]))
    return block.act(block.bn(total))


def _resized_after(levels: Sequence[Tensor], weights: Sequence[Tensor], size_hw: tuple[int, int]) -> Tensor:
    """Return the sum of 3x3 convolutions over small maps (B, c, h, w) resized to `size_hw`, (B, c2, H, W)."""
    height, width = size_hw
    parts, columns = [], []
    for level, weight in zip(levels, weights, strict=True):
        batch, (h, w), out_channels = level.shape[0], level.shape[2:], weight.shape[0]
        taps = weight.permute(2, 3, 0, 1).reshape(9 * out_channels, -1, 1, 1)
        tapped = functional.conv2d(level, taps).view(batch, 3, 3, out_channels, h, w)
        tapped = tapped.permute(0, 1, 4, 2, 5, 3).reshape(batch, 3 * h, 3 * w, out_channels)
        parts.append(torch.matmul(shifted(w, width, tapped), tapped))  # (B, 3h, W, c2)
        columns.append(shifted(h, height, tapped))
    stacked = torch.cat(parts, dim=1).flatten(2)  # (B, sum of 3h, W * c2)
    joined = torch.matmul(torch.cat(columns, dim=1), stacked)
    return joined.unflatten(2, (width, -1)).permute(0, 3, 1, 2)  # channels last in memory


def shifted(length: int, resized: int, like: Tensor) -> Tensor:
    """Return (resized, 3 * length): bilinear resizing, corners on corners, shifted by -1, 0 and 1; zero outside."""
    eye = torch.eye(length, dtype=torch.float64).unsqueeze(0)
    plain = functional.interpolate(eye, size=resized, mode="linear", align_corners=True)[0].t()
    padded = functional.pad(plain, (0, 0, 1, 1))  # (resized + 2, length)
    return torch.cat([padded[tap : tap + resized] for tap in range(3)], dim=1).to(like)
