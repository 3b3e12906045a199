"""The exponential moving average of a network, all tensors in one operation (behaviour.md 3.5)."""

import math
from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import nn

from utils.core import distributed as dist

Net = TypeVar("Net", bound=nn.Module)
DECAY, RAMP_UPDATES = 0.9999, 2000


def decay_at(updates: int) -> float:
    """Return the share of the old average after `updates` updates; early updates forget faster."""
    return DECAY * (1 - math.exp(-updates / RAMP_UPDATES))


class ModelEma(Generic[Net]):
    """A copy of `network` in evaluation mode whose floating tensors follow those of the original.

    Parameters and BatchNorm statistics are averaged; integer buffers stay as they were.
    """

    def __init__(self, network: Net) -> None:
        self.network: Net = deepcopy(network).eval().requires_grad_(False)
        self.updates = 0
        self._pair(network)

    def _pair(self, network: nn.Module) -> None:
        source, average = network.state_dict(), self.network.state_dict()
        floating = [name for name, tensor in source.items() if tensor.dtype.is_floating_point]
        # state_dict() returns the live tensors, so the pairs stay valid while the modules live
        self._source = [source[name] for name in floating]
        self._average = [average[name] for name in floating]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the network, after an optimizer step."""
        self.updates += 1
        torch._foreach_lerp_(self._average, self._source, 1 - decay_at(self.updates))

    @torch.no_grad()
    def share(self) -> None:
        """Give every rank the first rank's average: BatchNorm statistics differ between ranks."""
        if dist.world_size() > 1:
            for tensor in self.network.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)
