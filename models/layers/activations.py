"""Activation functions, and how the text of a YAML's `activation:` key becomes one (behaviour.md 1.1, 1.4)."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_TEXT = 200  # an activation is a name and a few numbers


class Mish(nn.Module):
    """x * tanh(softplus(x))."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return functional.mish(x)


class Hardswish(nn.Module):
    """x * relu6(x + 3) / 6, written out so that every export format has it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return x * functional.hardtanh(x + 3, 0.0, 6.0) / 6.0


class FReLU(nn.Module):
    """max(x, BN(depth-wise 3x3 convolution of x)) (funnel activation, arXiv 2007.11824)."""

    def __init__(self, c1: int, k: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c1, k, 1, k // 2, groups=c1, bias=False)
        self.bn = nn.BatchNorm2d(c1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a (B, C, H, W) tensor of the input's shape."""
        return torch.max(x, self.bn(self.conv(x)))


class AconC(nn.Module):
    """(p1 - p2) x sigmoid(beta (p1 - p2) x) + p2 x with learned p1, p2, beta per channel (arXiv 2009.04759)."""

    def __init__(self, c1: int) -> None:
        super().__init__()
        self.p1 = nn.Parameter(torch.randn(1, c1, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, c1, 1, 1))
        self.beta = nn.Parameter(torch.ones(1, c1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a (B, C, H, W) tensor of the input's shape."""
        scaled = (self.p1 - self.p2) * x
        return scaled * torch.sigmoid(self.beta * scaled) + self.p2 * x


class MetaAconC(nn.Module):
    """AconC whose beta comes from the global mean through two 1x1 convolutions."""

    def __init__(self, c1: int, k: int = 1, s: int = 1, r: int = 16) -> None:
        super().__init__()
        reduced = max(r, c1 // r)
        self.p1 = nn.Parameter(torch.randn(1, c1, 1, 1))
        self.p2 = nn.Parameter(torch.randn(1, c1, 1, 1))
        self.fc1 = nn.Conv2d(c1, reduced, k, s, bias=True)
        self.fc2 = nn.Conv2d(reduced, c1, k, s, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return a (B, C, H, W) tensor of the input's shape."""
        beta = torch.sigmoid(self.fc2(self.fc1(x.mean(dim=(2, 3), keepdim=True))))
        scaled = (self.p1 - self.p2) * x
        return scaled * torch.sigmoid(beta * scaled) + self.p2 * x


_PLAIN: dict[str, type[nn.Module]] = {
    name: getattr(nn, name)
    for name in (
        "SiLU", "ReLU", "ReLU6", "LeakyReLU", "Hardswish", "Hardsigmoid", "GELU", "Mish", "ELU", "CELU", "SELU",
        "Softplus", "Sigmoid", "Tanh", "PReLU", "Identity",
    )
}  # fmt: skip
_OWN: dict[str, type[nn.Module]] = {"Mish": Mish, "MemoryEfficientMish": Mish, "Hardswish": Hardswish}
_PER_CHANNEL: dict[str, type[nn.Module]] = {"FReLU": FReLU, "AconC": AconC, "MetaAconC": MetaAconC}
# shared by every block of a network: they hold no numbers, and the table of layers stays short
_STATEFUL = {"PReLU", *_PER_CHANNEL}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError("an activation is a name like nn.LeakyReLU(0.1)")


def _parse(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return name, positional and keyword arguments; arguments are literals. Anything else raises ValueError."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"activation: {len(text)} characters are too many")
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.Call):
            return _dotted(node), [], {}
        arguments = [ast.literal_eval(argument) for argument in node.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"activation {text!r}: not a name like nn.LeakyReLU(0.1)") from error
    if any(isinstance(value, float) and not math.isfinite(value) for value in (*arguments, *named.values())):
        raise ValueError(f"activation {text!r}: its numbers must be finite")
    return _dotted(node.func), arguments, named


def parse_activation(text: str) -> Callable[[int], nn.Module]:
    """Return a function from channels to the activation that `text` names; the text is looked up, never run.

    `nn.X(numbers)` for torch's element-wise activations, or a name of this library; `FReLU`, `AconC` and `MetaAconC`
    get the channels of the block they stand in. An unknown name or bad arguments raise ValueError.
    """
    name, arguments, named = _parse(text)
    word = name.removeprefix("torch.").removeprefix("nn.")
    if word in _PER_CHANNEL and name == word:
        kind = _PER_CHANNEL[word]
        return lambda channels: kind(channels)
    own = _OWN.get(word) if name == word else None
    found = own or _PLAIN.get(word)
    if found is None or (own is None and name == word and word not in _PLAIN):
        raise ValueError(f"activation {text!r}: known are nn.{', nn.'.join(_PLAIN)}, {', '.join(_PER_CHANNEL)}")
    try:
        shared = found(*arguments, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(f"activation {text!r}: {error}") from error
    if word in _STATEFUL:
        return lambda channels: found(*arguments, **named)
    return lambda channels: shared
