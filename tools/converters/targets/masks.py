"""Writer of semantic maps: `images/<split>`, `masks/<split>` (PNG, one byte per pixel), names.txt."""

from __future__ import annotations

import math

import cv2
import numpy as np

from tools.converters import TARGETS
from tools.converters.conversion_report import ConversionReport
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import BACKGROUND, NO_CLASS, LabelledImage
from tools.converters.output_folder import OutputFolder
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import ClassNumbers, LabelledObject


@TARGETS.register("masks")
class MaskTarget:
    """Writer of the source's semantic maps or, without one, of filled polygons and boxes, large objects first.

    Pixels without an object are `--background`, by default the class `_background_` if there is one, otherwise 255.
    Crowds, difficult objects and ignored regions are 255.
    """

    def __init__(
        self, output: OutputFolder, settings: LabelSettings, names: tuple[str, ...], report: ConversionReport
    ) -> None:
        if len(names) > NO_CLASS:
            raise UserError(f"{len(names)} classes; a semantic map supports at most {NO_CLASS}")
        self.output, self.settings, self.names, self.report = output, settings, names, report
        self.classes = ClassNumbers(names)
        default = names.index(BACKGROUND) if BACKGROUND in names else NO_CLASS
        self.background = default if settings.background is None else settings.background

    def add(self, item: LabelledImage) -> None:
        """Write one image and its mask."""
        source, suffix = item.source, item.source.path.suffix
        stem = f"{source.split}/{source.name}"
        stem = self.output.unused([stem, f"{stem}_{suffix[1:]}"])
        if source.has_image:
            self.output.add_image(source.path, f"images/{stem}{suffix}", self.settings.images)
        mask = item.semantic if item.semantic is not None else self._rasterize(item)
        if mask.shape != item.size_hw:
            mask = cv2.resize(mask, item.size_hw[::-1], interpolation=cv2.INTER_NEAREST)
            self.report.note("mask resized to the size of its image")
        for value in np.unique(mask).tolist():
            self.report.objects[self.names[value] if value < len(self.names) else f"value {value}"] += 1
        done, png = cv2.imencode(".png", mask)
        if not done:
            raise UserError(f"{source.path}: the mask cannot be encoded as PNG")
        self.output.write(f"masks/{stem}.png", png.tobytes())

    def _rasterize(self, item: LabelledImage) -> np.ndarray:
        """Draw the objects with Pillow, which reproduces LabelMe's own export to the pixel."""
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
        """Write the class names; the value of a class is its line number from 0."""
        self.report.note("object counts are numbers of masks with at least one pixel of the class")
        self.output.write("names.txt", "".join(f"{name}\n" for name in self.names))


def _area(one: LabelledObject) -> float:
    width, height = one.box_xyxy[2:] - one.box_xyxy[:2]
    return float(width * height)
