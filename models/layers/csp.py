"""Bottlenecks and cross-stage partial (CSP) blocks (CSPNet, arXiv 1911.11929)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layer_plan import LAYERS, channel_plan, repeat_plan
from models.layers.common import Conv, apply_activation


@LAYERS.register("Bottleneck")
class Bottleneck(nn.Module):
    """Residual bottleneck: a 1x1 convolution that changes the width, then a 3x3 convolution (arXiv 1512.03385).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        shortcut: add the input to the output if both have the same number of channels.
        groups: groups of the 3x3 convolution.
        expansion: inner channels as a fraction of `out_channels`.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, shortcut: bool = True, groups: int = 1, expansion: float = 0.5
    ) -> None:
        super().__init__()
        inner = int(expansion * out_channels)
        self.cv1 = Conv(in_channels, inner)
        self.cv2 = Conv(inner, out_channels, 3, groups=groups)
        self.add = bool(shortcut) and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        y = self.cv2(self.cv1(x))
        return y + x if self.add else y


@LAYERS.register("CrossConv")
class CrossConv(nn.Module):
    """A k x k convolution factorised into a (1, k) and a (k, 1) convolution (after Inception-v3, arXiv 1512.00567).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: length k of both kernels.
        stride: stride in both directions.
        groups: groups of the second convolution.
        expansion: inner channels as a fraction of `out_channels`.
        shortcut: add the input to the output if both have the same number of channels.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1,
        expansion: float = 1.0, shortcut: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = int(expansion * out_channels)
        self.cv1 = Conv(in_channels, inner, kernel=(1, kernel), stride=(1, stride))
        self.cv2 = Conv(inner, out_channels, kernel=(kernel, 1), stride=(stride, 1), groups=groups)
        self.add = bool(shortcut) and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        y = self.cv2(self.cv1(x))
        return y + x if self.add else y


@LAYERS.register("C3")
class C3(nn.Module):
    """CSP block of three 1x1 convolutions: two parallel branches, of which one is deep, and their fusion.

    Subclasses replace the deep branch.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        repeats: number of bottlenecks in the deep branch.
        shortcut: whether the bottlenecks are residual.
        groups: groups of their 3x3 convolutions.
        expansion: channels of each branch as a fraction of `out_channels`.
    """

    plan = staticmethod(repeat_plan)

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int = 1, shortcut: bool = True, groups: int = 1,
        expansion: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        width = int(expansion * out_channels)
        self.cv1, self.cv2 = (Conv(in_channels, width) for _ in range(2))
        self.cv3 = Conv(2 * width, out_channels)
        self.m = self.deep_branch(width, repeats, shortcut, groups)

    def deep_branch(self, width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        """Build the layers between `cv1` and `cv3`; they keep the number of channels, `width`."""
        blocks = (Bottleneck(width, width, shortcut, groups, expansion=1.0) for _ in range(repeats))
        return nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        deep, shallow = self.m(self.cv1(x)), self.cv2(x)
        return self.cv3(torch.cat((deep, shallow), dim=1))


@LAYERS.register("C3x")
class C3x(C3):
    """`C3` with factorised convolutions (`CrossConv`) in its deep branch."""

    def deep_branch(self, width: int, repeats: int, shortcut: bool, groups: int) -> nn.Module:
        """Build the deep branch of `repeats` 3x3 `CrossConv` blocks."""
        blocks = (CrossConv(width, width, groups=groups, shortcut=shortcut) for _ in range(repeats))
        return nn.Sequential(*blocks)


@LAYERS.register("BottleneckCSP")
class BottleneckCSP(nn.Module):
    """CSP block whose joined branches share one normalisation and activation; arguments as those of `C3`."""

    plan = staticmethod(repeat_plan)

    def __init__(
        self, in_channels: int, out_channels: int, repeats: int = 1, shortcut: bool = True, groups: int = 1,
        expansion: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        width = int(expansion * out_channels)
        self.cv1 = Conv(in_channels, width)
        self.cv2, self.cv3 = (nn.Conv2d(channels, width, 1, bias=False) for channels in (in_channels, width))
        self.cv4 = Conv(2 * width, out_channels)
        self.bn = nn.BatchNorm2d(2 * width)
        self.act: nn.Module = nn.SiLU()
        blocks = (Bottleneck(width, width, shortcut, groups, expansion=1.0) for _ in range(repeats))
        self.m = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        deep, shallow = self.cv3(self.m(self.cv1(x))), self.cv2(x)
        joined = self.bn(torch.cat((deep, shallow), dim=1))
        return self.cv4(apply_activation(self.act, joined))
