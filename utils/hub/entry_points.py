"""Implementation of the entry points of hubconf.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
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


def open_custom(path: Any, autoshape: bool, verbose: bool, device: Any, download: bool) -> Model | Network:
    """Open a checkpoint or exported file, or several as an ensemble.

    Args:
        path: The file, or a list of files.
        autoshape: Return a `Model`, which takes images of any kind; else the network of a checkpoint.
        verbose: Log what was loaded.
        device: As --device of the programs; None: the first GPU, else the CPU.
        download: Fetch official weights that are missing.

    Returns:
        The model or network.
    """
    path = [_complete_name(one) for one in path] if isinstance(path, (list, tuple)) else _complete_name(path)
    if autoshape:
        model = load(path, str(device or ""), download=download)
        _log(f"{path}: {model}", verbose)
        return model
    network = load_checkpoint(resolve_weights(str(path), download)).network
    _log(f"{path}: {', '.join(network.specs)}, {len(network.names)} classes", verbose)
    return network.to(select_device(str(device or "")))


def _complete_name(path: Any) -> str:
    """Append .pt to a name without suffix, such as yolov5n, unless a file or folder is called like that."""
    text = str(path).strip()
    return text if Path(text).suffix or Path(text).exists() else f"{text}.pt"


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
) -> Model | Network:
    """Create a network of the model zoo.

    Args:
        name: Of the architecture.
        pretrained: Load the official weights, as far as their shapes fit.
        channels: Of the images.
        classes: Number of classes.
        autoshape: Return a `Model`, which takes images of any kind; else the network.
        verbose: Log what was loaded.
        device: As --device of the programs; None: the first GPU, else the CPU.
        download: Fetch official weights that are missing.

    Returns:
        The model or network.
    """
    stored = load_checkpoint(resolve_weights(f"{name}.pt", download)).network if pretrained else None
    if stored is not None and (channels, classes) == (3, len(stored.names)):
        network = stored
    else:
        network = build_network(read_architecture(name), classes, channels=channels)
        if stored is not None:
            _log(f"{transfer(network, stored.state_dict(), skip_anchors=True)} from {name}.pt", verbose)
    target = select_device(str(device or ""))
    network = network.to(target)
    _log(f"{name}: {len(network.names)} classes", verbose)
    if not autoshape:
        return network
    fused = fuse(network.eval()).requires_grad_(False).to(memory_format=torch.channels_last)
    return Model(NetworkRunner(fused, target), target)


def _log(text: str, verbose: bool) -> None:
    if verbose:
        if not LOGGER.handlers:  # imported by another program, which has not set up the console
            set_up_console()
        LOGGER.info(text)


def self_test(model: Model, source: Sequence[str]) -> None:
    """Run a model on `source`, or without any on generated images of all supported types; print the results."""
    if source:
        model(list(source)).print()
        return
    from PIL import Image

    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, (480, 640, 3), np.uint8)
    images = [array, Image.fromarray(array[:320]), torch.from_numpy(array).permute(2, 0, 1), array[:, :, 0]]
    model(images, size=320).print()
