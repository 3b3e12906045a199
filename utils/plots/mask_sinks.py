"""Sinks of instance masks: polygons in label files, crops with transparent background, RLE in a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.contracts import Frame, Results, Sink
from utils.core.files import atomic_path
from utils.ops.boxes import xyxy_to_xywh
from utils.ops.masks import encode_rle, largest_contour
from utils.plots.draw import class_name
from utils.plots.prediction_sinks import AnnotatedImage, CropSink, TextSink, file_name


class PolygonSink(TextSink):
    """Write a label file per image or frame: lines of `class x1 y1 x2 y2 ... [confidence]`, normalised to the image.

    The polygon is the contour of the mask's largest component; objects with an empty mask have no line.
    """

    def _lines(self, frame: Frame, results: Results) -> list[str]:
        if results.fine_masks is None or results.classes is None:
            return []
        height, width = frame.image.shape[:2]
        scores = results.scores.tolist() if self.confidence and results.scores is not None else None
        lines = []
        for row, index in enumerate(results.classes.tolist()):
            polygon = largest_contour(results.fine_masks.original(row)) / (width, height)
            if len(polygon):
                values = [*polygon.ravel().tolist(), *([scores[row]] if scores is not None else [])]
                lines.append(" ".join([str(index), *(f"{value:g}" for value in values)]))
        return lines


class MaskCropSink(CropSink):
    """Write every object as a PNG in a folder per class, transparent outside its mask."""

    suffix = ".png"

    def _pixels(self, frame: Frame, results: Results, row: int) -> np.ndarray:
        if results.fine_masks is None:
            return frame.image
        return np.dstack((frame.image, results.fine_masks.original(row).astype(np.uint8) * 255))


class RleSink(Sink):
    """Write all masks to one JSON file: a list of image, frame (of videos), class, name, score, bbox and segmentation.

    `bbox` is x, y, width, height in pixels; `segmentation` is COCO's compressed RLE of the whole image.
    """

    stopped = False

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path, self.names = path, names
        self._rows: list[dict[str, Any]] = []

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Collect the masks of a frame."""
        if results.fine_masks is None or results.boxes is None or results.classes is None or results.scores is None:
            return
        source: dict[str, Any] = {"image": file_name(frame)} | ({"frame": frame.number} if frame.is_video else {})
        boxes = xyxy_to_xywh(results.boxes).double().numpy().round(3).tolist()
        for row, (index, score) in enumerate(zip(results.classes.tolist(), results.scores.tolist(), strict=True)):
            self._rows.append(
                {
                    **source,
                    "category_id": index,
                    "category": class_name(self.names, index),
                    "score": round(score, 5),
                    "bbox": boxes[row],
                    "segmentation": encode_rle(results.fine_masks.original(row)),
                }
            )

    def close(self) -> str:
        """Write the file, also without any mask, and summarize it."""
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self._rows, separators=(",", ":")), encoding="utf-8")
        return f"{len(self._rows)} {'mask' if len(self._rows) == 1 else 'masks'} in {self.path}"
