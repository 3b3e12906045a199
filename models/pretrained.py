"""Architecture and initial weights of a new training."""

from __future__ import annotations

import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models.builder import classifier_description, read_architecture
from models.checkpoint import load_checkpoint
from models.class_names import list_heads
from models.network import Network
from models.torch_archive import read_archive
from models.transfer import align_state
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.core.train_settings import TrainSettings

DETECTOR_ROWS = 10  # rows of the backbone that a classifier is cut from; the class head replaces the last of them
_TORCHVISION_PREFIX = "model.0.net."
_CONVERSIONS = {"classify": classifier_description}  # head -> adds it to an architecture without it


@dataclass(frozen=True)
class InitialNetwork:
    """An architecture for `build_network`, and its initial weights by name (None: random)."""

    architecture: dict[str, Any]
    state: Mapping[str, Tensor] | None = None
    source: Network | None = None  # the network of these weights: rows may have other numbers in the new one

    def state_for(self, network: Network) -> Mapping[str, Tensor] | None:
        """Return the weights by the names they have in `network`."""
        return align_state(network, self.source) if self.source is not None and self.state is not None else self.state


def choose_initial_network(
    settings: TrainSettings, weights: Path | None, heads: Sequence[str], default_cfg: str
) -> InitialNetwork:
    """Choose the architecture and weights that a training starts from.

    Torchvision networks also accept files of bare weights, and download published ones if `settings.download` is set.

    Args:
        settings: of the training.
        weights: a checkpoint, or None.
        heads: required heads; an architecture without one is converted where that is possible.
        default_cfg: architecture without `--cfg` and weights.

    Raises:
        UserError: The settings contradict each other or a file cannot be used.
    """
    state: Mapping[str, Tensor] | None = None
    source: Network | None = None
    if settings.cfg or weights is None:
        architecture = read_architecture(settings.cfg or default_cfg)
        name = torchvision_name(architecture)
        if weights is not None:
            state = _bare_weights(weights) if name else None
            source = load_checkpoint(weights).network if state is None else None
        elif name and settings.pretrained:
            state = _published_weights(name, settings.download)
    else:
        source = load_checkpoint(weights).network
        architecture = source.architecture
    state = source.state_dict() if source is not None else state
    architecture = convert_heads(architecture, heads, settings.cutoff)
    if settings.dropout is not None:
        architecture = {**architecture, "dropout": settings.dropout}
    return InitialNetwork(architecture, state if settings.pretrained else None, source)


def convert_heads(architecture: dict[str, Any], heads: Sequence[str], cutoff: int | None) -> dict[str, Any]:
    """Convert an architecture that lacks one of `heads`; `cutoff` is the row to cut at (`--cutoff`)."""
    present = list_heads(architecture)
    for head in heads:
        if head not in present and head in _CONVERSIONS:
            return _CONVERSIONS[head](architecture, DETECTOR_ROWS if cutoff is None else cutoff)
    if cutoff is not None:
        raise UserError(
            f"--cutoff {cutoff}: {architecture['source']} already has the head {', '.join(heads)}; remove the option"
        )
    return architecture


def torchvision_name(architecture: Mapping[str, Any]) -> str:
    """Return the torchvision name of an architecture, or an empty string for other architectures."""
    rows = [*architecture["backbone"], *architecture["head"]]
    return str(rows[0][3][0]) if len(rows) == 1 and rows[0][2] == "Torchvision" else ""


def _bare_weights(path: Path) -> dict[str, Tensor] | None:
    """Read a file that holds weights only, as torchvision publishes them; None for other files."""
    content = read_archive(path) if path.suffix != ".safetensors" else None
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        return None
    return {f"{_TORCHVISION_PREFIX}{name}": tensor for name, tensor in content.items()}


def _published_weights(name: str, download: bool) -> dict[str, Tensor] | None:
    """Download the first weights that torchvision publishes for a network to torch's cache."""
    if not download:
        LOGGER.info(
            f"{name}: training from scratch; use --download for published weights or --pretrained FILE for your own"
        )
        return None
    from torchvision.models import get_model_weights

    weights = next(iter(get_model_weights(name)), None)
    if weights is None:
        raise UserError(f"--download: torchvision publishes no weights for {name}")
    LOGGER.info(f"downloading {weights.url} (its data set has its own terms of use)")
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:  # RuntimeError: another checksum
        raise UserError(f"{weights.url}: download failed ({error})") from error
    return {f"{_TORCHVISION_PREFIX}{key}": tensor for key, tensor in state.items()}
