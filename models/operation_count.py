"""Count of the operations of a network from the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def _convolved_size(
    image: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> tuple[int, ...]:
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    sides = []
    for axis, side in enumerate(image.shape[2:]):
        reach = dilation[axis] * (weight.shape[2 + axis] - 1)
        if transposed:
            sides.append((side - 1) * stride[axis] - 2 * padding[axis] + reach + output_padding[axis] + 1)
        else:
            sides.append((side + 2 * padding[axis] - reach - 1) // stride[axis] + 1)
    return (len(image), channels, *sides)


_LEFT_FACTOR = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}  # its position in the arguments
_NORMALISATIONS = {aten.native_batch_norm, aten.cudnn_batch_norm, aten._native_batch_norm_legit_no_training}


class OperationCounter(TorchDispatchMode):
    """Context that counts the operations of a network in evaluation mode.

    Convolutions and batch normalisations are not computed: they return uninitialised tensors of the right shape.

    Attributes:
        products: multiplications and additions of convolutions and matrix products, as
            `torch.utils.flop_counter.FlopCounterMode` counts them, which imports the compiler (two to four seconds).
        normalised: elements of batch normalisations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = self.normalised = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch would add a decorator that imports the compiler

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run or replace an operator and add its operations."""
        operator = func.overloadpacket
        if operator is aten.convolution:
            image, weight, _bias, *geometry = args
            output = image.new_empty(_convolved_size(image, weight, *geometry))
            transposed = bool(args[6])
            self.products += 2 * (image if transposed else output).numel() * math.prod(weight.shape[1:])
            return output
        if operator in _NORMALISATIONS:
            self.normalised += args[0].numel()
            return torch.empty_like(args[0]), *(args[0].new_empty(0) for _ in func._schema.returns[1:])
        output = func(*args, **(kwargs or {}))
        if operator in _LEFT_FACTOR:
            self.products += 2 * output.numel() * args[_LEFT_FACTOR[operator]].shape[-1]
        return output
