"""Spatial pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layer_plan import LAYERS, channel_plan
from models.layers.common import Conv, on_cpu
from models.layers.csp import C3


@LAYERS.register("SPP")
class SPP(nn.Module):
    """Max-pools of several sizes side by side (arXiv 1406.4729)."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, 1)
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % 2 == 0 for size in k):
            raise ValueError(f"pools over windows of odd sizes, not {list(k)}")
        self.sizes = tuple(k)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *pooled(x, self.sizes)], dim=1))


def pooled(x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Return max-pools of `x` (B, c, H, W) with stride 1 in several odd window sizes, each (B, c, H, W).

    A window is pooled from the next smaller one's maxima, which gives the same with less work: 9 is 5 after 5.
    """
    found: dict[int, Tensor] = {1: x}
    for size in sorted(set(sizes)):
        below = max(found)
        if size > below:
            found[size] = _largest(found[below], size - below + 1)
    return [found[size] for size in sizes]


def _largest(x: Tensor, size: int) -> Tensor:
    """Return the max-pool of `x` with stride 1; in inference on CPUs first down, then across, which is less work."""
    if torch.is_grad_enabled() or not on_cpu(x):
        return functional.max_pool2d(x, size, 1, size // 2)
    down = functional.max_pool2d(x, (size, 1), 1, (size // 2, 0))
    return functional.max_pool2d(down, (1, size), 1, (0, size // 2))


@LAYERS.register("SPPF")
class SPPF(nn.Module):
    """One small max-pool three times in a row: what SPP computes for 5, 9, 13, with less work."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * 4, c2, 1, 1)
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        x = self.cv1(x)
        once = self.m(x)
        twice = self.m(once)
        return self.cv2(torch.cat((x, once, twice, self.m(twice)), dim=1))


@LAYERS.register("C3SPP")
class C3SPP(C3):
    """C3 with spatial pyramid pooling inside; a row of it is repeated as a Sequential."""

    plan = staticmethod(channel_plan)

    def __init__(
        self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13), n: int = 1, shortcut: bool = True, g: int = 1,
        e: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(c1, c2, n, shortcut, g, e)
        self.m = SPP(int(c2 * e), int(c2 * e), k)
