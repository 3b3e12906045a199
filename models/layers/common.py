"""Convolution blocks, tensor joins, and the plain torch layers that model YAMLs name."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layer_plan import LAYERS, Plan, Row, channel_plan, same_plan, single_input

Size = int | Sequence[int]  # one number, or height and width


def same_padding(kernel: Size, dilation: int = 1) -> Any:
    """Compute the padding that keeps the size at stride 1: half the dilated kernel, per dimension."""
    if isinstance(kernel, int):
        return (dilation * (kernel - 1) + 1) // 2
    return tuple((dilation * (side - 1) + 1) // 2 for side in kernel)


def _as_torch_size(size: Size) -> Any:
    return size if isinstance(size, int) else tuple(size)


_plain = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Run every layer by its defining operations, without the kernels for the CPU."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_exporting() -> bool:
    """Check whether the network is being traced, exported or compiled."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def index_range(length: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Build the indices 0, 1, …, length - 1 on the device of `like`, in its type unless `dtype` is given.

    Traces record the device of `arange` as a constant, so a file traced on a CPU would not run on a GPU; a cumulative
    sum of ones takes its device from `like`.
    """
    dtype = dtype or like.dtype
    if torch.jit.is_tracing():
        return like.new_ones(length, dtype=dtype).cumsum(0) - 1
    return torch.arange(length, device=like.device, dtype=dtype)


def use_cpu_kernels(x: Tensor) -> bool:
    """Check whether a tensor should take the CPU code paths.

    GPUs run the plain operation as one fast kernel, and exported graphs keep it for their own runtimes.
    """
    return x.device.type == "cpu" and not is_exporting() and not _plain.get()


def apply_activation(activation: nn.Module, x: Tensor) -> Tensor:
    """Apply an activation to a tensor that is not used afterwards.

    CPU inference applies SiLU in place: for large maps, memory traffic costs more than the computation. Training does
    not, since autograd would have to copy the input.
    """
    if type(activation) is nn.SiLU and use_cpu_kernels(x) and not torch.is_grad_enabled():
        return functional.silu(x, inplace=True)
    return activation(x)


def run_conv_sequence(branch: nn.Sequential, x: Tensor) -> Tensor:
    """Run a Sequential that begins with a convolution, applying its activations in place where allowed."""
    for layer in branch:
        x = apply_activation(layer, x)
    return x


@LAYERS.register("Conv")
class Conv(nn.Module):
    """Convolution without bias, batch normalisation and activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: kernel size, one number or (height, width).
        stride: one number or (height, width).
        padding: None keeps the size at stride 1.
        groups: groups of the convolution.
        dilation: spacing of the kernel's points. A bool is taken as the activation, which older model YAMLs have in
            this position.
        activation: True for the model's default (SiLU unless its YAML names another), a module for that one, anything
            else for none.
    """

    plan = staticmethod(channel_plan)
    conv: nn.Conv2d
    bn: nn.Module
    act: nn.Module

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Size = 1, stride: Size = 1, padding: Size | None = None,
        groups: int = 1, dilation: int = 1, activation: Any = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(dilation, bool):
            activation, dilation = dilation, 1
        border = same_padding(kernel, dilation) if padding is None else _as_torch_size(padding)
        self.conv = nn.Conv2d(
            in_channels, out_channels, _as_torch_size(kernel), _as_torch_size(stride), border,
            dilation=dilation, groups=groups, bias=False,
        )  # fmt: skip
        self.bn = nn.BatchNorm2d(out_channels)
        self.has_default_activation = activation is True
        if self.has_default_activation:
            self.act = nn.SiLU()
        else:
            self.act = activation if isinstance(activation, nn.Module) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        return self.norm_act(self.conv(x))

    def norm_act(self, x: Tensor) -> Tensor:
        """Normalise and activate the convolution's output (B, out_channels, H, W), which may be overwritten."""
        return apply_activation(self.act, self.bn(x))

    @property
    def is_fused_silu(self) -> bool:
        """Whether the normalisation is folded into the convolution and SiLU follows."""
        return type(self.bn) is nn.Identity and type(self.act) is nn.SiLU


def set_activation(module: nn.Module, factory: Callable[[int], nn.Module]) -> None:
    """Replace the default activation of every `Conv` inside `module`; `factory` gets the block's channels."""
    for block in module.modules():
        if isinstance(block, Conv) and block.has_default_activation:
            block.act = factory(block.conv.out_channels)


@LAYERS.register("DWConv")
class DWConv(Conv):
    """Depth-wise `Conv`: as many groups as both channel counts allow."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Size = 1, stride: Size = 1, dilation: int = 1,
        activation: Any = True,
    ) -> None:  # fmt: skip
        groups = math.gcd(in_channels, out_channels)
        super().__init__(
            in_channels, out_channels, kernel, stride, groups=groups, dilation=dilation, activation=activation
        )


class PooledNorm(nn.BatchNorm2d):
    """Batch normalisation of globally pooled maps; a single value per channel uses the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class PooledConv(Conv):
    """1x1 `Conv` of globally pooled maps, which can train on a single image."""

    def __init__(self, in_channels: int, out_channels: int, activation: Any = True) -> None:
        super().__init__(in_channels, out_channels, activation=activation)
        self.bn = PooledNorm(out_channels)


def conv_bn_silu(
    in_channels: int, out_channels: int, kernel: int = 3, dilation: int = 1
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Build convolution, normalisation and SiLU as separate members for a Sequential, which numbers them."""
    padding = same_padding(kernel, dilation)
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.SiLU()


@LAYERS.register("DWConvTranspose2d")
class DWConvTranspose2d(nn.ConvTranspose2d):
    """Depth-wise transposed convolution with bias: as many groups as both channel counts allow."""

    plan = staticmethod(channel_plan)

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, padding: int = 0,
        output_padding: int = 0,
    ) -> None:  # fmt: skip
        groups = math.gcd(in_channels, out_channels)
        super().__init__(in_channels, out_channels, kernel, stride, padding, output_padding, groups=groups)


def _concat_plan(row: Row) -> Plan:
    return Plan(row.arguments, sum(row.channels))


@LAYERS.register("Concat")
class Concat(nn.Module):
    """Concatenate tensors along a dimension."""

    plan = staticmethod(_concat_plan)
    takes_list = True

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, features: list[Tensor]) -> Tensor:
        """Concatenate tensors that differ at most in that dimension."""
        return torch.cat(features, self.dimension)


def _sum_plan(row: Row) -> Plan:
    if len(set(row.channels)) != 1:
        raise ValueError(f"adds inputs of equal channels, got {list(row.channels)}")
    if row.arguments and row.arguments[0] != len(row.channels):
        raise ValueError(f"the first argument is the number of inputs, {len(row.channels)}, got {row.arguments[0]!r}")
    return Plan((len(row.channels), *row.arguments[1:]), row.channels[0])


@LAYERS.register("Sum")
class Sum(nn.Module):
    """Add tensors of one shape, optionally weighted.

    Args:
        repeats: number of tensors.
        weighted: multiply each tensor after the first by 2 * sigmoid(w), where w is learned.
    """

    plan = staticmethod(_sum_plan)
    takes_list = True

    def __init__(self, repeats: int, weighted: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(1, repeats) * -0.5) if weighted else None

    def forward(self, features: list[Tensor]) -> Tensor:
        """Add the tensors."""
        total, *others = features
        if self.w is not None:
            others = [factor * feature for factor, feature in zip(2 * self.w.sigmoid(), others, strict=True)]
        for feature in others:
            total = total + feature
        return total


@LAYERS.register("nn.Upsample")
class Upsample(nn.Upsample):
    """`torch.nn.Upsample`."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.MaxPool2d")
class MaxPool2d(nn.MaxPool2d):
    """`torch.nn.MaxPool2d`."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.AvgPool2d")
class AvgPool2d(nn.AvgPool2d):
    """`torch.nn.AvgPool2d`."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.ZeroPad2d")
class ZeroPad2d(nn.ZeroPad2d):
    """`torch.nn.ZeroPad2d`; the four borders may be written as a list."""

    plan = staticmethod(same_plan)

    def __init__(self, *borders: Any) -> None:
        given = borders[0] if len(borders) == 1 else borders
        super().__init__(given if isinstance(given, int) else tuple(given))


@LAYERS.register("nn.Identity")
class Identity(nn.Identity):
    """`torch.nn.Identity`."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.Dropout2d")
class Dropout2d(nn.Dropout2d):
    """`torch.nn.Dropout2d`."""

    plan = staticmethod(same_plan)


@LAYERS.register("nn.Conv2d")
class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` with bias; the input's channels precede the arguments of the row."""

    plan = staticmethod(channel_plan)


@LAYERS.register("nn.ConvTranspose2d")
class ConvTranspose2d(nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with bias; the input's channels precede the arguments of the row."""

    plan = staticmethod(channel_plan)


def _norm_plan(row: Row) -> Plan:
    channels = single_input(row)
    return Plan((channels,), channels, copies=row.repeats)


@LAYERS.register("nn.BatchNorm2d")
class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the input's channels."""

    plan = staticmethod(_norm_plan)
