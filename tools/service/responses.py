"""Results as plain values for JSON; `tools/service/schema.py` says what they look like."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from utils.core.contracts import HeadSpec, Results
from utils.ops.class_fractions import class_fractions
from utils.ops.masks import encode_rle, largest_contour
from utils.plots.draw import class_name, palette_colour
from utils.plots.semantic_overlay import SemanticStyle, class_colour

TOP = 5
MASKS = ("polygon", "rle", "both", "none")


@dataclass(frozen=True)
class Form:
    """How results are told."""

    specs: Mapping[str, HeadSpec] = field(default_factory=dict)
    names: Sequence[str] = ()  # of the main head's classes
    masks: str = "polygon"  # one of MASKS
    pixels: bool = True  # the map of classes as PNG
    until: float = float("inf")  # of time.monotonic(): later, TimeoutError; masks of large images take long

    def names_of(self, head: str) -> tuple[str, ...]:
        """Return the names of a head's classes."""
        return (self.specs[head].names if head in self.specs else ()) or tuple(self.names)


def answer(result: Results, form: Form) -> dict[str, Any]:
    """Return what was found in one image."""
    height, width = result.info.geometry.original_hw
    said: dict[str, Any] = {"name": result.info.path, "width": width, "height": height}
    if result.boxes is not None:
        said["detections"] = _detections(result, form)
    if result.semantic is not None:
        said["semantic"] = _semantic(result.semantic.numpy(), form.names_of("semantic"), form.pixels)
    if result.probabilities is not None:
        names = form.names_of("classify")
        scores, order = result.probabilities.float().topk(min(TOP, len(result.probabilities)))
        said["top5"] = [
            {"class": index, "name": class_name(names, index), "confidence": round(score, 5)}
            for index, score in zip(order.tolist(), scores.tolist(), strict=True)
        ]
    return said


def _detections(result: Results, form: Form) -> list[dict[str, Any]]:
    assert result.boxes is not None
    assert result.scores is not None
    assert result.classes is not None
    rows = []
    for row, (box, score, index) in enumerate(
        zip(result.boxes.tolist(), result.scores.tolist(), result.classes.tolist(), strict=True)
    ):
        found: dict[str, Any] = {
            "class": index,
            "name": class_name(form.names, index),
            "confidence": round(score, 5),
            "box": [round(side, 2) for side in box],
            "color": _hex(palette_colour(index)),
        }
        if result.fine_masks is not None and form.masks != "none":
            if time.monotonic() > form.until:
                raise TimeoutError
            mask = result.fine_masks.original(row)
            if form.masks != "rle":
                found["polygon"] = largest_contour(mask).astype(int).tolist()
            if form.masks != "polygon":
                found["rle"] = encode_rle(mask)
        rows.append(found)
    return rows


def _hex(colour: tuple[int, int, int]) -> str:
    blue, green, red = colour
    return f"#{red:02x}{green:02x}{blue:02x}"


def _semantic(classes: np.ndarray, names: tuple[str, ...], pixels: bool) -> dict[str, Any]:
    """Return the share of each class that occurs, and the map as a grey PNG of class numbers."""
    look = SemanticStyle(names)
    said: dict[str, Any] = {
        "classes": [
            {
                "class": index,
                "name": class_name(names, index),
                "share": round(share, 5),
                "color": _hex(class_colour(index, look)),
            }
            for index, share in class_fractions(classes).items()
        ]
    }
    if pixels:
        done, png = cv2.imencode(".png", classes)
        assert done
        said["png"] = base64.b64encode(png.tobytes()).decode()
    return said


def flask_rows(result: Results, form: Form) -> list[dict[str, Any]]:
    """Return the records that YOLOv5's REST API gives for an image (behaviour.md 8.4)."""
    return [
        {
            **dict(zip(("xmin", "ymin", "xmax", "ymax"), row["box"], strict=True)),
            "confidence": row["confidence"],
            "class": row["class"],
            "name": row["name"],
        }
        for row in _detections(result, form)
    ]
