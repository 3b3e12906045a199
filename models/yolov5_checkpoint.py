"""Conversion of YOLOv5 (v5.0 to v7.0) and multiyolov5 checkpoints, read as inert records, to networks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.architecture import IMAGENET
from models.builder import build_network
from models.fuse import fuse, fuse_blocks
from models.layer_plan import HEADS, LAYERS
from models.network import Network
from models.transfer import load_state
from models.unpickle import Record
from utils.core.errors import UserError

_NETWORKS = {"Model", "DetectionModel", "SegmentationModel", "ClassificationModel", "BaseModel"}
_INNER_PARTS = {"Proto", "TransformerLayer", "TransformerBlock", "Ensemble"}  # never named by a YAML row
_MAX_MODULES = 100_000  # bounds the walk over a damaged file whose modules form a cycle
MAX_CLASSES = 1_000_000
CITYSCAPES = (  # multiyolov5's files do not name their semantic classes; 19 are taken for those of Cityscapes
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_ALIASES = {"anchor_grid"}  # buffers of old files that this project computes


@dataclass(frozen=True)
class _Module:
    """A module of the file: dotted path, record and attributes."""

    path: str
    record: Record
    state: dict[str, Any]

    def child(self, name: str) -> _Module | None:
        """Return the submodule `name`, or None."""
        record = _table(self.state, "_modules").get(name)
        return _module(f"{self.path}.{name}", record) if isinstance(record, Record) else None

    @property
    def class_name(self) -> str:
        """Name of the class without its package."""
        return self.record.name.name


def _module(path: str, record: Record) -> _Module:
    state = record.state
    return _Module(path, record, state if isinstance(state, dict) else {})


def _table(state: dict[str, Any], name: str) -> dict[str, Any]:
    table = state.get(name)
    return table if isinstance(table, dict) else {}


def _walk(root: _Module) -> Iterator[_Module]:
    """Yield `root` and all modules below it; a cycle raises UserError."""
    pending, count = [root], 0
    while pending:
        module = pending.pop()
        count += 1
        if count > _MAX_MODULES:
            raise UserError("damaged: its modules do not form a tree")
        yield module
        prefix = f"{module.path}." if module.path else ""
        for name, record in reversed(list(_table(module.state, "_modules").items())):
            if isinstance(record, Record):
                pending.append(_module(f"{prefix}{name}", record))


def _tensors(root: _Module) -> dict[str, Tensor]:
    """Collect the parameters and persistent buffers of the file's network by name."""
    state: dict[str, Tensor] = {}
    for module in _walk(root):
        hidden = module.state.get("_non_persistent_buffers_set")
        skipped = _ALIASES | (hidden if isinstance(hidden, set) else set())
        for table in ("_parameters", "_buffers"):
            for name, value in _table(module.state, table).items():
                if isinstance(value, Tensor) and name not in skipped:
                    state[f"{module.path}.{name}"] = value
    return state


def is_yolov5_checkpoint(content: Any) -> bool:
    """Check for the structure that YOLOv5's training writes: a dictionary with a module under `model` or `ema`."""
    return isinstance(content, dict) and any(isinstance(content.get(key), Record) for key in ("ema", "model"))


def convert_network(content: dict[str, Any], source: str) -> tuple[Network, dict[str, Any]]:
    """Build the network of a YOLOv5 checkpoint.

    Args:
        content: of the file, see `is_yolov5_checkpoint`. The averaged weights (`ema`) take precedence.
        source: name of the file.

    Returns:
        The network, and plain facts about its training (epoch, date, …).

    Raises:
        UserError: The network cannot be rebuilt; the text does not contain the path.
    """
    record = content["ema"] if isinstance(content.get("ema"), Record) else content["model"]
    root = _module("", record)
    if record.name.name not in _NETWORKS or not record.name.module.startswith("models."):
        raise UserError(f"holds a {record.name}, not a YOLOv5 network")
    _check_layers(root)
    layers = _rows_of(root)
    state = _tensors(root)
    if isinstance(root.state.get("yaml"), dict):
        description, num_classes = _described(root, layers, state, source)
    else:
        description, num_classes = _classifier(layers, source), int(state[f"{layers[-1].path}.linear.bias"].shape[0])
    names = _names(root.state.get("names"), num_classes)
    with torch.random.fork_rng(devices=[]):  # the random weights are replaced: a run's random stream must not advance
        network = build_network(description, num_classes, names, _anchors_per_level(layers))
    if _is_fused(root):
        network = fuse_blocks(network)
    load_state(network, state)
    if _is_fused(root):
        network = fuse(network)  # also folds the pairs that these files leave
    _adopt_anchors(network)
    return network, _meta(content)


def _rows_of(root: _Module) -> list[_Module]:
    container = root.child("model")
    if container is None or not _table(container.state, "_modules"):
        raise UserError("its network has no layers; get the file again")
    names = _table(container.state, "_modules")
    rows = [_module(f"model.{name}", record) for name, record in names.items() if isinstance(record, Record)]
    if [row.path for row in rows] != [f"model.{index}" for index in range(len(names))]:
        raise UserError("damaged: its layers are not numbered")
    return rows


def _check_layers(root: _Module) -> None:
    kinds = {m.class_name: m.record.name.module for m in _walk(root) if m.record.name.module.startswith("models")}
    known = {*LAYERS.names(), *(HEADS.get(name).__name__ for name in HEADS.names()), *_NETWORKS, *_INNER_PARTS}
    if unknown := sorted(kinds.keys() - known):
        raise UserError(f"its network has layers unknown to YOLOv5 and this project: {', '.join(unknown)[:200]}")


def _activation(module: _Module) -> str | None:
    """Format a block's activation as YAML text, or return None."""
    act = module.child("act")
    if act is None or act.class_name == "Identity":
        return None
    if act.class_name == "LeakyReLU":
        return f"nn.LeakyReLU({float(act.state.get('negative_slope', 0.01))!r})"
    own = act.record.name.module.startswith("utils") and act.class_name in ("FReLU", "AconC", "MetaAconC")
    return act.class_name if own else "nn.Mish" if act.class_name == "MemoryEfficientMish" else f"nn.{act.class_name}"


def _activations(root: _Module, blocks: tuple[str, ...]) -> str | None:
    found = {text for m in _walk(root) if m.class_name in blocks and (text := _activation(m)) is not None}
    if len(found) > 1:
        raise UserError(f"its network has several activations ({', '.join(sorted(found))}), which is not supported")
    return found.pop() if found else None


def _described(
    root: _Module, layers: list[_Module], state: dict[str, Tensor], source: str
) -> tuple[dict[str, Any], int]:
    """Describe a network from the YAML in its file; return the description and the number of classes."""
    written = {str(key): value for key, value in root.state["yaml"].items()}
    plain = {key: value for key, value in written.items() if key not in ("yaml_file", "names")}
    num_classes = root.state.get("nc", layers[-1].state.get("nc", plain.get("nc")))
    if not isinstance(num_classes, int) or not 1 <= num_classes <= MAX_CLASSES:
        raise UserError("damaged: the number of classes is missing or invalid")
    extra = {
        "activation": plain.get("activation") or _activations(root, ("Conv", "DWConv")),
        "csp_activation": _activations(root, ("BottleneckCSP", "MixConv2d")),
    }
    file = root.state.get("yaml_file")
    name = {"name": file.rsplit(".", 1)[0]} if isinstance(file, str) else {}
    chosen = {key: value for key, value in extra.items() if value not in (None, "nn.SiLU")}
    semantic_names = {"head_names": {"semantic": list(CITYSCAPES)}} if plain.get("n_segcls") == len(CITYSCAPES) else {}
    return {**semantic_names, **plain, **chosen, **name, "nc": num_classes, "source": source}, num_classes


def _anchors_per_level(layers: list[_Module]) -> int | None:
    for layer in layers:
        anchors = _table(layer.state, "_buffers").get("anchors")
        if isinstance(anchors, Tensor) and anchors.ndim == 3:
            return int(anchors.shape[1])
    return None


def _is_fused(root: _Module) -> bool:
    blocks = [module for module in _walk(root) if module.class_name == "Conv"]
    return bool(blocks) and all("bn" not in _table(block.state, "_modules") for block in blocks)


def _adopt_anchors(network: Network) -> None:
    """Copy the anchors of the weights into the description."""
    for spec in network.specs.values():
        if spec.anchors:
            levels = [[side for anchor in level for side in anchor] for level in spec.anchors]
            network.architecture = {**network.architecture, "anchors": levels}


def _names(written: Any, num_classes: int) -> tuple[str, ...]:
    values = list(written.values()) if isinstance(written, dict) else written
    if isinstance(values, list) and len(values) == num_classes:
        return tuple(str(value)[:200] if isinstance(value, (str, int)) else "?" for value in values)
    return tuple(str(index) for index in range(num_classes))


def _meta(content: dict[str, Any]) -> dict[str, Any]:
    """Select the plain facts that YOLOv5 writes beside the network."""
    plain = ("epoch", "best_fitness", "updates", "date", "wandb_id")
    return {key: content[key] for key in plain if isinstance(content.get(key), (str, int, float))}


def _classifier(layers: list[_Module], source: str) -> dict[str, Any]:
    """Describe a classifier from the attributes of its layers, since these files carry no YAML."""
    if layers[-1].class_name != "Classify":
        raise UserError(f"is a classification network that ends in {layers[-1].class_name}, expected Classify")
    rows = []
    for layer in layers:
        origin = layer.state.get("f", -1)
        if layer.class_name not in _ROWS or not isinstance(origin, (int, list)):
            raise UserError(f"is a classification network with the layer {layer.class_name}, which cannot be rebuilt")
        repeats, arguments = _ROWS[layer.class_name](layer)
        rows.append([origin, repeats, layer.class_name, arguments])
    fixed = {"depth_multiple": 1.0, "width_multiple": 1.0, "channel_multiple": 1, "exempt_output_width": False}
    return {
        **fixed,
        "normalise": IMAGENET,
        "nc": 1,
        "backbone": rows,
        "head": [],
        "name": source.rsplit(".", 1)[0],
        "source": source,
    }


def _attributes(module: _Module, *path: str) -> dict[str, Any]:
    """Return the attributes of the module at `path` below `module`."""
    found: _Module | None = module
    for name in path:
        found = found.child(name) if found is not None else None
    if found is None:
        raise UserError(f"damaged: {module.path} ({module.class_name}) has no {'.'.join(path)}")
    return found.state


def _conv_row(module: _Module) -> tuple[int, list[Any]]:
    c = _attributes(module, "conv")
    return 1, [c["out_channels"], *(list(c[key]) for key in ("kernel_size", "stride", "padding")), c["groups"]]


def _focus_row(module: _Module) -> tuple[int, list[Any]]:
    c = _attributes(module, "conv", "conv")
    return 1, [c["out_channels"], *(list(c[key]) for key in ("kernel_size", "stride", "padding")), c["groups"]]


def _csp_row(module: _Module) -> tuple[int, list[Any]]:
    last = _attributes(module, "cv4" if module.class_name == "BottleneckCSP" else "cv3", "conv")
    blocks = _table(_attributes(module, "m"), "_modules")
    adds = bool(_attributes(module, "m", "0").get("add"))
    return len(blocks), [last["out_channels"], adds]


def _pool_row(module: _Module) -> tuple[int, list[Any]]:
    out_channels = _attributes(module, "cv2", "conv")["out_channels"]
    pools = _table(_attributes(module, "m"), "_modules")
    if module.class_name == "SPP":
        return 1, [out_channels, [_attributes(module, "m", index)["kernel_size"] for index in pools]]
    return 1, [out_channels, _attributes(module, "m")["kernel_size"]]


def _classify_row(module: _Module) -> tuple[int, list[Any]]:
    c = _attributes(module, "conv", "conv")
    dropout = float(_attributes(module, "drop").get("p", 0.0))
    shape = [list(c[key]) for key in ("kernel_size", "stride", "padding")]
    return 1, ["nc", *shape, c["groups"], dropout, c["out_channels"]]


_ROWS = {
    "Conv": _conv_row, "Focus": _focus_row, "C3": _csp_row, "BottleneckCSP": _csp_row, "SPP": _pool_row,
    "SPPF": _pool_row, "Classify": _classify_row,
}  # fmt: skip
