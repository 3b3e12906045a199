"""Convolutions of several kernel sizes side by side (MixConv, arXiv 1907.09595)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layer_plan import LAYERS, channel_plan


def split_channels(total: int, kernels: Sequence[int], equal: bool) -> list[int]:
    """Return how many of `total` output channels each kernel size gets.

    `equal`: as evenly as possible; else so that all sizes hold about the same number of weights.
    """
    groups = len(kernels)
    if equal:
        last = max(total - 1, 1)
        owner = [math.floor(index * (groups - 1e-6) / last) for index in range(total)]
        return [owner.count(group) for group in range(groups)]
    shares = [1 / kernel**2 for kernel in kernels]
    return [round(total * share / sum(shares)) for share in shares]


@LAYERS.register("MixConv2d")
class MixConv2d(nn.Module):
    """Parallel convolutions without bias, joined, normalised, activated."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (1, 3), s: int = 1, equal_ch: bool = True) -> None:
        super().__init__()
        widths = split_channels(c2, k, equal_ch)
        if min(widths) < 1 or sum(widths) != c2:
            raise ValueError(f"{c2} channels cannot be shared by kernels {list(k)}")
        self.m = nn.ModuleList(
            nn.Conv2d(c1, width, kernel, s, kernel // 2, groups=math.gcd(c1, width), bias=False)
            for width, kernel in zip(widths, k, strict=True)
        )
        self.bn = nn.BatchNorm2d(c2)
        self.act: nn.Module = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H/s, W/s)."""
        return self.act(self.bn(torch.cat([convolution(x) for convolution in self.m], dim=1)))
