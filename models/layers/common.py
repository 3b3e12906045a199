"""Convolution blocks, and the plain torch layers that model YAMLs name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layer_plan import LAYERS, Plan, Row, channel_plan, same_plan, single_input

Kernel = int | tuple[int, ...] | list[int]


def same_padding(kernel: Kernel, dilation: int = 1) -> Any:
    """Return the padding that keeps the size at stride 1: half the effective kernel, per dimension."""
    if isinstance(kernel, int):
        return (dilation * (kernel - 1) + 1) // 2
    return tuple((dilation * (k - 1) + 1) // 2 for k in kernel)


def _pair(kernel: Kernel) -> Any:
    return kernel if isinstance(kernel, int) else tuple(kernel)


@LAYERS.register("Conv")
class Conv(nn.Module):
    """Convolution without bias, batch normalisation, activation (SiLU unless the model YAML says otherwise).

    `act`: True for the default activation, a module for that one, anything else for none.
    """

    plan = staticmethod(channel_plan)

    def __init__(
        self, c1: int, c2: int, k: Kernel = 1, s: Kernel = 1, p: Kernel | None = None, g: int = 1, d: int = 1,
        act: Any = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(d, bool):  # up to YOLOv5 v6.2 this place was the activation's
            d, act = 1, d
        padding = same_padding(k, d) if p is None else _pair(p)
        self.conv = nn.Conv2d(c1, c2, _pair(k), _pair(s), padding, groups=g, dilation=d, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c2)
        self.has_default_activation = act is True
        self.act: nn.Module = nn.SiLU() if act is True else act if isinstance(act, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Take (B, c1, H, W), return (B, c2, H/s, W/s)."""
        return self.finish(self.conv(x))

    @property
    def is_folded(self) -> bool:
        """Tell whether nothing but SiLU follows the convolution."""
        return type(self.bn) is nn.Identity and type(self.act) is nn.SiLU

    def finish(self, x: Tensor) -> Tensor:
        """Return what becomes of the convolution's output (B, c2, H, W); it may be overwritten."""
        return activated(self.act, self.bn(x))


def on_cpu(x: Tensor) -> bool:
    """Tell whether detours that save work pay: on GPUs the plain way is one fast kernel; exports keep it, too."""
    return x.device.type == "cpu" and not being_exported()


def being_exported() -> bool:
    """Tell whether the network is being recorded: traced, exported or compiled."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def activated(act: nn.Module, x: Tensor) -> Tensor:
    """Return the activation of a tensor nobody else needs.

    In inference on CPUs SiLU takes its place: memory for large maps costs more than the computation. In training that
    would be slower, since autograd would keep a copy.
    """
    if type(act) is nn.SiLU and on_cpu(x) and not torch.is_grad_enabled():
        return functional.silu(x, inplace=True)
    return act(x)


def sparingly(branch: nn.Sequential, x: Tensor) -> Tensor:
    """Return what a Sequential that begins with a convolution makes of `x`; its activations are `activated`."""
    for layer in branch:
        x = activated(layer, x)
    return x


def set_activation(module: nn.Module, factory: Callable[[int], nn.Module]) -> None:
    """Replace the default activation of every `Conv` inside `module`; `factory` gets the block's channels."""
    for block in module.modules():
        if isinstance(block, Conv) and block.has_default_activation:
            block.act = factory(block.conv.out_channels)


@LAYERS.register("DWConv")
class DWConv(Conv):
    """`Conv` in as many groups as both channel counts allow."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, d: int = 1, act: Any = True) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


class PooledNorm(nn.BatchNorm2d):
    """Batch normalisation of global means. A batch of one image has one value per channel: it uses what is known."""

    def forward(self, x: Tensor) -> Tensor:
        """Take and return (B, c, H, W)."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class PooledConv(Conv):
    """1x1 `Conv` of global means, which trains with a single image, too."""

    def __init__(self, c1: int, c2: int, act: Any = True) -> None:
        super().__init__(c1, c2, act=act)
        self.bn = PooledNorm(c2)


def plain_convolution(c1: int, c2: int, k: int = 3, d: int = 1) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return convolution, normalisation and activation as members of a Sequential, which are numbered there."""
    convolution = nn.Conv2d(c1, c2, k, padding=same_padding(k, d), dilation=d, bias=False)
    return convolution, nn.BatchNorm2d(c2), nn.SiLU()


@LAYERS.register("DWConvTranspose2d")
class DWConvTranspose2d(nn.ConvTranspose2d):
    """Transposed convolution in as many groups as both channel counts allow."""

    plan = staticmethod(channel_plan)

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p1: int = 0, p2: int = 0) -> None:
        super().__init__(c1, c2, k, s, p1, p2, groups=math.gcd(c1, c2))


def _concat_plan(row: Row) -> Plan:
    return Plan(row.arguments, sum(row.channels))


@LAYERS.register("Concat")
class Concat(nn.Module):
    """Join tensors along a dimension."""

    plan = staticmethod(_concat_plan)
    takes_list = True

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, features: list[Tensor]) -> Tensor:
        """Take tensors that differ in one dimension only."""
        return torch.cat(features, self.dimension)


def _sum_plan(row: Row) -> Plan:
    if len(set(row.channels)) != 1:
        raise ValueError(f"adds inputs of equal channels, these have {list(row.channels)}")
    if row.arguments and row.arguments[0] != len(row.channels):
        raise ValueError(f"the first argument is the number of inputs: {len(row.channels)}, not {row.arguments[0]!r}")
    return Plan((len(row.channels), *row.arguments[1:]), row.channels[0])


@LAYERS.register("Sum")
class Sum(nn.Module):
    """Add tensors; `weight` multiplies all but the first by 2 sigmoid(w), learned."""

    plan = staticmethod(_sum_plan)
    takes_list = True

    def __init__(self, n: int, weight: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(-torch.arange(1.0, n) / 2) if weight else None

    def forward(self, features: list[Tensor]) -> Tensor:
        """Take tensors of one shape, return that shape."""
        total = features[0]
        factors = None if self.w is None else 2 * torch.sigmoid(self.w)
        for index, feature in enumerate(features[1:]):
            total = total + (feature if factors is None else feature * factors[index])
        return total


@LAYERS.register("nn.Upsample")
class Upsample(nn.Upsample):
    """torch's Upsample."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.MaxPool2d")
class MaxPool2d(nn.MaxPool2d):
    """torch's MaxPool2d."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.AvgPool2d")
class AvgPool2d(nn.AvgPool2d):
    """torch's AvgPool2d."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.ZeroPad2d")
class ZeroPad2d(nn.ZeroPad2d):
    """torch's ZeroPad2d; the four borders may be written as a list."""

    plan = staticmethod(same_plan)

    def __init__(self, *borders: Any) -> None:
        given = borders[0] if len(borders) == 1 else borders
        super().__init__(given if isinstance(given, int) else tuple(given))


@LAYERS.register("nn.Identity")
class Identity(nn.Identity):
    """torch's Identity."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.Dropout2d")
class Dropout2d(nn.Dropout2d):
    """torch's Dropout2d."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.Conv2d")
class Conv2d(nn.Conv2d):
    """torch's Conv2d, with bias; the input's channels are put before the written arguments."""

    plan = staticmethod(channel_plan)


@LAYERS.register("nn.ConvTranspose2d")
class ConvTranspose2d(nn.ConvTranspose2d):
    """torch's ConvTranspose2d; the input's channels are put before the written arguments."""

    plan = staticmethod(channel_plan)


def _norm_plan(row: Row) -> Plan:
    channels = single_input(row)
    return Plan((channels,), channels, copies=row.repeats)


@LAYERS.register("nn.BatchNorm2d")
class BatchNorm2d(nn.BatchNorm2d):
    """torch's BatchNorm2d over the input's channels."""

    plan = staticmethod(_norm_plan)
