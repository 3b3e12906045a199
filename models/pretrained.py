"""What the network of a new training starts from: its description, and weights to take over."""

from __future__ import annotations

import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from models.builder import classifier_description, read_architecture
from models.checkpoint import load_checkpoint
from models.class_names import described_heads
from models.network import Network
from models.torch_archive import read_archive
from models.transfer import state_for
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.core.train_settings import TrainSettings

DETECTOR_ROWS = 10  # of which a classifier keeps all but the last (behaviour.md 1.5)
_TORCHVISION_PREFIX = "model.0.net."
_CONVERSIONS = {"classify": classifier_description}  # head -> how a network without it gets it


@dataclass(frozen=True)
class Start:
    """A description for `build_network`, and weights by name (None: those it draws)."""

    architecture: dict[str, Any]
    state: Mapping[str, Tensor] | None = None
    source: Network | None = None  # whose weights they are: rows may have other numbers in the new network

    def state_for(self, network: Network) -> Mapping[str, Tensor] | None:
        """Return the weights under the names they have in `network`."""
        return state_for(network, self.source) if self.source is not None and self.state is not None else self.state


def starting_point(settings: TrainSettings, weights: Path | None, heads: Sequence[str], default_cfg: str) -> Start:
    """Return what `settings` start from: the checkpoint `weights`, a model by name, or `default_cfg`.

    A network that lacks one of `heads` and can be converted gets it. Networks of torchvision take bare files of
    weights too, and fetch them if `settings.download` allows it. What does not fit together raises UserError.
    """
    state: Mapping[str, Tensor] | None = None
    source: Network | None = None
    if settings.cfg or weights is None:
        architecture = read_architecture(settings.cfg or default_cfg)
        name = torchvision_name(architecture)
        if weights is not None:
            state = _bare(weights) if name else None
            source = load_checkpoint(weights).network if state is None else None
        elif name and settings.pretrained:
            state = _published(name, settings.download)
    else:
        source = load_checkpoint(weights).network
        architecture = source.architecture
    state = source.state_dict() if source is not None else state
    architecture = with_heads(architecture, heads, settings.cutoff)
    if settings.dropout is not None:
        architecture = {**architecture, "dropout": settings.dropout}
    return Start(architecture, state if settings.pretrained else None, source)


def with_heads(architecture: dict[str, Any], heads: Sequence[str], cutoff: int | None) -> dict[str, Any]:
    """Return the description, converted if it lacks a head that it can be given; `cutoff` says how much is kept."""
    present = described_heads(architecture)
    for head in heads:
        if head not in present and head in _CONVERSIONS:
            return _CONVERSIONS[head](architecture, DETECTOR_ROWS if cutoff is None else cutoff)
    if cutoff is not None:
        raise UserError(f"--cutoff {cutoff}: {architecture['source']} has the head {', '.join(heads)}; nothing to cut")
    return architecture


def torchvision_name(architecture: Mapping[str, Any]) -> str:
    """Return what torchvision calls the network that is described, "" if it is none of theirs."""
    rows = [*architecture["backbone"], *architecture["head"]]
    return str(rows[0][3][0]) if len(rows) == 1 and rows[0][2] == "Torchvision" else ""


def _bare(path: Path) -> dict[str, Tensor] | None:
    """Return the weights in a file that holds nothing else, as torchvision publishes them; None for other files."""
    content = read_archive(path) if path.suffix != ".safetensors" else None
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        return None
    return {f"{_TORCHVISION_PREFIX}{name}": tensor for name, tensor in content.items()}


def _published(name: str, download: bool) -> dict[str, Tensor] | None:
    """Return the first weights that torchvision publishes for a network, kept in torch's own cache."""
    if not download:
        LOGGER.info(f"{name} from scratch; --download fetches published weights, --pretrained FILE takes yours")
        return None
    from torchvision.models import get_model_weights

    weights = next(iter(get_model_weights(name)), None)
    if weights is None:
        raise UserError(f"--download: torchvision publishes no weights of {name}")
    LOGGER.info(f"fetching {weights.url} (its data has its own terms of use)")
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:  # RuntimeError: another checksum
        raise UserError(f"{weights.url}: cannot be fetched ({error})") from error
    return {f"{_TORCHVISION_PREFIX}{key}": tensor for key, tensor in state.items()}
