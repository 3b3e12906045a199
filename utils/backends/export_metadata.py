"""Metadata of an exported file, stored as JSON inside the file or beside it."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from utils.core.contracts import HeadSpec
from utils.core.errors import UserError
from utils.core.version import VERSION

METADATA_KEY = "polyolo"  # name of our entry in a file's own metadata table
FORMAT_VERSION = 1
_JSON_KEYS = {"nms": "suppression", "versions": "made_with"}  # field -> key in files of format 1, where they differ
_PARSE_ERRORS = (TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True)
class NmsSettings:
    """Parameters of non-maximum suppression that is part of the exported graph, one class per box."""

    confidence: float = 0.25
    iou: float = 0.45
    agnostic: bool = False
    per_class: int = 300  # maximum number of boxes per class
    total: int = 300  # maximum number of boxes per image


@dataclass(frozen=True)
class ExportMetadata:
    """Everything that is needed to run an exported file like the checkpoint it was exported from.

    `outputs` lists the graph's output tensors in order as (head, key of the decoded tensor). With `nms`, the
    predictions of every box head are (B, total, 6 + masks) rows of x1, y1, x2, y2, score, class and mask coefficients,
    sorted by descending score and padded with zeros.
    """

    specs: dict[str, HeadSpec]
    names: tuple[str, ...]
    stride: int
    image_hw: tuple[int, int]
    outputs: tuple[tuple[str, str], ...]
    batch: int = 1
    dynamic: bool = False  # accepts any batch and any multiple of the stride; else exactly `batch` and `image_hw`
    colors: str = ""  # rgb or bgr: the input is (B, H, W, 3) uint8; empty: (B, 3, H, W) float RGB in [0, 1]
    normalised: bool = False  # expects ImageNet-normalised input; exported networks of this project normalise inside
    nms: NmsSettings | None = None
    precision: str = "fp32"  # fp32, fp16 or int8
    versions: dict[str, str] = field(default_factory=dict)  # of the software that wrote the file
    meta: dict[str, Any] = field(default_factory=dict)  # entries of the checkpoint's training metadata

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the graph's outputs: output0, output1, … as in YOLOv5's exported files."""
        return tuple(f"output{index}" for index in range(len(self.outputs)))

    def with_precision(self, precision: str) -> ExportMetadata:
        """Copy the metadata for a file of another precision."""
        return replace(self, precision=precision)

    def to_json(self) -> str:
        """Serialise the metadata."""
        values = {_JSON_KEYS.get(key, key): value for key, value in asdict(self).items()}
        return json.dumps({"format": FORMAT_VERSION, "polyolo": VERSION, **values})

    def to_yolov5(self) -> dict[str, str]:
        """Create the metadata entries that readers of YOLO files expect: stride, names, input size and batch."""
        entries: dict[str, object] = {
            "stride": self.stride,
            "names": dict(enumerate(self.names)),
            "imgsz": list(self.image_hw),
            "batch": self.batch,
        }
        return {key: str(value) for key, value in entries.items()}


def parse_metadata(text: str, path: Path) -> ExportMetadata:
    """Parse the JSON metadata of an exported file.

    Args:
        text: What `ExportMetadata.to_json` wrote.
        path: The file it was read from, for error messages.

    Returns:
        The metadata.

    Raises:
        UserError: The text is damaged or was written by an incompatible version.
    """
    try:
        values = json.loads(text)
        if values.pop("format") != FORMAT_VERSION:
            raise UserError(
                f"{path}: exported by an incompatible version of Polyolo ({values.get('polyolo')}); export it again"
            )
        values.pop("polyolo")
        for name, key in _JSON_KEYS.items():
            values[name] = values.pop(key)
        values["specs"] = {name: _parse_spec(spec) for name, spec in values["specs"].items()}
        values["names"] = tuple(map(str, values["names"]))
        height, width = values["image_hw"]
        values["image_hw"] = (int(height), int(width))
        values["outputs"] = tuple((str(head), str(key)) for head, key in values["outputs"])
        values["stride"], values["batch"] = int(values["stride"]), int(values["batch"])
        if values["nms"] is not None:
            values["nms"] = NmsSettings(**values["nms"])
        return ExportMetadata(**values)
    except _PARSE_ERRORS as error:
        raise UserError(f"{path}: its metadata is damaged; export it again") from error


def _parse_spec(values: Mapping[str, Any]) -> HeadSpec:
    known = {one.name for one in fields(HeadSpec)}
    return HeadSpec(**{key: _lists_to_tuples(value) for key, value in values.items() if key in known})


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_lists_to_tuples(one) for one in value) if isinstance(value, list) else value


@dataclass(frozen=True)
class ForeignFile:
    """Properties of a file that YOLOv5 exported, as its runtime reports them. -1 marks a dynamic dimension."""

    entries: Mapping[str, str]  # metadata entries: `stride` and `names`
    input_shape: tuple[int, ...]  # (B, 3, H, W)
    output_shapes: tuple[tuple[int, ...], ...]


def infer_metadata(file: ForeignFile, path: Path) -> ExportMetadata:
    """Infer the metadata of a file that YOLOv5 exported from the shapes of its outputs.

    A single output (B, N, 5 + C) holds boxes; a second one, (B, M, h, w), holds mask prototypes; (B, C) holds logits
    of whole images. See docs/reference/checkpoints.md.

    Args:
        file: Metadata entries and tensor shapes.
        path: The file, for error messages.

    Returns:
        The metadata.

    Raises:
        UserError: The outputs or metadata entries are not those of a YOLOv5 export.
    """
    shapes = file.output_shapes
    names = _parse_names(file.entries.get("names", ""), path)
    try:
        stride = int(float(file.entries.get("stride", 32)))
    except ValueError as error:
        raise UserError(f"{path}: metadata entry `stride` is {file.entries['stride']!r}; expected a number") from error
    outputs: tuple[tuple[str, str], ...]
    if len(shapes[0]) == 2:
        spec = HeadSpec("classify", shapes[0][1], fit="centre", usual_px=224)
        outputs = (("classify", "logits"),)
    elif len(shapes[0]) == 3 and len(shapes) >= 2 and len(shapes[1]) == 4:
        masks = shapes[1][1]
        spec = HeadSpec("segment", shapes[0][2] - 5 - masks, _level_strides(stride), (), masks)
        outputs = (("segment", "predictions"), ("segment", "prototypes"))
    elif len(shapes[0]) == 3:
        spec, outputs = HeadSpec("detect", shapes[0][2] - 5, _level_strides(stride)), (("detect", "predictions"),)
    else:
        expected = "(B, N, 5 + classes), (B, N, 5 + classes + masks) with prototypes, or (B, classes)"
        raise UserError(f"{path}: output shape {shapes[0]} is not that of a YOLOv5 export; expected {expected}")
    if spec.num_classes < 1:
        raise UserError(f"{path}: output shape {shapes[0]} has no class columns; is the file a YOLOv5 export?")
    names = names or tuple(f"class{index}" for index in range(spec.num_classes))
    if len(names) < spec.num_classes:
        raise UserError(f"{path}: metadata names {len(names)} classes, but the output has {spec.num_classes}")
    height, width = file.input_shape[2:]
    dynamic = min(height, width, file.input_shape[0]) < 1
    return ExportMetadata(
        {spec.name: spec},
        names[: spec.num_classes],
        stride,
        (height, width) if min(height, width) > 0 else (640, 640),
        outputs,
        max(1, file.input_shape[0]),
        dynamic,
        normalised=spec.name == "classify",  # YOLOv5's classifiers are exported without their normalisation
    )


def _level_strides(largest: int) -> tuple[int, ...]:
    return (8, 16, 32, 64) if largest == 64 else (8, 16, 32)


def _parse_names(text: str, path: Path) -> tuple[str, ...]:
    """Parse class names that YOLOv5 wrote as the Python literal of a dict or list."""
    if not text:
        return ()
    try:
        value = ast.literal_eval(text)
        values: Sequence[Any] = [value[key] for key in sorted(value)] if isinstance(value, dict) else list(value)
    except (*_PARSE_ERRORS, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(f"{path}: metadata entry `names` is not a list or dict of class names") from error
    return tuple(str(name) for name in values)
