"""Writer of YOLO label files: `images/<split>`, `labels/<split>`, data.yaml."""

from __future__ import annotations

import numpy as np

from tools.converters import TARGETS
from tools.converters.conversion_report import ConversionReport
from tools.converters.convert_settings import LabelSettings
from tools.converters.data_yaml_writer import format_data_yaml
from tools.converters.label_items import LabelledImage
from tools.converters.output_folder import OutputFolder
from utils.datasets.labels.annotation_objects import ClassNumbers, join_pieces, rectangle

_DECIMALS = 6  # 0.001 px in an image of 2000 px


@TARGETS.register("yolo")
class YoloTarget:
    """Writer of boxes, or of polygons for images whose objects all have an annotated polygon.

    `--style boxes` and `--style polygons` decide for all images. Crowds and difficult objects are left out.
    """

    def __init__(
        self, output: OutputFolder, settings: LabelSettings, names: tuple[str, ...], report: ConversionReport
    ) -> None:
        self.output, self.settings, self.names, self.report = output, settings, names, report
        self.classes = ClassNumbers(names)
        self.decimals = _DECIMALS if settings.decimals is None else settings.decimals
        self.splits: list[str] = []

    def add(self, item: LabelledImage) -> None:
        """Write one image and its label file."""
        source = item.source
        stem, suffix = f"{source.split}/{source.name}", source.path.suffix
        stem = self.output.unused([stem, f"{stem}_{suffix[1:]}"])
        self.output.add_image(source.path, f"images/{stem}{suffix}", self.settings.images)
        self.output.write(f"labels/{stem}.txt", "".join(self._lines(item)))
        if source.split not in self.splits:
            self.splits.append(source.split)

    def _lines(self, item: LabelledImage) -> list[str]:
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
            self.report.note("image with polygons for some objects only, written as boxes")
        lines = []
        for one in objects:
            if polygons and not one.pieces:
                self.report.note("object without polygon written as rectangle (--style polygons)")
            if len(one.pieces) > 1 and polygons:
                self.report.note("polygon of several pieces joined by lines of zero width")
            outline = join_pieces(one.pieces or [rectangle(one.box_xyxy)])
            values = outline.ravel() if polygons else _to_cxcywh(one.box_xyxy)
            height, width = item.size_hw
            values = np.clip(values / np.resize((width, height), len(values)), 0, 1)
            number = self.classes.get(one.name)
            lines.append(f"{number} " + " ".join(_format(value, self.decimals) for value in values.tolist()) + "\n")
            self.report.objects[one.name] += 1
        return lines

    def finish(self) -> None:
        """Write the data YAML."""
        paths = {split: f"images/{split}" for split in self.splits}
        self.output.write("data.yaml", format_data_yaml(paths, self.names, "yolo", self.settings))


def _to_cxcywh(box_xyxy: np.ndarray) -> np.ndarray:
    corners = box_xyxy.reshape(2, 2)
    return np.concatenate((corners.mean(0), corners[1] - corners[0]))


def _format(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"
