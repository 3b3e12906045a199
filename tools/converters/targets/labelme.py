"""Writer of LabelMe: images and JSON files side by side in `<split>`, data.yaml."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tools.converters import TARGETS
from tools.converters.conversion_report import ConversionReport
from tools.converters.convert_settings import LabelSettings
from tools.converters.data_yaml_writer import format_data_yaml
from tools.converters.label_items import IGNORE, LabelledImage
from tools.converters.output_folder import OutputFolder
from utils.datasets.labels.annotation_objects import LabelledObject

_DECIMALS = 2
_VERSION = "5.0.1"  # of the file format


@TARGETS.register("labelme")
class LabelmeTarget:
    """Writer of polygons, with the pieces of an object in one group, and of rectangles.

    Crowds and difficult objects are left out.
    """

    def __init__(
        self, output: OutputFolder, settings: LabelSettings, names: tuple[str, ...], report: ConversionReport
    ) -> None:
        self.output, self.settings, self.names, self.report = output, settings, names, report
        self.decimals = _DECIMALS if settings.decimals is None else settings.decimals
        self.splits: list[str] = []

    def add(self, item: LabelledImage) -> None:
        """Write one image and its JSON file."""
        source, suffix = item.source, item.source.path.suffix
        stem = f"{source.split}/{source.name}"
        stem = self.output.unused([stem, f"{stem}_{suffix[1:]}"])
        self.output.add_image(source.path, f"{stem}{suffix}", self.settings.images)
        shapes: list[dict[str, Any]] = []
        for number, one in enumerate(item.objects, 1):
            if one.aside and one.aside != "ignore":
                self.report.left_out[one.aside] += 1
                continue
            shapes += self._shapes(one, number)
            self.report.objects[one.name] += 1
        content: dict[str, Any] = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{stem.rpartition('/')[2]}{suffix}",
            "imageData": None,
            "imageHeight": item.size_hw[0],
            "imageWidth": item.size_hw[1],
        }
        self.output.write(f"{stem}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        if source.split not in self.splits:
            self.splits.append(source.split)

    def _shapes(self, one: LabelledObject, number: int) -> list[dict[str, Any]]:
        boxes = self.settings.style == "boxes" or not one.pieces or not one.outlined
        kind, parts = ("rectangle", [one.box_xyxy.reshape(2, 2)]) if boxes else ("polygon", one.pieces)
        group = number if len(parts) > 1 else None
        label = IGNORE if one.aside == "ignore" else one.name
        return [
            {
                "label": label,
                "points": np.round(part, self.decimals).tolist(),
                "group_id": group,
                "shape_type": kind,
                "flags": {},
            }
            for part in parts
        ]

    def finish(self) -> None:
        """Write the data YAML."""
        paths = {split: split for split in self.splits}
        self.output.write("data.yaml", format_data_yaml(paths, self.names, "labelme", self.settings))
