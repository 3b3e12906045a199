"""What an exported file says about itself: one record, as JSON inside the file or beside it."""

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

KEY = "polyolo"  # of the record in a file's own table of metadata
FORMAT = 1
PRECISIONS = ("fp32", "fp16", "int8")
_FAULTS = (TypeError, ValueError, LookupError, AttributeError)


@dataclass(frozen=True)
class Suppression:
    """Non-maximum suppression that is part of the graph (behaviour.md 5.1 with one class per box)."""

    confidence: float = 0.25
    iou: float = 0.45
    agnostic: bool = False
    per_class: int = 300  # boxes kept of each class
    total: int = 300  # boxes kept of an image


@dataclass(frozen=True)
class Description:
    """Everything that is needed to run an exported file like the checkpoint it came from.

    `outputs` names the graph's tensors in order: (head, key of its decoded tensors). A graph with `suppression` gives
    for every head with boxes (B, total, 6 + masks) rows of x1, y1, x2, y2, score, class and mask coefficients instead,
    by falling score, zeros after the last.
    """

    specs: dict[str, HeadSpec]
    names: tuple[str, ...]
    stride: int
    image_hw: tuple[int, int]
    outputs: tuple[tuple[str, str], ...]
    batch: int = 1
    dynamic: bool = False  # takes any batch and any multiple of the stride; else exactly `batch` and `image_hw`
    colors: str = ""  # rgb or bgr: takes (B, H, W, 3) uint8 in that order; empty: (B, 3, H, W) floats, RGB in [0, 1]
    normalised: bool = False  # wants ImageNet's mean and deviation taken out first; ours do that themselves
    suppression: Suppression | None = None
    precision: str = "fp32"
    made_with: dict[str, str] = field(default_factory=dict)  # versions
    meta: dict[str, Any] = field(default_factory=dict)  # what the checkpoint says about its training

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return what the graph calls its outputs: output0, output1, … as YOLOv5's files do."""
        return tuple(f"output{index}" for index in range(len(self.outputs)))

    def with_precision(self, precision: str) -> Description:
        """Return the same for a file of another precision."""
        return replace(self, precision=precision)

    def to_json(self) -> str:
        """Return the record as text."""
        return json.dumps({"format": FORMAT, "polyolo": VERSION, **asdict(self)})

    def as_yolov5(self) -> dict[str, str]:
        """Return the two entries that YOLOv5's own readers look for."""
        return {"stride": str(self.stride), "names": str(dict(enumerate(self.names)))}


def from_json(text: str, path: Path) -> Description:
    """Return the record in `text`, found in the file `path`; a damaged one is a UserError."""
    try:
        values = json.loads(text)
        if values.pop("format") != FORMAT:
            raise UserError(
                f"{path}: exported by another version of Polyolo ({values.get('polyolo')}); export it again"
            )
        values.pop("polyolo")
        values["specs"] = {name: _spec(spec) for name, spec in values["specs"].items()}
        values["names"], values["image_hw"] = tuple(map(str, values["names"])), _pair(values["image_hw"])
        values["outputs"] = tuple((str(head), str(key)) for head, key in values["outputs"])
        values["stride"], values["batch"] = int(values["stride"]), int(values["batch"])
        if values["suppression"] is not None:
            values["suppression"] = Suppression(**values["suppression"])
        return Description(**values)
    except _FAULTS as error:
        raise UserError(f"{path}: its description is damaged; export it again") from error


def _spec(values: Mapping[str, Any]) -> HeadSpec:
    known = {one.name for one in fields(HeadSpec)}
    return HeadSpec(**{key: _tuples(value) for key, value in values.items() if key in known})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    height, width = values
    return int(height), int(width)


@dataclass(frozen=True)
class Foreign:
    """What can be seen of a file that YOLOv5 exported. -1 stands for a size that is not fixed."""

    entries: Mapping[str, str]  # its metadata: `stride` and `names`
    input_shape: tuple[int, ...]  # (B, 3, H, W)
    output_shapes: tuple[tuple[int, ...], ...]


def from_yolov5(seen: Foreign, path: Path) -> Description:
    """Return the record of a file that YOLOv5 exported (behaviour.md 7.3), told by the shapes of its outputs.

    One output (B, N, 5 + C) finds boxes; a second, (B, M, h, w), belongs to masks; (B, C) are logits of the image.
    """
    shapes = seen.output_shapes
    names = _names(seen.entries.get("names", ""), path)
    try:
        stride = int(float(seen.entries.get("stride", 32)))
    except ValueError as error:
        raise UserError(f"{path}: its metadata says `stride: {seen.entries['stride']}`, which is no number") from error
    outputs: tuple[tuple[str, str], ...]
    if len(shapes[0]) == 2:
        spec, outputs = _class_spec(shapes[0][1]), (("classify", "logits"),)
    elif len(shapes[0]) == 3 and len(shapes) >= 2 and len(shapes[1]) == 4:
        masks = shapes[1][1]
        spec = HeadSpec("segment", shapes[0][2] - 5 - masks, _strides(stride), (), masks)
        outputs = (("segment", "predictions"), ("segment", "prototypes"))
    elif len(shapes[0]) == 3:
        spec, outputs = HeadSpec("detect", shapes[0][2] - 5, _strides(stride)), (("detect", "predictions"),)
    else:
        known = "(B, N, 5 + classes), (B, N, 5 + classes + masks) with prototypes, or (B, classes)"
        raise UserError(f"{path}: outputs {shapes[0]}, which no exported YOLOv5 has; wanted {known}")
    if spec.num_classes < 1:
        raise UserError(f"{path}: its output {shapes[0]} has no columns for classes; is the file a YOLOv5 export?")
    names = names or tuple(f"class{index}" for index in range(spec.num_classes))
    if len(names) < spec.num_classes:
        raise UserError(f"{path}: names {len(names)} classes, but its output has {spec.num_classes}")
    height, width = seen.input_shape[2:]
    dynamic = min(height, width, seen.input_shape[0]) < 1
    return Description(
        {spec.name: spec},
        names[: spec.num_classes],
        stride,
        (height, width) if min(height, width) > 0 else (640, 640),
        outputs,
        max(1, seen.input_shape[0]),
        dynamic,
        normalised=spec.name == "classify",  # behaviour.md 4.12
    )


def _class_spec(num_classes: int) -> HeadSpec:
    """Return the class head's record; how its images are cut is said where the record has room for it."""
    more = {"fit": "centre", "usual_px": 224}
    known = {one.name for one in fields(HeadSpec)}
    return HeadSpec("classify", num_classes, **{key: value for key, value in more.items() if key in known})  # type: ignore[arg-type]


def _strides(largest: int) -> tuple[int, ...]:
    return (8, 16, 32, 64) if largest == 64 else (8, 16, 32)


def _names(text: str, path: Path) -> tuple[str, ...]:
    """Return the class names that YOLOv5 writes as Python's text of a table or list."""
    if not text:
        return ()
    try:
        value = ast.literal_eval(text)
        values = [value[key] for key in sorted(value)] if isinstance(value, dict) else list(value)
    except (*_FAULTS, SyntaxError, MemoryError, RecursionError) as error:
        raise UserError(f"{path}: its metadata `names` is no list or table of class names") from error
    return tuple(str(name) for name in values)
