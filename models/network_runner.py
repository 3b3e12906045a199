"""`Runner` of a network in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from models.network import Network
from utils.core.contracts import Outputs


def to_input(images: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move (B, 3, H, W) uint8 or float images to `device` as floats in [0, 1] in channels-last memory."""
    images = images.to(device, non_blocking=True)
    scaled = images.to(dtype).div_(255) if images.dtype == torch.uint8 else images.to(dtype)
    return scaled.contiguous(memory_format=torch.channels_last)


class NetworkRunner:
    """Run a network on its device, with autocast to the type `mixed` if one is given."""

    def __init__(self, network: Network, device: torch.device, mixed: torch.dtype | None = None) -> None:
        self.network, self.device, self.mixed = network, device, mixed
        self.specs, self.names, self.stride = network.specs, network.names, network.stride
        self.fixed_hw = network.fixed_hw

    @torch.inference_mode()
    def run(self, images: Tensor) -> Outputs:
        """Run (B, 3, H, W) uint8 or float images."""
        with torch.autocast(self.device.type, dtype=self.mixed, enabled=self.mixed is not None):
            raw = self.network(to_input(images, self.device))
        return Outputs(decoded=self.network.decode(raw), raw=raw)
