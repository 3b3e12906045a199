"""Ghost convolutions: half of the channels come from cheap depth-wise convolutions (GhostNet, arXiv 1911.11907)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layer_plan import LAYERS, channel_plan
from models.layers.common import Conv, DWConv
from models.layers.csp import C3

CHEAP_KERNEL = 5  # of the depth-wise convolution


@LAYERS.register("GhostConv")
class GhostConv(nn.Module):
    """A convolution to half of the output channels, and a depth-wise 5x5 convolution of those for the other half.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, an even number.
        kernel: kernel size of the first convolution.
        stride: stride of the first convolution.
        groups: groups of the first convolution.
        activation: as in `Conv`, of both convolutions.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1,
        activation: Any = True,
    ) -> None:  # fmt: skip
        super().__init__()
        half = out_channels // 2
        self.cv1 = Conv(in_channels, half, kernel, stride, groups=groups, activation=activation)
        self.cv2 = DWConv(half, half, CHEAP_KERNEL, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        primary = self.cv1(x)
        return torch.cat((primary, self.cv2(primary)), dim=1)


@LAYERS.register("GhostBottleneck")
class GhostBottleneck(nn.Module):
    """Residual block of two ghost convolutions, with a depth-wise convolution between them at stride 2.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output; the same as `in_channels` at stride 1.
        kernel: kernel size of the depth-wise convolutions at stride 2.
        stride: 1 keeps the size, 2 halves it.
    """

    plan = staticmethod(channel_plan)

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        inner, halves = out_channels // 2, stride == 2
        self.conv = nn.Sequential(
            GhostConv(in_channels, inner),
            DWConv(inner, inner, kernel, stride, activation=False) if halves else nn.Identity(),
            GhostConv(inner, out_channels, activation=False),
        )
        downsample = nn.Sequential(
            DWConv(in_channels, in_channels, kernel, stride, activation=False),
            Conv(in_channels, out_channels, activation=False),
        )
        # initialised even where unused: a seed gives the same weights to the layers after this one
        self.shortcut = downsample if halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        return self.shortcut(x) + self.conv(x)


@LAYERS.register("C3Ghost")
class C3Ghost(C3):
    """`C3` with ghost bottlenecks in its deep branch; they are always residual and take no groups."""

    def deep_branch(self, width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        """Build the deep branch of `repeats` ghost bottlenecks."""
        return nn.Sequential(*(GhostBottleneck(width, width) for _ in range(repeats)))
