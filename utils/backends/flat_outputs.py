"""A network for formats that know neither dictionaries nor methods: images in, a tuple of named tensors out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.network import Network
from utils.backends.export_metadata import Description


class Flat(nn.Module):
    """Give the decoded tensors of any heads in the order of `names`: (head, key).

    Takes (B, 3, H, W) floats, RGB in [0, 1]; with `colors` (B, H, W, 3) uint8 pixels in the order rgb or bgr instead.
    A network in half precision is fed and decoded in fp32.
    """

    def __init__(self, network: Network, names: tuple[tuple[str, str], ...], colors: str = "") -> None:
        super().__init__()
        self.network, self.names, self.colors = network, names, colors
        self.dtype = next(network.parameters()).dtype

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor per name."""
        if self.colors:
            images = images.permute(0, 3, 1, 2)
            images = images.flip(1) if self.colors == "bgr" else images
            images = images.to(self.dtype) / 255
        decoded = self.network.decode(self.network(images.to(self.dtype)))
        return tuple(decoded[head][key] for head, key in self.names)


def decoded_names(network: Network) -> tuple[tuple[str, str], ...]:
    """Return what the network's heads decode to, as (head, key), found by looking at a small empty image."""
    side = 2 * network.stride
    with torch.no_grad():
        decoded = network.decode(network(torch.zeros(1, 3, side, side)))
    return tuple((head, key) for head, tensors in decoded.items() for key in tensors)


def as_half(network: Network) -> Network:
    """Return a copy with weights in fp16; anchors stay exact, they are used in fp32."""
    halved = copy.deepcopy(network).half()
    for name, head in halved.heads.items():
        if hasattr(head, "anchors"):
            head.anchors = network.heads[name].anchors.clone()
    return halved


@dataclass(frozen=True)
class ExportJob:
    """What a backend's `write` is given. `description` says what the file is to be."""

    network: Network  # fused, in evaluation mode, fp32, on the CPU
    description: Description
    opset: int | None = None  # of ONNX; None: the backend's choice
    simplify: bool = False
    optimize: bool = False  # TorchScript for mobile
    per_tensor: bool = False  # INT8: one scale per tensor instead of one per channel
    mlmodel: bool = False  # CoreML: the older neural-network format
    workspace_gb: int = 4  # TensorRT
    timing_cache: str = ""  # TensorRT
    verbose: bool = False
    calibration: Callable[[], Iterator[Tensor]] | None = None  # (1, 3, H, W) floats, for INT8
    caution: int = 0  # INT8: 0 keeps the heads' last layers in higher precision, more keeps more

    def module(self) -> Flat:
        """Return the network as the format takes it, in the precision asked for."""
        network = as_half(self.network) if self.description.precision == "fp16" else self.network
        return Flat(network, self.description.outputs, self.description.colors).eval()

    def example(self, batch: int | None = None, image_hw: tuple[int, int] | None = None) -> Tensor:
        """Return an input to trace with, from the seed's first numbers."""
        height, width = image_hw or self.description.image_hw
        shape = (batch or self.description.batch, 3, height, width)
        random = torch.Generator().manual_seed(0)
        if self.description.colors:
            pixels = torch.randint(0, 256, (shape[0], height, width, 3), generator=random)
            return pixels.to(torch.uint8)
        return torch.rand(shape, generator=random)
