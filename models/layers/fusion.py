"""Blocks that weigh channels by the whole image and join maps for per-pixel classes (behaviour.md 12.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.kernels.winograd import WideConv
from models.layer_plan import LAYERS, Plan, Row, channel_plan, single_input
from models.layers.common import Conv, PooledConv, PooledNorm, on_cpu


def broadcast(x: Tensor, like: Tensor, mode: str = "nearest") -> Tensor:
    """Return `x` at the height and width of `like`; bilinear resizing joins corners to corners."""
    if x.shape[2:] == like.shape[2:]:
        return x
    if x.shape[2] == 1 and x.shape[3] == 1:  # not one with the other: an exported graph would keep the answer
        return x.expand(-1, -1, like.shape[2], like.shape[3])
    size = (like.shape[2], like.shape[3])
    if mode == "bilinear":
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return functional.interpolate(x, size=size, mode=mode)


def _joined_plan(row: Row) -> Plan:
    return channel_plan(Row((sum(row.channels),), row.arguments, row.repeats, row.scale_width, row.scale_depth))


@LAYERS.register("FFM")
class FFM(nn.Module):
    """Join maps by a convolution, then add each channel weighed by the whole image (BiSeNet, arXiv 1808.00897)."""

    plan = staticmethod(_joined_plan)
    takes_list = True

    def __init__(self, c1: int, c2: int, reduction: int = 1, is_cat: bool = True, k: int = 1) -> None:
        super().__init__()
        if not isinstance(reduction, int) or not 1 <= reduction <= c2:
            raise ValueError(f"{c2} channels cannot be divided by {reduction!r}")
        self.is_cat = is_cat
        self.convblk = WideConv(c1, c2) if k == 3 else Conv(c1, c2, k)
        self.channel_attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(c2, c2 // reduction, 1, bias=False),
            nn.SiLU(),
            nn.Conv2d(c2 // reduction, c2, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, features: list[Tensor] | Tensor) -> Tensor:
        """Take maps of one size with c1 channels in all, return (B, c2, H, W)."""
        joined = features if isinstance(features, Tensor) else torch.cat(features, dim=1)
        return self.weighed(self.convblk(joined))

    def factors(self, x: Tensor) -> Tensor:
        """Take (B, c2, H, W), return one plus its channel weights, (B, c2, 1, 1)."""
        return 1 + self.channel_attention(x)

    def weighed(self, x: Tensor) -> Tensor:
        """Take (B, c2, H, W), return it times its `factors`; without gradients it is overwritten."""
        factors = self.factors(x)
        return x.mul_(factors) if on_cpu(x) and not torch.is_grad_enabled() else x * factors

    def classified(self, x: Tensor, classify: nn.Conv2d) -> Tensor:
        """Return what a 1x1 convolution makes of the `weighed` map; outside training its weights take the factors."""
        return classified(classify, x, self.factors(x))


def classified(classify: nn.Conv2d, x: Tensor, factors: Tensor | None = None) -> Tensor:
    """Return what a 1x1 convolution to a few classes makes of (B, c, H, W) times `factors` (B, c, 1, 1), if any.

    Outside training on CPUs as a product, which for so few channels is faster.
    """
    if classify.training or not on_cpu(x):
        return classify(x if factors is None else x * factors)
    weights = classify.weight[None, :, :, 0, 0]  # (1, C, c)
    if factors is not None:
        weights = weights * factors[:, None, :, 0, 0]
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, c), no copy in channels-last memory
    logits = torch.matmul(pixels, weights.transpose(1, 2)).unflatten(1, (x.shape[2], x.shape[3]))
    return (logits if classify.bias is None else logits + classify.bias).permute(0, 3, 1, 2)


@LAYERS.register("ARM")
class ARM(nn.Module):
    """A 3x3 convolution whose channels are weighed by the whole image (BiSeNet, arXiv 1808.00897)."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = Conv(c1, c2, 3)
        self.channel_attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), PooledConv(c2, c2, act=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        x = self.conv(x)
        return x * self.channel_attention(x)


def _attention_plan(row: Row) -> Plan:
    channels = single_input(row)
    return Plan((channels, *row.arguments), channels, copies=row.repeats)


@LAYERS.register("Attention")
class Attention(nn.Module):
    """Weigh channels by the whole image (squeeze and excitation, arXiv 1709.01507)."""

    plan = staticmethod(_attention_plan)

    def __init__(self, c1: int, reduction: int = 1) -> None:
        super().__init__()
        if not isinstance(reduction, int) or not 1 <= reduction <= c1:
            raise ValueError(f"{c1} channels cannot be divided by {reduction!r}")
        squeeze = [PooledConv(c1, c1 // reduction)] if reduction > 1 else []
        self.channel_attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *squeeze, PooledConv(c1 // reduction, c1, act=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (B, c1, H, W)."""
        return x * self.channel_attention(x)


def _before(c1: int, c2: int, k: int = 1) -> list[nn.Module]:
    """Return normalisation and activation before a convolution."""
    return [PooledNorm(c1), nn.SiLU(), nn.Conv2d(c1, c2, k, padding=k // 2, bias=False)]


def _dappm_plan(row: Row) -> Plan:
    if len(row.arguments) != 2:
        raise ValueError(f"takes [output channels, branch channels]; {len(row.arguments)} arguments are there")
    out_channels, branch = (row.scale_width(argument) for argument in row.arguments)
    return Plan((single_input(row), branch, out_channels), out_channels, copies=1)


@LAYERS.register("DAPPM")
class DAPPM(nn.Module):
    """Means over growing windows, refined from small to large (DDRNet, arXiv 2101.06085)."""

    plan = staticmethod(_dappm_plan)
    WINDOWS = ((5, 2, 2), (9, 4, 4), (17, 8, 8))  # size, stride, border

    def __init__(self, c1: int, branch: int, c2: int) -> None:
        super().__init__()
        self.scale0 = nn.Sequential(*_before(c1, branch))
        for number, window in enumerate(self.WINDOWS, start=1):
            self.add_module(f"scale{number}", nn.Sequential(nn.AvgPool2d(*window), *_before(c1, branch)))
        self.scale4 = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_before(c1, branch))
        for number in range(1, 5):
            self.add_module(f"process{number}", nn.Sequential(*_before(branch, branch, 3)))
        self.compression = nn.Sequential(*_before(5 * branch, c2))
        self.shortcut = nn.Sequential(*_before(c1, c2))

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H, W)."""
        parts = [self.scale0(x)]
        for number in range(1, 5):
            level = self.get_submodule(f"scale{number}")(x)
            parts.append(self.get_submodule(f"process{number}")(broadcast(level, x, "bilinear") + parts[-1]))
        return self.compression(torch.cat(parts, dim=1)) + self.shortcut(x)
