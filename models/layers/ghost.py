"""Ghost convolutions: half of the maps are cheap copies of the other half (arXiv 1911.11907)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.layer_plan import LAYERS, channel_plan
from models.layers.common import Conv, DWConv
from models.layers.csp import C3


@LAYERS.register("GhostConv")
class GhostConv(nn.Module):
    """A convolution for half of the output, a depth-wise 5x5 one on it for the other half."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: Any = True) -> None:
        super().__init__()
        hidden = c2 // 2
        self.cv1 = Conv(c1, hidden, k, s, g=g, act=act)
        self.cv2 = Conv(hidden, hidden, 5, 1, g=hidden, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H/s, W/s)."""
        y = self.cv1(x)
        return torch.cat((y, self.cv2(y)), dim=1)


@LAYERS.register("GhostBottleneck")
class GhostBottleneck(nn.Module):
    """Two ghost convolutions around a depth-wise one where the size is halved, with a shortcut."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        hidden = c2 // 2
        halves = s == 2
        self.conv = nn.Sequential(
            GhostConv(c1, hidden, 1, 1),
            DWConv(hidden, hidden, k, s, act=False) if halves else nn.Identity(),
            GhostConv(hidden, c2, 1, 1, act=False),
        )
        shortcut = (DWConv(c1, c1, k, s, act=False), Conv(c1, c2, 1, 1, act=False))
        self.shortcut = nn.Sequential(*shortcut) if halves else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H/s, W/s)."""
        return self.conv(x) + self.shortcut(x)


@LAYERS.register("C3Ghost")
class C3Ghost(C3):
    """C3 with ghost bottlenecks inside."""

    def inner(self, hidden: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """Return `n` ghost bottlenecks."""
        return nn.Sequential(*(GhostBottleneck(hidden, hidden) for _ in range(n)))
