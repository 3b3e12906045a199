"""Sink of panoptic maps: COCO's panoptic format, and annotated images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.core.contracts import Frame, Results, Sink
from utils.core.files import write_text
from utils.core.segment_types import VOID, PanopticMap, Segment
from utils.ops.panoptic import PanopticMerger, bounding_window, encode_ids, measure_segment
from utils.plots.draw import font_height_px, palette_colour, text_colour_on
from utils.plots.figure_io import write_image
from utils.plots.prediction_sinks import AnnotatedImage, UniqueNames, summarize
from utils.plots.semantic_overlay import class_colour, draw_legend
from utils.plots.semantic_style import SemanticStyle
from utils.plots.text_rendering import Colour, class_name, put_text, text_mask

_BORDER = (255, 255, 255)  # between segments
_MIN_LABEL_SHARE = 0.0005  # of the image; smaller things get no name


def draw_panoptic(image_bgr: np.ndarray, panoptic: PanopticMap, style: SemanticStyle) -> np.ndarray:
    """Draw a panoptic map on a copy of an image.

    Every thing has a colour of its own and its name; stuff has the colour of its class, explained by a legend.

    Args:
        image_bgr: (H, W, 3) uint8.
        panoptic: Its segments.
        style: Names and colours of the categories, opacity and legend.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    colours = np.zeros((len(panoptic.segments) + 1, 3), np.uint8)
    for segment in panoptic.segments:
        colours[segment.id] = segment_colour(segment, style)
    tinted = cv2.addWeighted(image_bgr, 1 - style.opacity, colours[panoptic.ids], style.opacity, 0)
    canvas = np.where((panoptic.ids == VOID)[..., None], image_bgr, tinted)
    canvas[_borders(panoptic.ids)] = _BORDER
    size_px = font_height_px(canvas.shape[:2])
    for segment in panoptic.segments:
        if segment.is_thing and segment.area >= _MIN_LABEL_SHARE * panoptic.ids.size:
            _draw_name(canvas, panoptic.ids == segment.id, class_name(style.names, segment.category), size_px)
    if style.legend:
        stuff = np.full(len(panoptic.segments) + 1, 255, np.uint8)
        for segment in panoptic.segments:
            if not segment.is_thing:
                stuff[segment.id] = segment.category
        draw_legend(canvas, stuff[panoptic.ids], style, size_px)
    return canvas


def segment_colour(segment: Segment, style: SemanticStyle) -> Colour:
    """Choose the BGR colour of a segment: of its own for a thing, that of its class for stuff."""
    return palette_colour(segment.id - 1) if segment.is_thing else class_colour(segment.category, style)


def _borders(ids: np.ndarray) -> np.ndarray:
    """Mark the pixels whose right or lower neighbour belongs to another segment."""
    borders = np.zeros(ids.shape, bool)
    borders[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    borders[:-1] |= ids[:-1] != ids[1:]
    return borders


def _draw_name(canvas: np.ndarray, mask: np.ndarray, text: str, size_px: int) -> None:
    """Write a name at the most central pixel of a mask, on a dark plate."""
    window = bounding_window(mask)
    top, left = window[0].start, window[1].start
    inside = mask[window].astype(np.uint8)
    distance = cv2.distanceTransform(cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L1, 3)
    row, column = np.unravel_index(int(distance.argmax()), distance.shape)
    height, width = canvas.shape[:2]
    plate_h, plate_w = text_mask(text, size_px).shape[0] + 2, text_mask(text, size_px).shape[1] + size_px // 2
    y = max(0, min(top + int(row) - plate_h // 2, height - plate_h))
    x = max(0, min(left + int(column) - plate_w // 2, width - plate_w))
    plate = canvas[y : y + plate_h, x : x + plate_w]
    plate[:] = plate // 3
    put_text(canvas, text, (x + size_px // 4, y + 1), size_px, text_colour_on((0, 0, 0)))


class PanopticSink(Sink):
    """Write the panoptic map of every frame in COCO's format, and drawn on the image.

    `folder`/panoptic contains a PNG per frame whose colours are segment ids, `folder`/panoptic.json describes the
    segments, and `folder`/panoptic_colour contains the drawings.

    Args:
        folder: Of the files.
        merger: Computes the maps.
        style: Appearance of the drawings.
    """

    stopped = False

    def __init__(self, folder: Path, merger: PanopticMerger, style: SemanticStyle) -> None:
        self.folder, self.merger, self.style, self._names = folder, merger, style, UniqueNames()
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Merge the results of a frame and write its images."""
        panoptic = self.merger(results)
        name = f"{self._names.frame_stem(frame)}.png"
        write_image(self.folder / "panoptic" / name, encode_ids(panoptic.ids))
        write_image(self.folder / "panoptic_colour" / name, draw_panoptic(frame.image, panoptic, self.style))
        number, (height, width) = len(self._images) + 1, panoptic.ids.shape
        self._images.append({"id": number, "file_name": Path(frame.path).name, "height": height, "width": width})
        segments = [_segment_entry(segment, panoptic.ids) for segment in panoptic.segments]
        self._annotations.append({"image_id": number, "file_name": name, "segments_info": segments})

    def close(self) -> str:
        """Write panoptic.json and summarize the files."""
        if not self._images:
            return ""
        categories = [
            {"id": number + 1, "name": name, "isthing": int(self.merger.is_thing[number])}
            for number, name in enumerate(self.merger.names)
        ]
        content = {"images": self._images, "annotations": self._annotations, "categories": categories}
        write_text(self.folder / "panoptic.json", json.dumps(content) + "\n")
        text = summarize(len(self._images), "panoptic map", "panoptic maps", self.folder / "panoptic")
        return f"{text}, described by {self.folder / 'panoptic.json'}, drawn in {self.folder / 'panoptic_colour'}"


def _segment_entry(segment: Segment, ids: np.ndarray) -> dict[str, Any]:
    _, box = measure_segment(ids, segment.id)
    entry: dict[str, Any] = {
        "id": segment.id,
        "category_id": segment.category + 1,
        "area": segment.area,
        "bbox": box,
        "iscrowd": 0,
    }
    return entry if segment.score is None else entry | {"score": round(segment.score, 5)}
