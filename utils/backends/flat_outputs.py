"""Network whose outputs are a flat tuple, the form that backends export, and the description of an export."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.network import Network
from utils.backends.export_metadata import ExportMetadata
from utils.core.contracts import Backend


class FlatNetwork(nn.Module):
    """Return the decoded tensors of all heads as a tuple, in the order of `outputs`.

    Args:
        network: The network; one in half precision is fed and decoded in fp32.
        outputs: (head, key of the decoded tensor) per output.
        colors: Empty: the input is (B, 3, H, W) float RGB in [0, 1]; `rgb` or `bgr`: (B, H, W, 3) uint8 in that
            channel order.
    """

    def __init__(self, network: Network, outputs: tuple[tuple[str, str], ...], colors: str = "") -> None:
        super().__init__()
        self.network, self.outputs, self.colors = network, outputs, colors
        self.dtype = next(network.parameters()).dtype

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute one tensor per entry of `outputs`."""
        if self.colors:
            images = images.permute(0, 3, 1, 2)
            images = images.flip(1) if self.colors == "bgr" else images
            images = images.to(self.dtype) / 255
        decoded = self.network.decode(self.network(images.to(self.dtype)))
        return tuple(decoded[head][key] for head, key in self.outputs)


def decoded_output_names(network: Network) -> tuple[tuple[str, str], ...]:
    """List the decoded outputs of a network as (head, key), found by running it on a small empty image."""
    side = 2 * network.stride
    with torch.no_grad():
        decoded = network.decode(network(torch.zeros(1, 3, side, side)))
    return tuple((head, key) for head, tensors in decoded.items() for key in tensors)


def to_half(network: Network) -> Network:
    """Copy a network with fp16 weights; anchors keep fp32, in which boxes are decoded."""
    halved = copy.deepcopy(network).half()
    for name, head in halved.heads.items():
        if hasattr(head, "anchors"):
            head.anchors = network.heads[name].anchors.clone()
    return halved


@dataclass(frozen=True)
class ExportJob:
    """Arguments of a backend's `write`: the network, the metadata of the file, and format-specific options."""

    network: Network  # fused, in evaluation mode, fp32, on the CPU
    metadata: ExportMetadata
    opset: int | None = None  # ONNX operator set; None: the backend's default
    simplify: bool = False  # ONNX
    optimize: bool = False  # TorchScript for mobile devices
    per_tensor: bool = False  # INT8: one scale per tensor instead of one per channel
    mlmodel: bool = False  # CoreML: the older neural-network format
    workspace_gb: int = 4  # TensorRT
    timing_cache: str = ""  # TensorRT
    verbose: bool = False
    calibration: Callable[[], Iterator[Tensor]] | None = None  # INT8: images in the form the file takes
    extra_float_layers: int = 0  # INT8: convolutions kept in floating point beyond the last one of each head
    trained: Network | None = None  # the network of the checkpoint, before anything was folded
    training: Mapping[str, Any] = field(default_factory=dict)  # metadata of the checkpoint

    def module(self) -> FlatNetwork:
        """Wrap the network for export, in the precision of the metadata."""
        network = to_half(self.network) if self.metadata.precision == "fp16" else self.network
        return FlatNetwork(network, self.metadata.outputs, self.metadata.colors).eval()

    def example(self, batch: int | None = None, image_hw: tuple[int, int] | None = None) -> Tensor:
        """Generate a random input to trace with, the same on every call."""
        height, width = image_hw or self.metadata.image_hw
        shape = (batch or self.metadata.batch, 3, height, width)
        random = torch.Generator().manual_seed(0)
        if self.metadata.colors:
            pixels = torch.randint(0, 256, (shape[0], height, width, 3), generator=random)
            return pixels.to(torch.uint8)
        return torch.rand(shape, generator=random)


class ExportBackend(Backend, Protocol):
    """Backend that can also write files: everything but `pytorch`."""

    ending: str  # of the files that it writes
    packages: tuple[str, ...] = ()  # modules that `write` needs
    runs_on_cpu_only: bool = False  # files do not run on other devices
    dynamic_by_default: bool = False  # input sizes are dynamic unless the user chooses a size
    tolerance_factor: float = 1.0  # scales the limits of the comparison with PyTorch, for runtimes that round more

    @staticmethod
    def write(job: ExportJob, path: Path) -> None:
        """Export the network to `path`."""
