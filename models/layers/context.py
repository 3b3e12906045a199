"""Blocks that gather context for semantic segmentation: receptive fields, atrous and pooled pyramids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.kernels.conv_commute import conv1x1_over_levels
from models.kernels.winograd import WideConv
from models.layer_plan import LAYERS, Plan, Row, channel_plan, single_input
from models.layers.common import Conv, PooledConv, conv_bn_silu, index_range, is_exporting, run_conv_sequence
from models.layers.csp import C3, Bottleneck
from models.layers.fusion import resize_like
from models.layers.pool import SPP


def _reduced(channels: int, reduction: int) -> int:
    if isinstance(reduction, bool) or not isinstance(reduction, int) or not 1 <= reduction <= channels:
        raise ValueError(f"{channels} input channels cannot be divided by {reduction!r}")
    return channels // reduction


def _check_dilations(dilation: Sequence[int], count: int) -> list[int]:
    whole = all(isinstance(rate, int) and not isinstance(rate, bool) and rate >= 1 for rate in dilation)
    if len(dilation) != count or not whole:
        raise ValueError(f"expected {count} dilations, whole numbers of at least 1, got {list(dilation)}")
    return list(dilation)


def _global_branch(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), PooledConv(in_channels, out_channels))


@LAYERS.register("RFB2")
class RFB2(nn.Module):
    """Receptive-field block whose dilated convolutions follow each other (after RFB-Net, arXiv 1711.07767).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        reduction: divides `in_channels` to give the channels of each branch.
        dilation: of the two dilated 3x3 convolutions.
        with_global_pool: add a branch of globally pooled features.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, reduction: int = 4, dilation: Sequence[int] = (2, 3),
        with_global_pool: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        width, (first, second) = _reduced(in_channels, reduction), _check_dilations(dilation, 2)
        self.branch0 = nn.Sequential(Conv(in_channels, width), Conv(width, width, 3))
        self.branch1 = nn.Sequential(*conv_bn_silu(width, width, dilation=first))
        self.branch2 = nn.Sequential(*conv_bn_silu(width, width, dilation=second))
        self.branch3 = nn.Sequential(Conv(in_channels, width))
        self.branch4 = _global_branch(width, width) if with_global_pool else None
        self.ConvLinear = Conv((5 if with_global_pool else 4) * width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self._fuse_branches(self.branch0(x), self.branch3(x))

    def forward_levels(self, levels: Sequence[Tensor]) -> Tensor:
        """Run on several maps with `in_channels` channels in all, resized to the size of the first and joined."""
        near: Any = self.branch0
        short: Any = self.branch3
        return self._fuse_branches(near[1](conv1x1_over_levels(near[0], levels)), conv1x1_over_levels(short[0], levels))

    def _fuse_branches(self, near: Tensor, short: Tensor) -> Tensor:
        """Compute the block's output from those of branches 0 and 3."""
        wide = run_conv_sequence(self.branch1, near)
        wider = run_conv_sequence(self.branch2, wide)
        parts = [near, wide, wider, short]
        if self.branch4 is not None:
            parts.append(resize_like(self.branch4(wider), near))
        return self.ConvLinear(torch.cat(parts, dim=1))


@LAYERS.register("RFB1")
class RFB1(nn.Module):
    """Receptive-field block of parallel branches with growing kernels and dilations (RFB-Net, arXiv 1711.07767).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        reduction: divides `in_channels` to give the channels of each branch.
        dilation: of the three dilated 3x3 convolutions.
        with_global_pool: add a branch of globally pooled features.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, reduction: int = 4, dilation: Sequence[int] = (3, 5, 7),
        with_global_pool: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        width, (first, second, third) = _reduced(in_channels, reduction), _check_dilations(dilation, 3)
        self.branch0 = nn.Sequential(Conv(in_channels, width), Conv(width, width, 3))
        self.branch1 = self._branch(in_channels, width, 3, first)
        self.branch2 = self._branch(in_channels, width, 3, second)
        self.branch3 = self._branch(in_channels, width, 5, third)
        self.branch4 = _global_branch(in_channels, width) if with_global_pool else None
        self.Fusion = Conv((5 if with_global_pool else 4) * width, out_channels)

    @staticmethod
    def _branch(in_channels: int, width: int, kernel: int, dilation: int) -> nn.Sequential:
        return nn.Sequential(
            Conv(in_channels, width), Conv(width, width, kernel), *conv_bn_silu(width, width, dilation=dilation)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        parts = [self.branch0(x), self.branch1(x), self.branch2(x), self.branch3(x)]
        if self.branch4 is not None:
            parts.append(resize_like(self.branch4(x), x))
        return self.Fusion(torch.cat(parts, dim=1))


@LAYERS.register("ASPP")
class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 and three dilated 3x3 convolutions in parallel (arXiv 1706.05587).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        dilation: of the three dilated convolutions.
        with_global_pool: add a branch of globally pooled features.
        reduction: divides `in_channels` to give the channels of each branch.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, dilation: Sequence[int] = (3, 6, 9), with_global_pool: bool = True,
        reduction: int = 4,
    ) -> None:  # fmt: skip
        super().__init__()
        width = _reduced(in_channels, reduction)
        self.branch0 = self.plain_branch(in_channels, width)
        self.branch1, self.branch2, self.branch3 = (
            self.dilated_branch(in_channels, width, rate) for rate in _check_dilations(dilation, 3)
        )
        self.branch4 = _global_branch(in_channels, width) if with_global_pool else None
        self.ConvLinear = Conv((5 if with_global_pool else 4) * width, out_channels)

    def plain_branch(self, in_channels: int, width: int) -> nn.Sequential:
        """Build the branch without dilation."""
        return nn.Sequential(Conv(in_channels, width))

    def dilated_branch(self, in_channels: int, width: int, dilation: int) -> nn.Sequential:
        """Build a branch with dilation."""
        return nn.Sequential(*conv_bn_silu(in_channels, width, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        dilated = (run_conv_sequence(branch, x) for branch in (self.branch1, self.branch2, self.branch3))
        parts = [self.branch0(x), *dilated]
        if self.branch4 is not None:
            parts.append(resize_like(self.branch4(x), x))
        return self.ConvLinear(torch.cat(parts, dim=1))


@LAYERS.register("ASPPs")
class ASPPs(ASPP):
    """`ASPP` whose branches reduce the channels by a 1x1 convolution first."""

    def plain_branch(self, in_channels: int, width: int) -> nn.Sequential:
        """Build the branch without dilation."""
        return nn.Sequential(Conv(in_channels, width), Conv(width, width, 3))

    def dilated_branch(self, in_channels: int, width: int, dilation: int) -> nn.Sequential:
        """Build a branch with dilation."""
        return nn.Sequential(Conv(in_channels, width), *conv_bn_silu(width, width, dilation=dilation))


class WideBottleneck(Bottleneck):
    """`Bottleneck` for large maps: its 3x3 convolution is a `WideConv`."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__(channels, channels, shortcut, expansion=1.0)
        self.cv2 = WideConv(channels, channels)


class WideC3(C3):
    """`C3` of `WideBottleneck` blocks; `groups` has no effect."""

    def deep_branch(self, width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        """Build the deep branch of `repeats` wide bottlenecks."""
        return nn.Sequential(*(WideBottleneck(width, shortcut) for _ in range(repeats)))


class WideC3SPP(nn.Module):
    """CSP block with spatial pyramid pooling in its deep branch, which is 1.5 times as wide as the other.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: window sizes of the pools in pixels, odd.
        expansion: channels of the shallow branch as a fraction of `in_channels`.
    """

    DEEP_RATIO = 1.5

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int] = (5, 9, 13), expansion: float = 0.5
    ) -> None:
        super().__init__()
        shallow = int(expansion * in_channels)
        deep = int(self.DEEP_RATIO * shallow)
        self.cv1, self.cv2 = (Conv(in_channels, shallow) for _ in range(2))
        self.cv3 = Conv(deep + shallow, out_channels)
        self.m = SPP(shallow, deep, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        deep, shallow = self.m(self.cv1(x)), self.cv2(x)
        return self.cv3(torch.cat((deep, shallow), dim=1))


GRID_SIZES = (1, 2, 3, 6)  # of the paper


def _pyramid_plan(row: Row) -> Plan:
    channels = single_input(row)
    sizes = row.arguments[0] if row.arguments else GRID_SIZES
    return Plan((channels, sizes), channels + len(sizes) * (channels // PyramidPooling.REDUCTION))


def pool_to_grid(x: Tensor, size: int) -> Tensor:
    """Average (B, C, H, W) over a grid of cells, to (B, C, size, size), as adaptive pooling divides them.

    Exports compute it by two products with small matrices: some formats know adaptive pooling only for equal cells.
    """
    if size == 1 or not is_exporting():
        return nn.functional.adaptive_avg_pool2d(x, size)
    down, along = (_cell_weights(x.shape[axis], size, x) for axis in (2, 3))
    return torch.matmul(torch.matmul(down, x), along.t())


def _cell_weights(length: int, size: int, like: Tensor) -> Tensor:
    """Build (size, length): row k averages pixels from floor(k * length / size) up to ceil((k+1) * length / size).

    Integer arithmetic lets a dynamic `length` become part of an exported graph.
    """
    cells = index_range(size, like, torch.int64)[:, None]
    pixels = index_range(length, like, torch.int64)[None]
    inside = (pixels * size > cells * length - size) & (pixels * size < (cells + 1) * length)
    weights = inside.to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)


@LAYERS.register("PyramidPooling")
class PyramidPooling(nn.Module):
    """Pyramid pooling: the input and its averages over coarse grids, each reduced to a quarter (arXiv 1612.01105).

    Args:
        in_channels: channels of the input, at least 4.
        kernel: cells per side of each grid.
    """

    plan = staticmethod(_pyramid_plan)
    REDUCTION = 4  # divides the channels of each grid

    def __init__(self, in_channels: int, kernel: Sequence[int] = GRID_SIZES) -> None:
        super().__init__()
        whole = all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in kernel)
        if not kernel or in_channels < self.REDUCTION or not whole:
            raise ValueError(
                f"pools at least {self.REDUCTION} channels to grids of at least 1 cell per side, "
                f"got {in_channels} and {list(kernel)}"
            )
        self.sizes = tuple(kernel)
        for number, size in enumerate(self.sizes, start=1):
            kind = PooledConv if size == 1 else Conv
            self.add_module(f"conv{number}", kind(in_channels, in_channels // self.REDUCTION))

    def levels(self, x: Tensor) -> list[Tensor]:
        """Compute the reduced grids, (B, in_channels // 4, size, size) each, of (B, in_channels, H, W)."""
        grids = [pool_to_grid(x, size) for size in self.sizes]
        return [self.get_submodule(f"conv{number}")(grid) for number, grid in enumerate(grids, start=1)]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, in_channels + sizes * (in_channels // 4), H, W)."""
        return torch.cat([x, *(resize_like(level, x, "bilinear") for level in self.levels(x))], dim=1)
