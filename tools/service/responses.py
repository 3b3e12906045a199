"""Conversion of results to the JSON values that `tools/service/schema.py` describes."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from tools.service.schema import MaskFormat
from utils.core.contracts import HeadSpec, Results
from utils.core.segment_types import PanopticMap
from utils.ops.class_fractions import class_fractions
from utils.ops.masks import encode_rle, largest_contour
from utils.ops.panoptic import PanopticMerger, encode_png
from utils.plots.draw import class_name, palette_colour
from utils.plots.panoptic_sink import segment_colour
from utils.plots.semantic_overlay import class_colour
from utils.plots.semantic_style import SemanticStyle

TOP_CLASSES = 5


@dataclass(frozen=True)
class ResponseFormat:
    """Content of a response."""

    specs: Mapping[str, HeadSpec] = field(default_factory=dict)
    names: Sequence[str] = ()  # class names of the main head
    masks: MaskFormat = "polygon"
    pixels: bool = True  # include the semantic map as PNG
    panoptic: bool = False  # include the panoptic map
    deadline: float = float("inf")  # of time.monotonic(); checked between masks, which take long for large images

    def names_of(self, head: str) -> tuple[str, ...]:
        """Get the class names of a head."""
        return (self.specs[head].names if head in self.specs else ()) or tuple(self.names)


def encode_result(result: Results, form: ResponseFormat) -> dict[str, Any]:
    """Convert the results of an image to JSON values.

    Args:
        result: The results.
        form: What to include.

    Returns:
        Values of `schema.ImageResult`.

    Raises:
        TimeoutError: The deadline has passed.
    """
    height, width = result.info.geometry.original_hw
    values: dict[str, Any] = {"name": result.info.path, "width": width, "height": height}
    if result.boxes is not None:
        values["detections"] = _encode_detections(result, form)
    if result.semantic is not None:
        values["semantic"] = _encode_semantic(result.semantic.numpy(), form.names_of("semantic"), form.pixels)
    if form.panoptic and (panoptic := _merge(result, form)) is not None:
        values["panoptic"] = _encode_panoptic(panoptic, form.names_of("semantic"))
    if result.probabilities is not None:
        names = form.names_of("classify")
        scores, order = result.probabilities.float().topk(min(TOP_CLASSES, len(result.probabilities)))
        values["top5"] = [
            {"class": index, "name": class_name(names, index), "confidence": round(score, 5)}
            for index, score in zip(order.tolist(), scores.tolist(), strict=True)
        ]
    return values


def _encode_detections(result: Results, form: ResponseFormat) -> list[dict[str, Any]]:
    assert result.boxes is not None
    assert result.scores is not None
    assert result.classes is not None
    detections = []
    for row, (box, score, index) in enumerate(
        zip(result.boxes.tolist(), result.scores.tolist(), result.classes.tolist(), strict=True)
    ):
        detection: dict[str, Any] = {
            "class": index,
            "name": class_name(form.names, index),
            "confidence": round(score, 5),
            "box": [round(side, 2) for side in box],
            "color": _hex(palette_colour(index)),
        }
        if result.fine_masks is not None and form.masks != "none":
            if time.monotonic() > form.deadline:
                raise TimeoutError
            mask = result.fine_masks.original(row)
            if form.masks != "rle":
                detection["polygon"] = largest_contour(mask).astype(int).tolist()
            if form.masks != "polygon":
                detection["rle"] = encode_rle(mask)
        detections.append(detection)
    return detections


def _hex(colour: tuple[int, int, int]) -> str:
    blue, green, red = colour
    return f"#{red:02x}{green:02x}{blue:02x}"


def _encode_semantic(classes: np.ndarray, names: tuple[str, ...], pixels: bool) -> dict[str, Any]:
    """Convert an (H, W) semantic map to class fractions and, with `pixels`, a grey PNG of class indices."""
    style = SemanticStyle(names)
    values: dict[str, Any] = {
        "classes": [
            {
                "class": index,
                "name": class_name(names, index),
                "share": round(fraction, 5),
                "color": _hex(class_colour(index, style)),
            }
            for index, fraction in class_fractions(classes).items()
        ]
    }
    if pixels:
        done, png = cv2.imencode(".png", classes)
        assert done
        values["png"] = base64.b64encode(png.tobytes()).decode()
    return values


def _merge(result: Results, form: ResponseFormat) -> PanopticMap | None:
    """Merge a panoptic map; None for models without masks or semantic maps, or whose heads name things differently."""
    things = next((form.names_of(name) for name, spec in form.specs.items() if spec.num_masks), ())
    names = form.names_of("semantic")
    if result.fine_masks is None or result.semantic is None or not set(things) <= set(names):
        return None
    return PanopticMerger(things, names)(result)


def _encode_panoptic(panoptic: PanopticMap, names: tuple[str, ...]) -> dict[str, Any]:
    """Convert a panoptic map to its segments and a colour PNG of their ids."""
    segments, style = [], SemanticStyle(names)
    for one in panoptic.segments:
        name = class_name(names, one.category)
        entry = {"id": one.id, "class": one.category, "name": name, "thing": one.is_thing, "area": one.area}
        entry["color"] = _hex(segment_colour(one, style))
        segments.append(entry if one.score is None else {**entry, "confidence": round(one.score, 5)})
    return {"segments": segments, "png": base64.b64encode(encode_png(panoptic.ids)).decode()}


def encode_flask_rows(result: Results, form: ResponseFormat) -> list[dict[str, Any]]:
    """Convert boxes to the records of YOLOv5's Flask REST API example."""
    return [
        {
            **dict(zip(("xmin", "ymin", "xmax", "ymax"), row["box"], strict=True)),
            "confidence": row["confidence"],
            "class": row["class"],
            "name": row["name"],
        }
        for row in _encode_detections(result, form)
    ]
