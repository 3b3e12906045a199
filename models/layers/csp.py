"""Bottlenecks and the cross-stage-partial family (CSPNet, arXiv 1911.11929)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layer_plan import LAYERS, channel_plan, repeat_plan
from models.layers.common import Conv


@LAYERS.register("Bottleneck")
class Bottleneck(nn.Module):
    """1x1 then 3x3 convolution; the input is added where `shortcut` is set and the channels agree."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, c2, 3, 1, g=g)
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@LAYERS.register("CrossConv")
class CrossConv(nn.Module):
    """A (1, k) and a (k, 1) convolution in a row."""

    plan = staticmethod(channel_plan)

    def __init__(
        self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, e: float = 1.0, shortcut: bool = False
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, (1, k), (1, s))
        self.cv2 = Conv(hidden, c2, (k, 1), (s, 1), g=g)
        self.add = bool(shortcut) and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H/s, W/s)."""
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


@LAYERS.register("BottleneckCSP")
class BottleneckCSP(nn.Module):
    """Two branches, one through `n` bottlenecks, joined and normalised before the last convolution."""

    plan = staticmethod(repeat_plan)

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = nn.Conv2d(c1, hidden, 1, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1, 1)
        self.bn = nn.BatchNorm2d(2 * hidden)
        self.act: nn.Module = nn.SiLU()
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        deep, short = self.cv3(self.m(self.cv1(x))), self.cv2(x)
        return self.cv4(self.act(self.bn(torch.cat((deep, short), dim=1))))


@LAYERS.register("C3")
class C3(nn.Module):
    """Two 1x1 branches, one through an inner block (`n` bottlenecks), joined by a third 1x1 convolution."""

    plan = staticmethod(repeat_plan)

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1, 1)
        self.m: nn.Module = self.inner(hidden, n, bool(shortcut), g)

    def inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Return the block of the deep branch; other members of the family replace it."""
        return nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), dim=1))


@LAYERS.register("C3x")
class C3x(C3):
    """C3 with cross convolutions inside."""

    def inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Return `n` cross convolutions."""
        blocks: list[Any] = [CrossConv(hidden, hidden, 3, 1, g, 1.0, shortcut) for _ in range(n)]
        return nn.Sequential(*blocks)
