"""`Runner` of a network in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from models.fuse import fuse
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


class ConvertedRunner(NetworkRunner):
    """Runner of a network with fp16, bf16 or fp64 weights; outputs are decoded in fp32 at least.

    Half precision without the casts of autocast is faster; fp64 shows how much fp32 is off.

    Args:
        network: Network to convert in place; anchors stay fp32, since bf16 holds only 8 bits of them.
        device: Device of the network.
        dtype: Type of weights and activations.
    """

    def __init__(self, network: Network, device: torch.device, dtype: torch.dtype = torch.float16) -> None:
        super().__init__(network, device)
        self.dtype = dtype
        anchors = {name: head.anchors for name, head in network.heads.items() if hasattr(head, "anchors")}
        network.to(dtype)
        for name, values in anchors.items():
            network.heads[name].anchors = values

    @torch.inference_mode()
    def run(self, images: Tensor) -> Outputs:
        """Compute raw and decoded outputs of (B, 3, H, W) uint8 or float images."""
        raw = self.network(to_input(images, self.device, self.dtype))
        return Outputs(decoded=self.network.decode(raw), raw=raw)


def scoring_runner(network: Network, device: torch.device, mixed: torch.dtype | None) -> NetworkRunner:
    """Wrap a network in evaluation mode for the scores of a training run.

    On a GPU that is a copy with normalisation folded into convolutions, channels-last, with weights of the type of
    mixed precision. On a CPU it is the network itself, under autocast.

    Args:
        network: Network in evaluation mode.
        device: Device of the network.
        mixed: Type of mixed precision; None for fp32.
    """
    if device.type != "cuda":
        return NetworkRunner(network, device, mixed)
    copy = fuse(network).to(memory_format=torch.channels_last)
    return NetworkRunner(copy, device) if mixed is None else ConvertedRunner(copy, device, mixed)
