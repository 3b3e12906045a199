"""Exponential moving average (EMA) of a network."""

import math
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

from utils.core import distributed as dist

Net = TypeVar("Net", bound=nn.Module)
DECAY, RAMP_UPDATES = 0.9999, 2000


def decay_at(updates: int, decay: float = DECAY, ramp: float = RAMP_UPDATES) -> float:
    """Return the weight of the old average after `updates` updates; it rises from 0 to `decay`."""
    return decay * (1 - math.exp(-updates / ramp))


class ModelEma(Generic[Net]):
    """EMA copy of a network in evaluation mode.

    Floating-point parameters and buffers (BatchNorm statistics) are averaged in one multi-tensor operation; integer
    buffers keep their initial values.

    Args:
        network: Network to follow. Its modules must not be replaced afterwards.
        decay: Final weight of the old average.
        ramp: Updates in which the weight rises to 63 % of that.

    Attributes:
        network: The averaged copy.
        updates: Number of updates so far.
    """

    def __init__(self, network: Net, decay: float = DECAY, ramp: float = RAMP_UPDATES) -> None:
        self.decay, self.ramp = decay, ramp
        self.network: Net = deepcopy(network).eval().requires_grad_(False)
        self.updates = 0
        source, average = network.state_dict(), self.network.state_dict()
        floating = [name for name, tensor in source.items() if tensor.dtype.is_floating_point]
        # state_dict() returns the live tensors, so these lists stay valid as long as the modules do
        self._source = [source[name] for name in floating]
        self._average = [average[name] for name in floating]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network after an optimizer step."""
        self.updates += 1
        torch._foreach_lerp_(self._average, self._source, 1 - decay_at(self.updates, self.decay, self.ramp))

    @torch.no_grad()
    def broadcast(self) -> None:
        """Copy the average of the first rank to all ranks, because BatchNorm statistics differ between them."""
        if dist.world_size() > 1:
            for tensor in self.network.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)
