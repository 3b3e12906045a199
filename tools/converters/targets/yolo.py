"""YOLO label files: `images/<split>`, `labels/<split>`, data.yaml."""

from __future__ import annotations

import numpy as np

from tools.converters import TARGETS
from tools.converters.conversion_report import Report
from tools.converters.convert_settings import LabelSettings
from tools.converters.data_yaml_writer import data_yaml
from tools.converters.label_items import Item
from tools.converters.output_folder import Sink
from utils.datasets.labels.annotation_objects import ClassNumbers, join_pieces, rectangle

_DECIMALS = 6  # a thousandth of a pixel in an image of 2000


@TARGETS.register("yolo")
class YoloTarget:
    """Lines of boxes, or of polygons if every object of an image has an outline that somebody drew.

    `--style boxes` and `--style polygons` decide for all images. What was put aside (crowds, difficult objects) is left
    out.
    """

    def __init__(self, sink: Sink, settings: LabelSettings, names: tuple[str, ...], report: Report) -> None:
        self.sink, self.settings, self.names, self.report = sink, settings, names, report
        self.classes = ClassNumbers(names)
        self.decimals = _DECIMALS if settings.decimals is None else settings.decimals
        self.splits: list[str] = []

    def add(self, item: Item) -> None:
        """Write one image and its label file."""
        work = item.work
        stem, suffix = f"{work.split}/{work.name}", work.image.suffix
        stem = self.sink.unused([stem, f"{stem}_{suffix[1:]}"])
        self.sink.take(work.image, f"images/{stem}{suffix}", self.settings.images)
        self.sink.write(f"labels/{stem}.txt", "".join(self._lines(item)))
        if work.split not in self.splits:
            self.splits.append(work.split)

    def _lines(self, item: Item) -> list[str]:
        objects = []
        for one in item.objects:
            if one.aside:
                self.report.left_out[one.aside] += 1
                continue
            objects.append(one)
        polygons = self.settings.style == "polygons" or (
            self.settings.style == "auto" and all(one.pieces for one in objects) and any(o.outlined for o in objects)
        )
        if not polygons and self.settings.style == "auto" and any(one.pieces and one.outlined for one in objects):
            self.report.note("image with outlines of some objects only: written as boxes")
        lines = []
        for one in objects:
            if polygons and not one.pieces:
                self.report.note("object without outline written as rectangle (--style polygons)")
            if len(one.pieces) > 1 and polygons:
                self.report.note("outline of several pieces joined by lines without width")
            outline = join_pieces(one.pieces or [rectangle(one.box_xyxy)])
            values = outline.ravel() if polygons else _centre(one.box_xyxy)
            height, width = item.size_hw
            values = np.clip(values / np.resize((width, height), len(values)), 0, 1)
            number = self.classes.get(one.name)
            lines.append(f"{number} " + " ".join(_short(value, self.decimals) for value in values.tolist()) + "\n")
            self.report.objects[one.name] += 1
        return lines

    def finish(self) -> None:
        """Write the data YAML."""
        places = {split: f"images/{split}" for split in self.splits}
        self.sink.write("data.yaml", data_yaml(places, self.names, "yolo", self.settings))


def _centre(box_xyxy: np.ndarray) -> np.ndarray:
    corners = box_xyxy.reshape(2, 2)
    return np.concatenate((corners.mean(0), corners[1] - corners[0]))


def _short(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"
