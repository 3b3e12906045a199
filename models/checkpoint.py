"""Save and load networks as plain tensors and plain dictionaries; loading runs nothing that a file says."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.builder import build_network
from models.fuse import fuse
from models.network import Network
from models.torch_archive import read_archive
from models.yolov5_checkpoint import is_official, load_state, network_from
from utils.core.errors import UserError
from utils.core.files import atomic_path

FORMAT, VERSION = "polyolo", 1
OFFICIAL_NAME = re.compile(r"yolov5[nsmlx](6|-seg|-cls)?\.pt")
RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
_FAULTS = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError)


@dataclass
class Checkpoint:
    """A network read from a file, in evaluation mode and fp32, and what the file says about it."""

    network: Network
    names: tuple[str, ...]
    task: str
    meta: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None  # what a run needs to go on
    source: str = FORMAT  # or yolov5
    path: Path | None = None


def save_checkpoint(
    path: str | Path, network: Network, meta: dict[str, Any], training: dict[str, Any] | None = None, half: bool = False
) -> None:
    """Write `network` to `path` in one step; the ending decides: .safetensors for weights alone, else torch's zip.

    `half` stores weights in fp16 (`training` stays as it is). Tensors are stored in the default memory order. What is
    no plain data in `meta` or `training` raises TypeError.
    """
    path = Path(path)
    state = {
        name: _stored(tensor, half and not name.endswith(".anchors")) for name, tensor in network.state_dict().items()
    }
    about = _plain({**_description(network), "meta": meta})
    if path.suffix == ".safetensors":
        if training is not None:
            raise ValueError("a .safetensors file holds weights alone, not the state of a training run")
        content: bytes | memoryview = _as_safetensors(state, about)
    else:
        buffer = io.BytesIO()  # torch's own writer hides which file error stopped it
        torch.save({**about, "state": state, "training": _plain(training)}, buffer)
        content = buffer.getbuffer()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _description(network: Network) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "architecture": network.architecture,
        "names": list(network.names),
        "task": network.task,
        "stride": network.stride,
        "anchors": {name: spec.anchors for name, spec in network.specs.items() if spec.anchors},
    }


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu()
    tensor = tensor.half() if half and tensor.is_floating_point() else tensor
    # a view into a larger storage would drag all of it into the file
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _plain(value: Any) -> Any:
    """Return `value` made of dictionaries, lists, numbers, words and tensors alone."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Tensor):
        return _stored(value, half=False)
    if isinstance(value, np.ndarray):
        return _stored(torch.from_numpy(value.copy()), half=False)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return value.as_posix()
    if isinstance(value, Mapping):
        return {key if isinstance(key, int) else str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [_plain(entry) for entry in value]
        return tuple(entries) if isinstance(value, tuple) else entries
    raise TypeError(f"a checkpoint holds plain data, not a {type(value).__name__}")


def _as_safetensors(state: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    return save(state, metadata={FORMAT: json.dumps(about)})


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours (.pt, .safetensors), of YOLOv5 (v5.0 to v7.0) or of multiyolov5.

    Whatever is wrong with the file raises UserError with one line that says what it is and what to do.
    """
    path = Path(path)
    if not path.exists() and OFFICIAL_NAME.fullmatch(path.name):
        raise UserError(
            f"{path}: no such file; it is at {RELEASE}/{path.name} (those weights have their own licence, AGPL-3.0), "
            "and --download fetches it"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_archive(path)
    try:
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return _native(content, path)
        if is_official(content):
            network, meta = network_from(content, path.name)
            return Checkpoint(network.eval(), network.names, network.task, meta, None, "yolov5", path)
    except UserError as error:
        text = str(error)
        raise UserError(
            text if text.startswith(str(path)) else f"{path}: {text.removeprefix(f'{path.name}: ')}"
        ) from error
    except _FAULTS as error:
        raise UserError(f"{path}: damaged, its parts do not fit together; get the file again") from error
    raise UserError(f"{path}: holds {_describe(content)}, not a checkpoint of Polyolo or YOLOv5")


def _describe(content: Any) -> str:
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return "bare weights without the network they belong to"
    return {dict: "a dictionary", list: "a list", Tensor: "a tensor"}.get(type(content), "something else")


def _native(content: dict[str, Any], path: Path) -> Checkpoint:
    if content.get("version") != VERSION:
        raise UserError(
            f"written by another version of Polyolo (format {content.get('version')!r}, this reads {VERSION})"
        )
    architecture, names = content["architecture"], content["names"]
    with torch.random.fork_rng(devices=[]):  # weights come from the file: drawing them must not move the run's numbers
        network = build_network(architecture, len(names), names)
    if architecture.get("fused"):
        network = fuse(network)
    load_state(network, content["state"])
    meta, training = content.get("meta"), content.get("training")
    if not isinstance(meta, dict) or not (training is None or isinstance(training, dict)):
        raise UserError("damaged: its description is no table")
    return Checkpoint(network.eval(), network.names, network.task, meta, training, FORMAT, path)


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as archive:
            about = json.loads((archive.metadata() or {}).get(FORMAT, "null"))
            state = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged, not a whole .safetensors file") from error
    if not isinstance(about, dict):
        raise UserError(f"{path}: weights without Polyolo's description, so there is no network to put them into")
    return {**about, "state": state, "training": None}
