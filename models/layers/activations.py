"""Activation functions, and the parser of a model YAML's `activation:` text."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from utils.core.errors import did_you_mean

MAX_TEXT = 200  # characters; an activation is a name and a few numbers


class Mish(nn.Module):
    """x * tanh(softplus(x)) (arXiv 1908.08681), written out for runtimes without an operator of that name."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate a tensor of any shape."""
        return functional.mish(x)


class Hardswish(nn.Module):
    """x * relu6(x + 3) / 6 (arXiv 1905.02244), written out for runtimes without an operator of that name."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate a tensor of any shape."""
        return x * functional.relu6(x + 3) / 6


class FReLU(nn.Module):
    """Funnel activation: max(x, T(x)) with T a depth-wise convolution and normalisation (arXiv 2007.11824).

    Args:
        in_channels: channels of the input.
        kernel: size of the depth-wise kernel, odd.
    """

    def __init__(self, in_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels, bias=False)
        self.bn = nn.BatchNorm2d(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Activate (B, in_channels, H, W)."""
        return torch.maximum(x, self.bn(self.conv(x)))


class _Acon(nn.Module):
    """Smooth maximum of p1 x and p2 x: (p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x, p1 and p2 learned."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.p1, self.p2 = (nn.Parameter(torch.randn(1, in_channels, 1, 1)) for _ in range(2))

    def smooth_maximum(self, x: Tensor, beta: Tensor) -> Tensor:
        difference = (self.p1 - self.p2) * x
        return difference * (beta * difference).sigmoid() + self.p2 * x


class AconC(_Acon):
    """ACON-C: the smooth maximum with one learned beta per channel (arXiv 2009.04759)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.beta = nn.Parameter(torch.ones(1, in_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Activate (B, in_channels, H, W)."""
        return self.smooth_maximum(x, self.beta)


class MetaAconC(_Acon):
    """Meta-ACON: the smooth maximum whose beta two 1x1 convolutions compute from the channel means (arXiv 2009.04759).

    Args:
        in_channels: channels of the input.
        kernel: kernel size of the two convolutions.
        stride: their stride.
        reduction: divides `in_channels` to give their inner channels, and is the least number of those.
    """

    def __init__(self, in_channels: int, kernel: int = 1, stride: int = 1, reduction: int = 16) -> None:
        super().__init__(in_channels)
        inner = max(reduction, in_channels // reduction)
        self.fc1 = nn.Conv2d(in_channels, inner, kernel, stride)
        self.fc2 = nn.Conv2d(inner, in_channels, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Activate (B, in_channels, H, W)."""
        means = x.mean(dim=(2, 3), keepdim=True)
        return self.smooth_maximum(x, self.fc2(self.fc1(means)).sigmoid())


_TORCH: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in (
        "SiLU", "ReLU", "ReLU6", "LeakyReLU", "Hardswish", "Hardsigmoid", "GELU", "Mish", "ELU", "CELU", "SELU",
        "Softplus", "Sigmoid", "Tanh", "PReLU", "Identity",
    )
}  # fmt: skip
_OWN: dict[str, type[nn.Module]] = {"Mish": Mish, "MemoryEfficientMish": Mish, "Hardswish": Hardswish}
_PER_CHANNEL: dict[str, type[nn.Module]] = {"FReLU": FReLU, "AconC": AconC, "MetaAconC": MetaAconC}
# every block gets its own instance of these; the others have no parameters and are shared by the whole network
_STATEFUL = {"PReLU", *_PER_CHANNEL}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError("expected a name like nn.LeakyReLU(0.1)")


def _parse(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Split the text into name, positional and keyword arguments, which must be literals."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"activation: expected at most {MAX_TEXT} characters, got {len(text)}")
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call):
            return _dotted(node), [], {}
        name = _dotted(node.func)
        arguments = [ast.literal_eval(argument) for argument in node.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"activation {text!r}: expected a name like nn.LeakyReLU(0.1)") from error
    if any(isinstance(value, float) and not math.isfinite(value) for value in (*arguments, *named.values())):
        raise ValueError(f"activation {text!r}: its numbers must be finite")
    return name, arguments, named


def parse_activation(text: str) -> Callable[[int], nn.Module]:
    """Parse an activation's text by table look-up; nothing of it is evaluated as code.

    Args:
        text: `nn.X(numbers)` for the element-wise activations of torch, or a name of this module: `Mish`,
            `MemoryEfficientMish`, `Hardswish`, `FReLU`, `AconC`, `MetaAconC`.

    Returns:
        A function from a block's channels to its activation. Activations without parameters are one shared module.

    Raises:
        ValueError: The name is unknown or the arguments do not fit.
    """
    name, arguments, named = _parse(text)
    word = name.removeprefix("torch.").removeprefix("nn.")
    if word in _PER_CHANNEL and name == word:
        return _PER_CHANNEL[word]
    kind = _OWN.get(word) if name == word else None
    kind = kind or _TORCH.get(word)
    if kind is None:
        known = [*(f"nn.{other}" for other in _TORCH), *_PER_CHANNEL]
        raise ValueError(f"activation {text!r}: unknown{did_you_mean(text, known)}")
    try:
        shared = kind(*arguments, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"activation {text!r}: {error}") from error
    if word in _STATEFUL:
        return lambda channels: kind(*arguments, **named)
    return lambda channels: shared
