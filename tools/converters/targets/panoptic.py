"""Writer of COCO's panoptic format: `images/<split>`, `panoptic/panoptic_<split>` (PNG files) and .json, data.yaml."""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import yaml

from tools.converters import TARGETS
from tools.converters.conversion_report import ConversionReport
from tools.converters.convert_settings import LabelSettings
from tools.converters.data_yaml_writer import format_data_yaml
from tools.converters.label_items import LabelledImage
from tools.converters.output_folder import OutputFolder
from utils.core.segment_types import VOID
from utils.datasets.labels.annotation_objects import FilePanoptic
from utils.datasets.labels.panoptic_files import encode_png, measure_segment


@TARGETS.register("panoptic")
class PanopticTarget:
    """Writer of the source's panoptic maps or, without them, of outlines: large objects first, the rest void.

    Category ids count from 1: the things in the order of their names, then the stuff.
    """

    def __init__(
        self, output: OutputFolder, settings: LabelSettings, names: tuple[str, ...], report: ConversionReport
    ) -> None:
        self.output, self.settings, self.report = output, settings, report
        self.things = tuple(name for name in names if name not in settings.stuff)
        self.stuff = tuple(name for name in names if name in settings.stuff)
        self.category = {name: number for number, name in enumerate((*self.things, *self.stuff), 1)}
        self.images: dict[str, list[dict[str, Any]]] = {}
        self.annotations: dict[str, list[dict[str, Any]]] = {}

    def add(self, item: LabelledImage) -> None:
        """Write one image and its map."""
        source = item.source
        stem = self.output.unused([f"{source.split}/{source.name}"])
        if source.has_image:
            self.output.add_image(source.path, f"images/{stem}{source.path.suffix}", self.settings.images)
        panoptic = item.panoptic or self._paste(item)
        if panoptic.ids.shape != item.size_hw:
            ids = cv2.resize(panoptic.ids, item.size_hw[::-1], interpolation=cv2.INTER_NEAREST)
            panoptic = FilePanoptic(ids, panoptic.segments)
            self.report.note("panoptic map resized to the size of its image")
        below = stem.partition("/")[2]
        self.output.write(f"panoptic/panoptic_{source.split}/{below}.png", encode_png(panoptic.ids))
        images, annotations = (table.setdefault(source.split, []) for table in (self.images, self.annotations))
        height, width = item.size_hw
        number = len(images) + 1
        images.append({"id": number, "file_name": f"{below}{source.path.suffix}", "height": height, "width": width})
        segments = [entry for one in panoptic.segments if (entry := self._entry(panoptic.ids, *one)) is not None]
        annotations.append({"image_id": number, "file_name": f"{below}.png", "segments_info": segments})

    def _entry(self, ids: np.ndarray, key: int, name: str, crowd: bool) -> dict[str, Any] | None:
        """Describe a segment; None if it has no pixels."""
        area, box = measure_segment(ids, key)
        if not area:
            self.report.left_out["segment without pixels"] += 1
            return None
        self.report.objects[name] += 1
        return {
            "id": key,
            "category_id": self.category[name],
            "area": area,
            "bbox": box,
            "iscrowd": int(crowd),
        }

    def _paste(self, item: LabelledImage) -> FilePanoptic:
        """Draw outlines, large objects first, so that small ones are in front."""
        ids = np.full(item.size_hw, VOID, np.int32)
        segments: list[tuple[int, str, bool]] = []
        for one in sorted(item.objects, key=lambda one: -float(np.prod(one.box_xyxy[2:] - one.box_xyxy[:2]))):
            if one.aside == "ignore":
                self.report.left_out["ignored region"] += 1
                continue
            if not one.pieces:
                self.report.left_out["box without outline"] += 1
                continue
            key = len(segments) + 1
            cv2.fillPoly(ids, [np.floor(piece).astype(np.int32) for piece in one.pieces], key)
            segments.append((key, one.name, bool(one.aside)))
        return FilePanoptic(ids, segments)

    def finish(self) -> None:
        """Write the JSON files and the data YAML."""
        categories = [
            {"id": number, "name": name, "isthing": int(name in self.things)} for name, number in self.category.items()
        ]
        files = {}
        for split, images in self.images.items():
            files[split] = f"panoptic/panoptic_{split}.json"
            content = {"images": images, "annotations": self.annotations[split], "categories": categories}
            self.output.write(files[split], json.dumps(content, separators=(",", ":"), ensure_ascii=False))
        paths = {split: f"images/{split}" for split in self.images}
        text = format_data_yaml(paths, self.things, "coco-panoptic", self.settings, files)
        stuff = yaml.safe_dump({"stuff": list(self.stuff)}, allow_unicode=True, width=120)
        self.output.write("data.yaml", text + stuff)
