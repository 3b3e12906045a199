"""Mixed depth-wise convolutions: several kernel sizes side by side (MixConv, arXiv 1907.09595)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layer_plan import LAYERS, channel_plan
from models.layers.common import apply_activation, same_padding

_BELOW_LAST = 1e-6  # keeps the index of the last channel below the number of kernels


def split_channels(total: int, kernels: Sequence[int], equal: bool) -> list[int]:
    """Split output channels over kernel sizes.

    Args:
        total: number of output channels.
        kernels: kernel sizes.
        equal: give each size about as many channels; otherwise about as many weights.

    Returns:
        The number of channels of each kernel size.
    """
    groups = len(kernels)
    if equal:
        last = max(total - 1, 1)
        owner = [math.floor(index * (groups - _BELOW_LAST) / last) for index in range(total)]
        return [owner.count(group) for group in range(groups)]
    inverse_areas = [1 / kernel**2 for kernel in kernels]
    return [round(total * inverse_area / sum(inverse_areas)) for inverse_area in inverse_areas]


@LAYERS.register("MixConv2d")
class MixConv2d(nn.Module):
    """Parallel convolutions of several kernel sizes, concatenated, normalised and activated.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: kernel sizes; each convolution has as many groups as its channels allow.
        stride: stride of every convolution.
        equal_channels: as `equal` of `split_channels`.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Sequence[int] = (1, 3), stride: int = 1,
        equal_channels: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        widths = split_channels(out_channels, kernel, equal_channels)
        if min(widths) < 1:
            raise ValueError(f"{out_channels} output channels cannot be split over kernels {list(kernel)}")
        self.m = nn.ModuleList(
            nn.Conv2d(
                in_channels, width, size, stride, same_padding(size), groups=math.gcd(in_channels, width), bias=False
            )
            for size, width in zip(kernel, widths, strict=True)
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act: nn.Module = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        parts = [convolution(x) for convolution in self.m]
        return apply_activation(self.act, self.bn(torch.cat(parts, dim=1)))
