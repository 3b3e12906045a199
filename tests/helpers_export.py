"""Small networks that find something, and their exported files, for tests."""

from typing import Any

import pytest
import torch
from torch import nn

import export
from models.builder import build_network, read_architecture
from models.network import Network
from models.network_runner import NetworkRunner
from utils.backends import BACKENDS
from utils.backends.exported_runner import is_installed
from utils.backends.open_weights import open_weights

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")


def detecting_network(
    name: str | dict[str, Any], names: tuple[str, ...] = CLASSES, spread: float = 0.5, seed: int = 0
) -> Network:
    """Build a small network whose features depend on the image and whose scores vary, so that it detects boxes."""
    torch.manual_seed(seed)
    network = build_network(read_architecture(name) if isinstance(name, str) else name, len(names), names).train()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for module in norms:
            module.momentum = 1.0  # adopt the statistics of the next batch
        network(torch.rand(8, 3, 96, 96))
        for module in norms:
            module.momentum = 0.03
        for head in network.heads.values():
            branches = [level.cls for level in head.levels] if head.spec.bins else []
            for classes in branches:
                nn.init.normal_(classes[-1].weight, std=spread / classes[-1].in_channels ** 0.5)
                classes[-1].bias.fill_(-0.5)
            for convolution in head.m if head.spec.anchors else ():
                nn.init.normal_(convolution.weight, std=spread / convolution.in_channels**0.5)
                convolution.bias.view(3, -1)[:, 4] += 5
                convolution.bias.view(3, -1)[:, 5:8] += 1
    return network.eval().requires_grad_(False)


def reference(path) -> NetworkRunner:
    runner, _ = BACKENDS.get("pytorch").open([path], CPU)
    return runner


def noise(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def written(checkpoint, folder, name, **options):
    """Export one format, for 96 pixels unless given otherwise, and open it."""
    chosen = {"imgsz": [96], **options}
    (path,) = export.run(weights=[str(checkpoint)], include=[name], output=str(folder), **chosen)
    return path, open_weights([str(path)], CPU).runner


def needs(name: str) -> None:
    """Skip the test where the format cannot be written and run."""
    backend = BACKENDS.get(name)
    for package in backend.packages:
        if not is_installed(package):
            pytest.skip(f"{backend.title} needs the package {package}")
    if reason := backend.unavailable_reason():
        pytest.skip(reason)
