"""Writer of COCO JSON: `images/<split>`, `annotations/instances_<split>.json`, data.yaml; category ids from 1."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tools.converters import TARGETS
from tools.converters.conversion_report import ConversionReport
from tools.converters.convert_settings import LabelSettings
from tools.converters.data_yaml_writer import format_data_yaml
from tools.converters.label_items import LabelledImage
from tools.converters.output_folder import OutputFolder
from utils.datasets.labels.annotation_objects import ClassNumbers, LabelledObject

_DECIMALS = 2  # like the original COCO files


@TARGETS.register("coco")
class CocoTarget:
    """Writer of boxes and, where known, polygons; difficult objects become crowd regions, ignored in evaluation."""

    def __init__(
        self, output: OutputFolder, settings: LabelSettings, names: tuple[str, ...], report: ConversionReport
    ) -> None:
        self.output, self.settings, self.names, self.report = output, settings, names, report
        self.classes = ClassNumbers(names)
        self.decimals = _DECIMALS if settings.decimals is None else settings.decimals
        self.images: dict[str, list[dict[str, Any]]] = {}
        self.annotations: dict[str, list[dict[str, Any]]] = {}

    def add(self, item: LabelledImage) -> None:
        """Write one image and collect its objects."""
        source, suffix = item.source, item.source.path.suffix
        name = self.output.unused([f"{source.split}/{source.name}{suffix}"])
        self.output.add_image(source.path, f"images/{name}", self.settings.images)
        images, annotations = (table.setdefault(source.split, []) for table in (self.images, self.annotations))
        height, width = item.size_hw
        stem = source.path.stem
        images.append({"id": len(images) + 1, "file_name": name.split("/", 1)[1], "height": height, "width": width})
        for one in item.objects:
            if one.aside == "ignore":
                self.report.left_out["ignored region"] += 1
                continue
            entry = {"id": len(annotations) + 1, "image_id": len(images), **self._entry(one)}
            annotations.append(entry)
            self.report.objects[one.name] += 1
            if one.aside:
                self.report.note(f"{one.aside} objects written as crowd regions, by their boxes")
        if stem.isdigit() and int(stem) > 0:
            images[-1]["coco_id"] = int(stem)

    def _entry(self, one: LabelledObject) -> dict[str, Any]:
        x1, y1, x2, y2 = one.box_xyxy.tolist()
        outlines = [piece.round(self.decimals).ravel().tolist() for piece in one.pieces]
        area = sum(abs(_area(piece)) for piece in one.pieces) if one.pieces else (x2 - x1) * (y2 - y1)
        return {
            "category_id": (self.classes.get(one.name) or 0) + 1,
            "bbox": [round(value, self.decimals) for value in (x1, y1, x2 - x1, y2 - y1)],
            "area": round(area, self.decimals),
            "iscrowd": int(bool(one.aside)),
            "segmentation": outlines,
        }

    def finish(self) -> None:
        """Write the JSON files and the data YAML."""
        categories = [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(self.names, 1)]
        files = {}
        for split, images in self.images.items():
            files[split] = f"annotations/instances_{split}.json"
            _number(images, self.annotations[split])
            content = {"images": images, "annotations": self.annotations[split], "categories": categories}
            self.output.write(files[split], json.dumps(content, separators=(",", ":"), ensure_ascii=False))
        paths = {split: f"images/{split}" for split in self.images}
        self.output.write("data.yaml", format_data_yaml(paths, self.names, "coco", self.settings, files))


def _number(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    """Use numeric image names as ids, as COCO does, if all names are distinct numbers."""
    ids = [image.pop("coco_id", None) for image in images]
    if None in ids or len(set(ids)) < len(ids):
        return
    for image, key in zip(images, ids, strict=True):
        image["id"] = key
    for annotation in annotations:
        annotation["image_id"] = ids[annotation["image_id"] - 1]


def _area(polygon: np.ndarray) -> float:
    x, y = polygon[:, 0], polygon[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
