"""Results as plain values for JSON."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from utils.core.contracts import HeadSpec, Results
from utils.ops.masks import largest_outline, run_lengths
from utils.plots.draw import class_name, colour_of

TOP = 5
MASKS = ("polygon", "rle", "both", "none")


def answer(
    result: Results, specs: dict[str, HeadSpec], names: Sequence[str], masks: str, pixels: bool
) -> dict[str, Any]:
    """Return what was found in one image; `masks` is one of MASKS, `pixels` asks for the map of classes as PNG."""
    height, width = result.info.geometry.original_hw
    said: dict[str, Any] = {"name": result.info.path, "width": width, "height": height}
    if result.boxes is not None:
        said["detections"] = _detections(result, names, masks)
    if result.semantic is not None:
        own = next((spec.names for head, spec in specs.items() if head == "semantic"), ()) or names
        said["semantic"] = _semantic(result.semantic.numpy(), own, pixels)
    if result.probabilities is not None:
        scores, order = result.probabilities.float().topk(min(TOP, len(result.probabilities)))
        said["top5"] = [
            {"class": index, "name": class_name(names, index), "confidence": round(score, 5)}
            for index, score in zip(order.tolist(), scores.tolist(), strict=True)
        ]
    return said


def _detections(result: Results, names: Sequence[str], masks: str) -> list[dict[str, Any]]:
    assert result.boxes is not None
    assert result.scores is not None
    assert result.classes is not None
    rows = []
    for row, (box, score, index) in enumerate(
        zip(result.boxes.tolist(), result.scores.tolist(), result.classes.tolist(), strict=True)
    ):
        found: dict[str, Any] = {
            "class": index,
            "name": class_name(names, index),
            "confidence": round(score, 5),
            "box": [round(side, 2) for side in box],
            "color": _hex(colour_of(index)),
        }
        if result.fine_masks is not None and masks != "none":
            mask = result.fine_masks.original(row)
            if masks != "rle":
                found["polygon"] = largest_outline(mask).tolist()
            if masks != "polygon":
                found["rle"] = run_lengths(mask)
        rows.append(found)
    return rows


def _hex(colour: tuple[int, int, int]) -> str:
    blue, green, red = colour
    return f"#{red:02x}{green:02x}{blue:02x}"


def _semantic(classes: np.ndarray, names: Sequence[str], pixels: bool) -> dict[str, Any]:
    """Return the share of each class that occurs, and the map as a grey PNG of class numbers."""
    counts = np.bincount(classes.ravel(), minlength=256)
    present = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    said: dict[str, Any] = {
        "classes": [
            {
                "class": index,
                "name": class_name(names, index),
                "share": round(float(counts[index]) / classes.size, 5),
                "color": _hex(colour_of(index)),
            }
            for index in present
        ]
    }
    if pixels:
        done, png = cv2.imencode(".png", classes)
        assert done
        said["png"] = base64.b64encode(png.tobytes()).decode()
    return said


def flask_rows(result: Results, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the records that YOLOv5's REST API gives for an image (behaviour.md 8.4)."""
    return [
        {
            **dict(zip(("xmin", "ymin", "xmax", "ymax"), row["box"], strict=True)),
            "confidence": row["confidence"],
            "class": row["class"],
            "name": row["name"],
        }
        for row in _detections(result, names, "none")
    ]
