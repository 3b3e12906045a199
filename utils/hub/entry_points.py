"""What stands behind the entries of hubconf.py (behaviour.md 5.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint
from models.fuse import fuse
from models.network import Network
from models.network_runner import NetworkRunner
from models.transfer import transfer
from models.weight_download import resolve_weights
from utils.core.device import select_device
from utils.core.log import LOGGER, set_up_console
from utils.hub.hub_model import Model, load


def open_custom(path: Any, autoshape: bool, verbose: bool, device: Any, download: bool) -> Any:
    """Return a file, or several as an ensemble, as a `Model`; without `autoshape` the network of the file."""
    if autoshape:
        model = load(path, str(device or ""), download=download)
        _tell(f"{path}: {model}", verbose)
        return model
    network = load_checkpoint(resolve_weights(str(path), download)).network
    _tell(f"{path}: {', '.join(network.specs)}, {len(network.names)} classes", verbose)
    return network.to(select_device(str(device or "")))


def open_named(
    name: str,
    pretrained: bool,
    channels: int,
    classes: int,
    *,
    autoshape: bool,
    verbose: bool,
    device: Any,
    download: bool,
) -> Any:
    """Return the network `name`, with the official weights if `pretrained`, as far as they fit."""
    stored = load_checkpoint(resolve_weights(f"{name}.pt", download)).network if pretrained else None
    if stored is not None and (channels, classes) == (3, len(stored.names)):
        network = stored
    else:
        network = build_network(read_architecture(name), classes, channels=channels)
        if stored is not None:
            _tell(f"{transfer(network, stored.state_dict(), skip_anchors=True)} from {name}.pt", verbose)
    target = select_device(str(device or ""))
    network = network.to(target)
    _tell(f"{name}: {len(network.names)} classes", verbose)
    return _as_model(network, target) if autoshape else network


def _as_model(network: Network, device: torch.device) -> Model:
    ready = fuse(network.eval()).requires_grad_(False).to(memory_format=torch.channels_last)
    return Model(NetworkRunner(ready, device), device)


def _tell(text: str, verbose: bool) -> None:
    if verbose:
        if not LOGGER.handlers:  # not one of our programs: nobody set the console up
            set_up_console()
        LOGGER.info(text)


def self_test(model: Model, source: Sequence[str]) -> None:
    """Run `model` on images of every kind it takes, or on `source`."""
    if source:
        model(list(source)).print()
        return
    from PIL import Image

    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, (480, 640, 3), np.uint8)
    images = [array, Image.fromarray(array[:320]), torch.from_numpy(array).permute(2, 0, 1), array[:, :, 0]]
    model(images, size=320).print()
