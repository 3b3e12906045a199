"""LabelMe: images and JSON files side by side in `<split>`, data.yaml."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tools.converters import TARGETS
from tools.converters.conversion_report import Report
from tools.converters.convert_settings import LabelSettings
from tools.converters.data_yaml_writer import data_yaml
from tools.converters.label_items import IGNORE, Item
from tools.converters.output_folder import Sink
from utils.datasets.labels.annotation_objects import LabelledObject

_DECIMALS = 2
_VERSION = "5.0.1"  # of the file format


@TARGETS.register("labelme")
class LabelmeTarget:
    """Polygons, several pieces of an object in one group; boxes as rectangles. What was put aside is left out."""

    def __init__(self, sink: Sink, settings: LabelSettings, names: tuple[str, ...], report: Report) -> None:
        self.sink, self.settings, self.names, self.report = sink, settings, names, report
        self.decimals = _DECIMALS if settings.decimals is None else settings.decimals
        self.splits: list[str] = []

    def add(self, item: Item) -> None:
        """Write one image and its JSON file."""
        work, suffix = item.work, item.work.image.suffix
        stem = f"{work.split}/{work.name}"
        stem = self.sink.unused([stem, f"{stem}_{suffix[1:]}"])
        self.sink.take(work.image, f"{stem}{suffix}", self.settings.images)
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
        self.sink.write(f"{stem}.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        if work.split not in self.splits:
            self.splits.append(work.split)

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
        places = {split: split for split in self.splits}
        self.sink.write("data.yaml", data_yaml(places, self.names, "labelme", self.settings))
