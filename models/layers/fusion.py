"""Blocks that re-weight channels by global context and fuse feature maps, for the semantic heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.kernels.winograd import WideConv
from models.layer_plan import LAYERS, Plan, Row, channel_plan, single_input
from models.layers.common import Conv, PooledConv, PooledNorm, use_cpu_kernels


def resize_like(x: Tensor, like: Tensor, mode: str = "nearest") -> Tensor:
    """Resize `x` (B, C, h, w) to the height and width of `like`; bilinear resizing aligns the corners."""
    if x.shape[2:] == like.shape[2:]:
        return x
    if x.shape[2] == 1 and x.shape[3] == 1:  # compared one by one: a tuple comparison becomes a constant in exports
        return x.expand(-1, -1, like.shape[2], like.shape[3])
    size = (like.shape[2], like.shape[3])
    if mode == "bilinear":
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return functional.interpolate(x, size=size, mode=mode)


def _check_reduction(channels: int, reduction: int) -> None:
    if not isinstance(reduction, int) or not 1 <= reduction <= channels:
        raise ValueError(f"{channels} channels cannot be divided by {reduction!r}")


def _joined_plan(row: Row) -> Plan:
    return channel_plan(Row((sum(row.channels),), row.arguments, row.repeats, row.scale_width, row.scale_depth))


@LAYERS.register("FFM")
class FFM(nn.Module):
    """Feature fusion module: a convolution over joined maps plus its channel-weighted copy (BiSeNet, arXiv 1808.00897).

    Args:
        in_channels: channels of all inputs together.
        out_channels: channels of the output.
        reduction: divides `out_channels` to give the inner channels of the channel attention.
        inputs_are_a_list: has no effect, since lists and tensors are both accepted; kept for model YAMLs.
        kernel: kernel size of the convolution.
    """

    plan = staticmethod(_joined_plan)
    takes_list = True

    def __init__(
        self, in_channels: int, out_channels: int, reduction: int = 1, inputs_are_a_list: bool = True, kernel: int = 1
    ) -> None:
        super().__init__()
        _check_reduction(out_channels, reduction)
        wide = kernel == 3
        self.convblk = WideConv(in_channels, out_channels) if wide else Conv(in_channels, out_channels, kernel)
        self.channel_attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(out_channels, out_channels // reduction, 1, bias=False),
            nn.SiLU(),
            nn.Conv2d(out_channels // reduction, out_channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, features: list[Tensor] | Tensor) -> Tensor:
        """Map one or several (B, C, H, W) of one size to (B, out_channels, H, W)."""
        joined = features if isinstance(features, Tensor) else torch.cat(features, dim=1)
        return self.reweight(self.convblk(joined))

    def channel_factors(self, x: Tensor) -> Tensor:
        """Compute one plus the channel weights, (B, out_channels, 1, 1), of the convolved map."""
        return 1 + self.channel_attention(x)

    def reweight(self, x: Tensor) -> Tensor:
        """Multiply the convolved map by its `channel_factors`; CPU inference overwrites it."""
        factors = self.channel_factors(x)
        return x.mul_(factors) if use_cpu_kernels(x) and not torch.is_grad_enabled() else x * factors

    def classify(self, x: Tensor, classifier: nn.Conv2d) -> Tensor:
        """Apply a 1x1 convolution to the re-weighted map; in inference its weights absorb the factors."""
        return classify_pixels(classifier, x, self.channel_factors(x))


def classify_pixels(classifier: nn.Conv2d, x: Tensor, factors: Tensor | None = None) -> Tensor:
    """Apply a 1x1 convolution to a map whose channels may have factors.

    CPU inference uses a matrix product, which is faster for a few output channels.

    Args:
        classifier: a 1x1 convolution from C channels to the classes.
        x: (B, C, H, W).
        factors: (B, C, 1, 1), multiplied with `x` first.

    Returns:
        Logits (B, classes, H, W).
    """
    if classifier.training or not use_cpu_kernels(x):
        return classifier(x if factors is None else x * factors)
    weights = classifier.weight[None, :, :, 0, 0]  # (1, classes, C)
    if factors is not None:
        weights = weights * factors[:, None, :, 0, 0]
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, C), no copy in channels-last memory
    logits = torch.matmul(pixels, weights.transpose(1, 2)).unflatten(1, (x.shape[2], x.shape[3]))
    return (logits if classifier.bias is None else logits + classifier.bias).permute(0, 3, 1, 2)


@LAYERS.register("ARM")
class ARM(nn.Module):
    """Attention refinement module: a 3x3 convolution times its channel weights (BiSeNet, arXiv 1808.00897)."""

    plan = staticmethod(channel_plan)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels, 3)
        self.channel_attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), PooledConv(out_channels, out_channels, activation=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        x = self.conv(x)
        return x * self.channel_attention(x)


def _attention_plan(row: Row) -> Plan:
    channels = single_input(row)
    return Plan((channels, *row.arguments), channels, copies=row.repeats)


@LAYERS.register("Attention")
class Attention(nn.Module):
    """Channel attention from globally pooled features (squeeze and excitation, arXiv 1709.01507).

    Args:
        in_channels: channels of the input and of the output.
        reduction: divides them to give the inner channels; 1 leaves the squeezing convolution out.
    """

    plan = staticmethod(_attention_plan)

    def __init__(self, in_channels: int, reduction: int = 1) -> None:
        super().__init__()
        _check_reduction(in_channels, reduction)
        squeeze = [PooledConv(in_channels, in_channels // reduction)] if reduction > 1 else []
        excite = PooledConv(in_channels // reduction, in_channels, activation=False)
        self.channel_attention = nn.Sequential(nn.AdaptiveAvgPool2d(1), *squeeze, excite, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Weight the channels of (B, in_channels, H, W)."""
        return x * self.channel_attention(x)


def _bn_silu_conv(in_channels: int, out_channels: int, kernel: int = 1) -> list[nn.Module]:
    """Build a convolution that follows its normalisation and activation."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return [PooledNorm(in_channels), nn.SiLU(), convolution]


def _dappm_plan(row: Row) -> Plan:
    if len(row.arguments) != 2:
        raise ValueError(f"expected [output channels, branch channels], got {len(row.arguments)} arguments")
    out_channels, branch_channels = (row.scale_width(argument) for argument in row.arguments)
    return Plan((single_input(row), branch_channels, out_channels), out_channels, copies=1)


@LAYERS.register("DAPPM")
class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling: averages over growing windows, refined in turn (DDRNet, arXiv 2101.06085).

    Args:
        in_channels: channels of the input.
        branch_channels: channels of each window's branch.
        out_channels: channels of the output.
    """

    plan = staticmethod(_dappm_plan)
    WINDOWS = ((5, 2, 2), (9, 4, 4), (17, 8, 8))  # size, stride and padding in pixels, as in the paper

    def __init__(self, in_channels: int, branch_channels: int, out_channels: int) -> None:
        super().__init__()
        self.scale0 = nn.Sequential(*_bn_silu_conv(in_channels, branch_channels))
        for number, window in enumerate(self.WINDOWS, start=1):
            pool = nn.AvgPool2d(*window)
            self.add_module(f"scale{number}", nn.Sequential(pool, *_bn_silu_conv(in_channels, branch_channels)))
        self.scale4 = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_bn_silu_conv(in_channels, branch_channels))
        for number in range(1, 5):
            self.add_module(f"process{number}", nn.Sequential(*_bn_silu_conv(branch_channels, branch_channels, 3)))
        self.compression = nn.Sequential(*_bn_silu_conv(5 * branch_channels, out_channels))
        self.shortcut = nn.Sequential(*_bn_silu_conv(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        parts = [self.scale0(x)]
        for number in range(1, 5):
            level = self.get_submodule(f"scale{number}")(x)
            parts.append(self.get_submodule(f"process{number}")(resize_like(level, x, "bilinear") + parts[-1]))
        return self.compression(torch.cat(parts, dim=1)) + self.shortcut(x)
