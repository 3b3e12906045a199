"""Layers that move pixels between space and channels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from models.layer_plan import LAYERS, Plan, Row, channel_plan, single_input
from models.layers.common import Conv, Size


def _split_cells(x: Tensor, size: int) -> Tensor:
    """View (B, C, H, W) as square cells of pixels, (B, C, H / size, size, W / size, size)."""
    return x.unflatten(3, (-1, size)).unflatten(2, (-1, size))


@LAYERS.register("Focus")
class Focus(nn.Module):
    """Space to depth by 2, then a convolution: the stem of the first YOLOv5 networks.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the output.
        kernel: kernel size of the convolution, at half of the image's size.
        stride: stride of the convolution.
        padding: as in `Conv`.
        groups: groups of the convolution.
        activation: as in `Conv`.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Size = 1, stride: Size = 1, padding: Size | None = None,
        groups: int = 1, activation: Any = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = Conv(4 * in_channels, out_channels, kernel, stride, padding, groups, activation=activation)

    @staticmethod
    def blocks(x: Tensor) -> Tensor:
        """Rearrange (B, C, H, W) to (B, 4C, H / 2, W / 2).

        Each 2x2 cell contributes four blocks of C channels in the order top left, bottom left, top right, bottom right.
        The memory layout, contiguous or channels-last, stays.
        """
        layout = torch.contiguous_format
        if x.is_contiguous(memory_format=torch.channels_last):
            layout = torch.channels_last
        cells = _split_cells(x, 2).movedim((5, 3), (1, 2))  # (B, column, row, C, H / 2, W / 2)
        return cells.flatten(1, 3).contiguous(memory_format=layout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H / 2, W / 2) at stride 1; H and W must be even."""
        return self.conv(self.blocks(x))

    @torch.no_grad()
    def as_convolution(self) -> Conv:
        """Build one equivalent `Conv` over the image, with twice the kernel size and stride and no slicing.

        Raises:
            ValueError: The convolution has groups, which span the four blocks.
        """
        inner = self.conv.conv
        if inner.groups != 1 or isinstance(inner.padding, str):
            raise ValueError("a Focus layer with groups has no equivalent convolution")
        out_channels, channels, (height, width) = inner.out_channels, inner.in_channels // 4, inner.kernel_size
        even = inner.weight.view(out_channels, 2, 2, channels, height, width)  # column and row offsets, outermost first
        weight = even.permute(0, 3, 4, 2, 5, 1).reshape(out_channels, channels, 2 * height, 2 * width)
        block = copy.copy(self.conv)
        block._modules = dict(self.conv._modules)
        block.conv = nn.utils.skip_init(
            nn.Conv2d, channels, out_channels, (2 * height, 2 * width),
            [2 * step for step in inner.stride], [2 * side for side in inner.padding],
            bias=inner.bias is not None, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        block.conv.weight.copy_(weight)
        if inner.bias is not None and block.conv.bias is not None:
            block.conv.bias.copy_(inner.bias)
        return block


def _gain(row: Row) -> int:
    gain = row.arguments[0] if row.arguments else 2
    if isinstance(gain, bool) or not isinstance(gain, int) or gain < 1:
        raise ValueError(f"the argument must be a whole factor, got {gain!r}")
    return gain


def _contract_plan(row: Row) -> Plan:
    return Plan((_gain(row),), single_input(row) * _gain(row) ** 2)


def _expand_plan(row: Row) -> Plan:
    return Plan((_gain(row),), single_input(row) // _gain(row) ** 2)


@LAYERS.register("Contract")
class Contract(nn.Module):
    """Space to depth: each cell of gain x gain pixels becomes channels, cell position first."""

    plan = staticmethod(_contract_plan)

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C * gain^2, H / gain, W / gain)."""
        return _split_cells(x, self.gain).movedim((3, 5), (1, 2)).flatten(1, 3)


@LAYERS.register("Expand")
class Expand(nn.Module):
    """Depth to space, the inverse of `Contract`."""

    plan = staticmethod(_expand_plan)

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C / gain^2, H * gain, W * gain)."""
        cells = x.unflatten(1, (self.gain, self.gain, -1)).movedim((1, 2), (3, 5))
        return cells.flatten(4).flatten(2, 3)
