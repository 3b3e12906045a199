"""Maps of classes: `images/<split>`, `masks/<split>` (PNG, one byte per pixel), names.txt."""

from __future__ import annotations

import math

import cv2
import numpy as np

from tools.converters import TARGETS
from tools.converters.conversion_report import Report
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import BACKGROUND, NO_CLASS, Item
from tools.converters.output_folder import Sink
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import ClassNumbers, LabelledObject


@TARGETS.register("masks")
class MaskTarget:
    """The map of the source if it has one, else outlines filled, large ones first; boxes are filled as rectangles.

    Pixels of no object are `--background`, without it the class `_background_` if there is one, else 255. What was put
    aside is 255.
    """

    def __init__(self, sink: Sink, settings: LabelSettings, names: tuple[str, ...], report: Report) -> None:
        if len(names) > NO_CLASS:
            raise UserError(f"{len(names)} classes: a mask holds at most {NO_CLASS}")
        self.sink, self.settings, self.names, self.report = sink, settings, names, report
        self.classes = ClassNumbers(names)
        default = names.index(BACKGROUND) if BACKGROUND in names else NO_CLASS
        self.background = default if settings.background is None else settings.background

    def add(self, item: Item) -> None:
        """Write one image and its mask."""
        work, suffix = item.work, item.work.image.suffix
        stem = f"{work.split}/{work.name}"
        stem = self.sink.unused([stem, f"{stem}_{suffix[1:]}"])
        if work.has_image:
            self.sink.take(work.image, f"images/{stem}{suffix}", self.settings.images)
        mask = item.semantic if item.semantic is not None else self._filled(item)
        if mask.shape != item.size_hw:
            mask = cv2.resize(mask, item.size_hw[::-1], interpolation=cv2.INTER_NEAREST)
            self.report.note("mask enlarged or shrunk to the size of its image")
        for value in np.unique(mask).tolist():
            self.report.objects[self.names[value] if value < len(self.names) else f"value {value}"] += 1
        done, png = cv2.imencode(".png", mask)
        if not done:
            raise UserError(f"{work.image}: its mask cannot be written as PNG")
        self.sink.write(f"masks/{stem}.png", png.tobytes())

    def _filled(self, item: Item) -> np.ndarray:
        """Return the objects drawn by Pillow, whose polygons are those of LabelMe's own tools to the pixel."""
        from PIL import Image, ImageDraw

        mask = Image.fromarray(np.full(item.size_hw, self.background, np.uint8))
        draw = ImageDraw.Draw(mask)
        for one in sorted(item.objects, key=lambda one: -_area(one)):
            value = NO_CLASS if one.aside else self.classes.get(one.name)
            if value is None:
                continue
            for piece in one.pieces:
                draw.polygon([(x, y) for x, y in piece.tolist()], fill=value, outline=value)
            if not one.pieces:
                self.report.note("box filled as rectangle")
                x1, y1, x2, y2 = one.box_xyxy.tolist()
                draw.rectangle((int(x1), int(y1), math.ceil(x2) - 1, math.ceil(y2) - 1), fill=value)
        return np.array(mask)

    def finish(self) -> None:
        """Write the names of the classes; the line number from 0 is the value."""
        self.report.note("the counts are of masks with at least one pixel of a class")
        self.sink.write("names.txt", "".join(f"{name}\n" for name in self.names))


def _area(one: LabelledObject) -> float:
    width, height = one.box_xyxy[2:] - one.box_xyxy[:2]
    return float(width * height)
