"""Checkpoints as plain tensors and dictionaries; loading executes nothing in a file."""

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
from models.transfer import load_state
from utils.core.errors import UserError
from utils.core.files import atomic_path

FORMAT, VERSION = "polyolo", 1
YOLOV5_NAME = re.compile(r"yolov5[nsmlx](6|-seg|-cls)?\.pt")
YOLOV5_RELEASE = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
_DAMAGE = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError)


@dataclass
class Checkpoint:
    """A network read from a file, in evaluation mode and fp32, and the file's other content."""

    network: Network
    names: tuple[str, ...]  # class names of the main head
    task: str
    meta: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None  # state to resume from
    source: str = FORMAT  # or yolov5
    path: Path | None = None


def save_checkpoint(
    path: str | Path, network: Network, meta: dict[str, Any], training: dict[str, Any] | None = None, half: bool = False
) -> None:
    """Write a checkpoint atomically, with tensors in the default memory order.

    Args:
        path: a name ending in .safetensors for weights only, else torch's zip format.
        network: whose weights are saved.
        meta: plain data about the network.
        training: plain data to resume from.
        half: store the weights in fp16, except anchors; `training` is not affected.

    Raises:
        TypeError: `meta` or `training` holds other than plain data.
        ValueError: `training` is given for a .safetensors file.
    """
    path = Path(path)
    state = {
        name: _stored(tensor, half and not name.endswith(".anchors")) for name, tensor in network.state_dict().items()
    }
    about = _plain({**_description(network), "meta": meta})
    if path.suffix == ".safetensors":
        if training is not None:
            raise ValueError("a .safetensors file holds weights only, not the state of a training")
        content: bytes | memoryview = _to_safetensors(state, about)
    else:
        buffer = io.BytesIO()  # torch's file writer would hide the reason of a failed write
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
    # torch.save writes the whole storage of a view
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def _plain(value: Any) -> Any:
    """Convert to dictionaries, lists, numbers, strings and tensors."""
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


def _to_safetensors(state: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    return save(state, metadata={FORMAT: json.dumps(about)})


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Load a checkpoint of this project, of YOLOv5 (v5.0 to v7.0) or of multiyolov5, without executing any code in it.

    Raises:
        UserError: The file is missing, damaged, or of another kind; one line says what is wrong and what to do.
    """
    path = Path(path)
    if not path.exists() and YOLOV5_NAME.fullmatch(path.name):
        raise UserError(
            f"{path}: no such file; download it with --download, or from {YOLOV5_RELEASE}/{path.name} "
            "(these weights have their own licence, AGPL-3.0)"
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_archive(path)
    try:
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return _load_native(content, path)
        from models.yolov5_checkpoint import convert_network, is_yolov5_checkpoint  # our own files do not need it

        if is_yolov5_checkpoint(content):
            network, meta = convert_network(content, path.name)
            return Checkpoint(network.eval(), network.names, network.task, meta, None, "yolov5", path)
    except UserError as error:
        text = str(error)
        raise UserError(
            text if text.startswith(str(path)) else f"{path}: {text.removeprefix(f'{path.name}: ')}"
        ) from error
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged, its parts do not fit together; get the file again") from error
    raise UserError(f"{path}: holds {_describe(content)}, not a checkpoint of Polyolo or YOLOv5")


def _describe(content: Any) -> str:
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return "bare weights without the network they belong to"
    return {dict: "a dictionary", list: "a list", Tensor: "a tensor"}.get(type(content), "something else")


def _load_native(content: dict[str, Any], path: Path) -> Checkpoint:
    if content.get("version") != VERSION:
        raise UserError(
            f"has format version {content.get('version')!r}, this version of Polyolo reads {VERSION}; update Polyolo"
        )
    architecture, names = content["architecture"], content["names"]
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced: a run's random stream must not advance
        network = build_network(architecture, len(names), names)
    if architecture.get("fused"):
        network = fuse(network)
    load_state(network, content["state"])
    meta, training = content.get("meta"), content.get("training")
    if not isinstance(meta, dict) or not (training is None or isinstance(training, dict)):
        raise UserError("damaged: its metadata is not a table; get the file again")
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
        raise UserError(f"{path}: damaged, not a complete .safetensors file; get the file again") from error
    if not isinstance(about, dict):
        raise UserError(f"{path}: holds weights without Polyolo's description of their network; use a .pt checkpoint")
    return {**about, "state": state, "training": None}
