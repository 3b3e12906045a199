"""Layers that move pixels between space and channels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from models.layer_plan import LAYERS, Plan, Row, channel_plan, single_input
from models.layers.common import Conv


@LAYERS.register("Focus")
class Focus(nn.Module):
    """Every second pixel into channels of its own, then a convolution over the four blocks."""

    plan = staticmethod(channel_plan)

    def __init__(
        self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1, act: Any = True
    ) -> None:
        super().__init__()
        self.conv = Conv(c1 * 4, c2, k, s, p, g, act=act)

    @staticmethod
    def blocks(x: Tensor) -> Tensor:
        """Take (B, c, H, W), return (B, 4c, H/2, W/2): even/even, odd/even, even/odd, odd/odd (row/column)."""
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return torch.cat(parts, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H/2s, W/2s)."""
        return self.conv(self.blocks(x))

    @torch.no_grad()
    def as_convolution(self) -> Conv:
        """Return one block that computes the same from the image itself: twice the kernel and stride, no slices.

        Of every two by two weights one block of input channels has each; with more than one group: ValueError.
        """
        inner = self.conv.conv
        assert isinstance(inner, nn.Conv2d)
        if inner.groups != 1 or isinstance(inner.padding, str):
            raise ValueError("groups reach across the four blocks")
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
        raise ValueError(f"the argument is a whole factor, not {gain!r}")
    return gain


def _contract_plan(row: Row) -> Plan:
    return Plan((_gain(row),), single_input(row) * _gain(row) ** 2)


def _expand_plan(row: Row) -> Plan:
    return Plan((_gain(row),), single_input(row) // _gain(row) ** 2)


@LAYERS.register("Contract")
class Contract(nn.Module):
    """Space to channels: (B, c, H, W) to (B, c*gain^2, H/gain, W/gain)."""

    plan = staticmethod(_contract_plan)

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Blocks of channels belong to one offset each, row offsets outermost."""
        b, c, h, w = x.shape
        g = self.gain
        split = x.reshape(b, c, h // g, g, w // g, g).permute(0, 3, 5, 1, 2, 4)
        return split.reshape(b, c * g * g, h // g, w // g)


@LAYERS.register("Expand")
class Expand(nn.Module):
    """Channels to space: (B, c, H, W) to (B, c/gain^2, H*gain, W*gain)."""

    plan = staticmethod(_expand_plan)

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """Undo `Contract`."""
        b, c, h, w = x.shape
        g = self.gain
        split = x.reshape(b, g, g, c // g**2, h, w).permute(0, 3, 4, 1, 5, 2)
        return split.reshape(b, c // g**2, h * g, w * g)
