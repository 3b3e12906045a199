"""Spatial pyramid pooling (arXiv 1406.4729)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layer_plan import LAYERS, channel_plan
from models.layers.common import Conv, use_cpu_kernels
from models.layers.csp import C3


def max_pools(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Max-pool a map with stride 1 and several odd window sizes.

    Each window is pooled from the maxima of the next smaller one, which gives the same values for less work: a window
    of 9 equals a window of 5 over windows of 5.

    Args:
        x: (B, C, H, W).
        sizes: window sizes in pixels, odd, in any order.

    Returns:
        One (B, C, H, W) map per size.
    """
    pooled: dict[int, Tensor] = {1: x}
    for size in sorted(set(sizes)):
        below = max(pooled)
        if size > below:
            pooled[size] = _max_pool(pooled[below], size - below + 1)
    return [pooled[size] for size in sizes]


def _max_pool(x: Tensor, size: int) -> Tensor:
    """Max-pool with stride 1; CPU inference pools columns and rows separately, 2k comparisons in place of k * k."""
    if torch.is_grad_enabled() or not use_cpu_kernels(x):
        return functional.max_pool2d(x, size, 1, size // 2)
    columns = functional.max_pool2d(x, (size, 1), 1, (size // 2, 0))
    return functional.max_pool2d(columns, (1, size), 1, (0, size // 2))


@LAYERS.register("SPP")
class SPP(nn.Module):
    """Max-pools of several window sizes side by side, between two 1x1 convolutions.

    Args:
        in_channels: channels of the input; the pools work on half of them.
        out_channels: channels of the output.
        kernel: window sizes in pixels, odd.
    """

    plan = staticmethod(channel_plan)

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        self.sizes = tuple(kernel)
        if any(not isinstance(size, int) or size < 1 or size % 2 == 0 for size in self.sizes):
            raise ValueError(f"pools need odd window sizes, got {list(kernel)}")
        half = in_channels // 2
        self.cv1 = Conv(in_channels, half)
        self.cv2 = Conv(half * (1 + len(self.sizes)), out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        narrow = self.cv1(x)
        return self.cv2(torch.cat((narrow, *max_pools(narrow, self.sizes)), dim=1))


@LAYERS.register("SPPF")
class SPPF(nn.Module):
    """Spatial pyramid pooling by one small max-pool applied three times: size 5 gives what SPP computes for 5, 9, 13.

    Args:
        in_channels: channels of the input; the pools work on half of them.
        out_channels: channels of the output.
        kernel: window size in pixels, odd.
    """

    plan = staticmethod(channel_plan)
    NUM_POOLS = 3

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 5) -> None:
        super().__init__()
        half = in_channels // 2
        self.cv1 = Conv(in_channels, half)
        self.cv2 = Conv(half * (1 + self.NUM_POOLS), out_channels)
        self.m = nn.MaxPool2d(kernel, stride=1, padding=kernel // 2)
        self.size = kernel

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        levels = [self.cv1(x)]
        for _ in range(self.NUM_POOLS):
            levels.append(_max_pool(levels[-1], self.size))
        return self.cv2(torch.cat(levels, dim=1))


@LAYERS.register("C3SPP")
class C3SPP(C3):
    """`C3` with spatial pyramid pooling in its deep branch.

    A row's repeats give that many blocks in sequence. `repeats`, `shortcut` and `groups` have no effect; they hold the
    places that `expansion` has in the rows of the other C3 blocks.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int] = (5, 9, 13), repeats: int = 1,
        shortcut: bool = True, groups: int = 1, expansion: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, repeats, shortcut, groups, expansion)
        width = self.cv1.conv.out_channels
        self.m = SPP(width, width, kernel)
