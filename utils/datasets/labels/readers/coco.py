"""COCO format: boxes, polygons and run-length masks of all images of a split in one JSON file.

Categories are matched to classes by name, or by order if their numbers agree. Crowd regions are not used for training;
evaluation, which reads the same JSON, treats them as COCO does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.core.coco_categories import match_categories
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets import READERS
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.annotation_objects import join_pieces
from utils.datasets.labels.annotation_paths import fingerprint_of, label_class_names, require_annotations, split_images
from utils.datasets.labels.coco_json import CocoTable, read_coco_json
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, short_hash
from utils.datasets.labels.yolo_lines import ImageLabels, without_duplicates


@READERS.register("coco")
def read_coco(data: DataConfig, split: str) -> SplitFiles:
    """List the images of a split and its COCO JSON, which is read only without a valid scan cache."""
    source = require_annotations(data, split, "coco", "instances")
    images = split_images(data, split)
    cache = source.with_name(f"{source.stem}.{short_hash([*map(str, data.split(split))])}{CACHE_SUFFIX}")
    labels = _Labels(source, images, data)
    files = [str(source)] * len(images)
    return SplitFiles(images, files, labels.load, cache, labels.prepare, fingerprint_of(data, "coco"))


def match_images(names: Sequence[str], images: Sequence[str]) -> dict[str, int]:
    """Match image files to the images of a COCO JSON, by the end of their path, otherwise by name alone.

    Args:
        names: names of the images in the JSON.
        images: image files.

    Returns:
        Position in `names` by image file, for the files that the JSON lists.
    """
    by_name: dict[str, list[str]] = {}
    for image in images:
        by_name.setdefault(os.path.basename(image), []).append(image)  # noqa: PTH119 - 100 000 of them
    rows: dict[str, int] = {}
    for row, name in enumerate(names):
        wanted = name.replace("\\", "/")
        candidates = by_name.get(wanted.rpartition("/")[2], [])
        exact = [image for image in candidates if image.replace(os.sep, "/").endswith("/" + wanted.lstrip("./"))]
        best = exact or candidates
        if len(best) > 1:
            best = sorted(best, key=len)[:1] if exact else []  # the shortest path; names alone would be ambiguous
        if best and best[0] not in rows:
            rows[best[0]] = row
    return rows


class _Labels:
    """Labels of one JSON, normalised in one pass."""

    def __init__(self, source: Path, images: list[str], data: DataConfig) -> None:
        self.source, self.images, self.data = source, images, data
        self.table: CocoTable | None = None
        self.rows: dict[str, int] = {}
        self.boxes = np.zeros((0, 5), np.float32)
        self.keep = np.zeros(0, bool)
        self.lost: dict[int, list[str]] = {}
        self.lost_xyxy: dict[int, list[tuple[float, ...]]] = {}

    def prepare(self) -> list[str]:
        """Read the JSON; return warnings about it as a whole."""
        table = read_coco_json(self.source)
        self.table, self.rows = table, match_images(table.names, self.images)
        if not self.rows:
            raise UserError(
                f"{self.source}: none of its {len(table.names)} images, such as {table.names[0]}, is among the "
                f"{len(self.images)} that {self.data.source} names, such as {self.images[0]}"
            )
        number = self._class_of_category(table)
        image = np.repeat(np.arange(len(table.names)), np.diff(table.starts))
        sizes_xy = self._sizes(table)[image]
        classes = np.append(number, -1)[table.category]
        corners = table.boxes_xywh.reshape(-1, 2, 2).cumsum(1)  # x1, y1, x2, y2
        clipped = np.clip(corners, 0, sizes_xy[:, None])
        sides = clipped[:, 1] - clipped[:, 0]
        trainable = (classes >= 0) & ~table.crowd
        valid = (sides > 0).all(1)  # False for non-finite boxes, which have a fault of their own
        self._report_dropped(table, np.flatnonzero(trainable & ~valid & np.isfinite(table.boxes_xywh).all(1)), image)
        with np.errstate(invalid="ignore"):
            parts = [classes[:, None], clipped.mean(1) / sizes_xy, sides / sizes_xy]
            self.boxes = np.concatenate(parts, 1).astype(np.float32)
        self.keep, self.sizes_xy = trainable & valid, self._sizes(table)
        return self._warnings(table, number)

    def load(self, image: int) -> ImageLabels:
        """Load the labels of an image."""
        table, row = self.table, self.rows.get(self.images[image])
        if table is None or row is None:
            return ImageLabels(listed=False)
        if row in table.faults:
            return ImageLabels(faults=list(table.faults[row]))
        first, last = table.starts[row : row + 2]
        rows = first + np.flatnonzero(self.keep[first:last])
        labels = ImageLabels(self.boxes[rows], lost=self.lost.get(row, []), size_hw=table.size_hw(row))
        labels.lost_xyxy = self.lost_xyxy.get(row, [])
        if table.first_piece[last] > table.first_piece[first]:
            size_xy = self.sizes_xy[row]
            outlines = [np.clip(join_pieces(table.pieces(a)), 0, size_xy) / size_xy for a in rows]
            labels.polygons = [outline.astype(np.float32) for outline in outlines]
        return without_duplicates(labels)

    def _class_of_category(self, table: CocoTable) -> np.ndarray:
        """Map each category of the JSON to its class, -1 for categories that the data YAML does not name."""
        ordered = sorted(table.categories, key=lambda category: int(category["id"]))
        ids = match_categories(self.source, label_class_names(self.data), ordered)
        numbers = {key: number for number, key in enumerate(ids)}
        return np.array([numbers.get(category["id"], -1) for category in table.categories], np.int64)

    def _sizes(self, table: CocoTable) -> np.ndarray:
        """Return the (n, 2) width and height of each image: from the JSON, else from the image file."""
        sizes_xy = table.sizes_hw[:, ::-1].astype(np.float64)
        paths = {row: path for path, row in self.rows.items()}
        for row in np.flatnonzero((sizes_xy <= 0).any(1)):
            try:
                height, width = probe_image(Path(paths[int(row)])) if int(row) in paths else (1, 1)
            except ImageFault:  # reported by the scan
                height, width = 1, 1
            sizes_xy[row] = width, height
        return sizes_xy

    def _report_dropped(self, table: CocoTable, annotations: np.ndarray, image: np.ndarray) -> None:
        for a in annotations:
            x, y, w, h = table.boxes_xywh[a]
            fault = f"a box of {w:g} x {h:g} pixels at {x:g}, {y:g}" + (" outside the image" if min(w, h) > 0 else "")
            line = f"{self.source}: annotation {table.ids[a]} ({table.names[image[a]]}): {fault}, dropped"
            self.lost.setdefault(int(image[a]), []).append(line)
            self.lost_xyxy.setdefault(int(image[a]), []).append((x, y, x + w, y + h))

    def _warnings(self, table: CocoTable, number: np.ndarray) -> list[str]:
        notes = list(table.notes)
        present = set(self.rows.values())
        missing = [name for row, name in enumerate(table.names) if row not in present]
        if missing:
            notes.append(
                f"{self.source}: {len(missing)} of its {len(table.names)} images not found, such as {missing[0]}"
            )
        if len(self.rows) < len(self.images):
            other = next(image for image in self.images if image not in self.rows)
            count = len(self.images) - len(self.rows)
            notes.append(f"{self.source}: does not list {count} of the images found, such as {other}; dropped")
        unnamed = int((np.append(number, 0)[table.category] < 0).sum())
        if unnamed:
            notes.append(
                f"{self.source}: {unnamed} objects of categories that {self.data.source} does not name, dropped"
            )
        if crowds := int(table.crowd.sum()):
            notes.append(
                f"{self.source}: {crowds} crowd regions are not used for training; evaluation treats them as COCO does"
            )
        return notes
