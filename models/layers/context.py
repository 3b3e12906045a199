"""Blocks that gather context for per-pixel classes: receptive fields, atrous and pooled pyramids (12.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.kernels.conv_commute import pointwise
from models.kernels.winograd import WideConv
from models.layer_plan import LAYERS, Plan, Row, channel_plan, single_input
from models.layers.common import Conv, PooledConv, being_exported, plain_convolution, sparingly
from models.layers.csp import C3, Bottleneck
from models.layers.fusion import broadcast
from models.layers.pool import SPP


def _hidden(c1: int, reduction: int) -> int:
    if isinstance(reduction, bool) or not isinstance(reduction, int) or not 1 <= reduction <= c1:
        raise ValueError(f"{c1} input channels cannot be divided by {reduction!r}")
    return c1 // reduction


def _dilations(given: Sequence[int], count: int) -> list[int]:
    whole = all(isinstance(d, int) and not isinstance(d, bool) and d >= 1 for d in given)
    if len(given) != count or not whole:
        raise ValueError(f"{count} dilations, whole numbers from 1 up, are needed, not {list(given)}")
    return list(given)


def _global_branch(c1: int, c2: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), PooledConv(c1, c2))


@LAYERS.register("RFB2")
class RFB2(nn.Module):
    """Receptive-field block whose dilated convolutions follow each other (after RFB-Net, arXiv 1711.07767)."""

    plan = staticmethod(channel_plan)

    def __init__(
        self, c1: int, c2: int, map_reduce: int = 4, d: Sequence[int] = (2, 3), has_global: bool = False
    ) -> None:
        super().__init__()
        hidden, (first, second) = _hidden(c1, map_reduce), _dilations(d, 2)
        self.branch0 = nn.Sequential(Conv(c1, hidden), Conv(hidden, hidden, 3))
        self.branch1 = nn.Sequential(*plain_convolution(hidden, hidden, d=first))
        self.branch2 = nn.Sequential(*plain_convolution(hidden, hidden, d=second))
        self.branch3 = nn.Sequential(Conv(c1, hidden))
        self.branch4 = _global_branch(hidden, hidden) if has_global else None
        self.ConvLinear = Conv((5 if has_global else 4) * hidden, c2)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        return self.joined(self.branch0(x), self.branch3(x))

    def of_levels(self, levels: Sequence[Tensor]) -> Tensor:
        """Take maps with c1 channels in all, return (B, c2, H, W) for them at the size of the first."""
        first: Any = self.branch0
        short: Any = self.branch3
        return self.joined(first[1](pointwise(first[0], levels)), pointwise(short[0], levels))

    def joined(self, near: Tensor, short: Tensor) -> Tensor:
        """Return the block's output from those of its branches 0 and 3."""
        wide = sparingly(self.branch1, near)
        wider = sparingly(self.branch2, wide)
        parts = [near, wide, wider, short]
        if self.branch4 is not None:
            parts.append(broadcast(self.branch4(wider), near))
        return self.ConvLinear(torch.cat(parts, dim=1))


@LAYERS.register("RFB1")
class RFB1(nn.Module):
    """Receptive-field block with parallel branches of growing kernels and dilations (RFB-Net, arXiv 1711.07767)."""

    plan = staticmethod(channel_plan)

    def __init__(
        self, c1: int, c2: int, map_reduce: int = 4, d: Sequence[int] = (3, 5, 7), has_global: bool = False
    ) -> None:
        super().__init__()
        hidden, (first, second, third) = _hidden(c1, map_reduce), _dilations(d, 3)
        self.branch0 = nn.Sequential(Conv(c1, hidden), Conv(hidden, hidden, 3))
        self.branch1 = self._branch(c1, hidden, 3, first)
        self.branch2 = self._branch(c1, hidden, 3, second)
        self.branch3 = self._branch(c1, hidden, 5, third)
        self.branch4 = _global_branch(c1, hidden) if has_global else None
        self.Fusion = Conv((5 if has_global else 4) * hidden, c2)

    @staticmethod
    def _branch(c1: int, hidden: int, kernel: int, dilation: int) -> nn.Sequential:
        return nn.Sequential(
            Conv(c1, hidden), Conv(hidden, hidden, kernel), *plain_convolution(hidden, hidden, d=dilation)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        parts = [self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)]
        if self.branch4 is not None:
            parts.append(broadcast(self.branch4(x), x))
        return self.Fusion(torch.cat(parts, dim=1))


@LAYERS.register("ASPP")
class ASPP(nn.Module):
    """Atrous spatial pyramid: a 1x1 and three dilated 3x3 convolutions side by side (DeepLabv3, arXiv 1706.05587)."""

    plan = staticmethod(channel_plan)

    def __init__(
        self, c1: int, c2: int, d: Sequence[int] = (3, 6, 9), has_global: bool = True, map_reduce: int = 4
    ) -> None:
        super().__init__()
        hidden = _hidden(c1, map_reduce)
        self.branch0 = self.first(c1, hidden)
        self.branch1, self.branch2, self.branch3 = (self.dilated(c1, hidden, dilation) for dilation in _dilations(d, 3))
        self.branch4 = _global_branch(c1, hidden) if has_global else None
        self.ConvLinear = Conv((5 if has_global else 4) * hidden, c2)

    def first(self, c1: int, hidden: int) -> nn.Sequential:
        """Return the branch without dilation."""
        return nn.Sequential(Conv(c1, hidden))

    def dilated(self, c1: int, hidden: int, dilation: int) -> nn.Sequential:
        """Return a branch with dilation."""
        return nn.Sequential(*plain_convolution(c1, hidden, d=dilation))

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        wide = (sparingly(branch, x) for branch in (self.branch1, self.branch2, self.branch3))
        parts = [self.branch0(x), *wide]
        if self.branch4 is not None:
            parts.append(broadcast(self.branch4(x), x))
        return self.ConvLinear(torch.cat(parts, dim=1))


@LAYERS.register("ASPPs")
class ASPPs(ASPP):
    """`ASPP` whose branches first reduce the channels by a 1x1 convolution."""

    def first(self, c1: int, hidden: int) -> nn.Sequential:
        """Return the branch without dilation."""
        return nn.Sequential(Conv(c1, hidden), Conv(hidden, hidden, 3))

    def dilated(self, c1: int, hidden: int, dilation: int) -> nn.Sequential:
        """Return a branch with dilation."""
        return nn.Sequential(Conv(c1, hidden), *plain_convolution(hidden, hidden, d=dilation))


class WideBottleneck(Bottleneck):
    """`Bottleneck` for large maps: its 3x3 convolution takes the shorter way where it pays."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__(channels, channels, shortcut, e=1.0)
        self.cv2 = WideConv(channels, channels)


class WideC3(C3):
    """`C3` of such bottlenecks; not for grouped convolutions."""

    def inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Return `n` bottlenecks."""
        return nn.Sequential(*(WideBottleneck(hidden, shortcut) for _ in range(n)))


class WideC3SPP(nn.Module):
    """C3 with spatial pyramid pooling in its deep branch, which is half as wide again as the other."""

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13), e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c1 * e)
        deep = int(1.5 * hidden)
        self.cv1 = Conv(c1, hidden)
        self.cv2 = Conv(c1, hidden)
        self.cv3 = Conv(deep + hidden, c2)
        self.m = SPP(hidden, deep, k)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


def _pyramid_plan(row: Row) -> Plan:
    channels = single_input(row)
    sizes = row.arguments[0] if row.arguments else PYRAMID
    return Plan((channels, sizes), channels + len(sizes) * (channels // 4))


PYRAMID = (1, 2, 3, 6)


def grid_means(x: Tensor, size: int) -> Tensor:
    """Take (B, c, H, W), return the means over a grid of cells, (B, c, size, size), as adaptive pooling cuts them.

    Formats that know adaptive pooling only where cells are equal get it as two products with small matrices.
    """
    if size == 1 or not being_exported():
        return nn.functional.adaptive_avg_pool2d(x, size)
    down, along = (_cell_weights(x.shape[axis], size, x) for axis in (2, 3))
    return torch.matmul(torch.matmul(down, x), along.t())


def _cell_weights(length: int, size: int, like: Tensor) -> Tensor:
    """Return (size, length): row k averages the pixels from floor(k * length / size) up to ceil((k+1) * length / size).

    In whole numbers, so that an open length can become part of an exported graph.
    """
    cells = torch.arange(size, device=like.device)[:, None]
    pixels = torch.arange(length, device=like.device)[None]
    inside = (pixels * size > cells * length - size) & (pixels * size < (cells + 1) * length)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)


@LAYERS.register("PyramidPooling")
class PyramidPooling(nn.Module):
    """The input and its means over coarse grids, each a quarter as many channels (PSPNet, arXiv 1612.01105)."""

    plan = staticmethod(_pyramid_plan)

    def __init__(self, c1: int, k: Sequence[int] = PYRAMID) -> None:
        super().__init__()
        if not k or c1 < 4 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in k):
            raise ValueError(f"pools {c1} channels, at least 4, to sizes from 1 up, not {list(k)}")
        self.sizes = tuple(k)
        for number, size in enumerate(self.sizes, start=1):
            kind = PooledConv if size == 1 else Conv
            self.add_module(f"conv{number}", kind(c1, c1 // 4))

    def levels(self, x: Tensor) -> list[Tensor]:
        """Take (B, c1, H, W), return (B, c1 // 4, k, k) for each size k."""
        pooled = [grid_means(x, size) for size in self.sizes]
        return [self.get_submodule(f"conv{number}")(part) for number, part in enumerate(pooled, start=1)]

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c1 + sizes * (c1 // 4), H, W)."""
        return torch.cat([x, *(broadcast(level, x, "bilinear") for level in self.levels(x))], dim=1)
