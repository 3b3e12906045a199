"""COCO JSON as flat arrays: a million annotations take 100 MB instead of gigabytes of dictionaries."""

from __future__ import annotations

import math
from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.coco_categories import require_unique_ids
from utils.core.errors import UserError
from utils.core.log import progress
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject, extent, run_length_pieces
from utils.datasets.labels.json_stream import stream_json

_NO_BOX = (math.nan,) * 4


@dataclass(frozen=True)
class CocoTable:
    """n images with N annotations, sorted by image; annotation a owns polygons `first_piece[a]:first_piece[a + 1]`."""

    path: Path
    names: list[str]  # image file names
    sizes_hw: np.ndarray  # (n, 2) int64, 0 if not given
    categories: list[dict[str, Any]]
    ids: list[Any]  # of the annotations, as in the file
    starts: np.ndarray  # (n + 1,) int64: the annotations of image i are starts[i]:starts[i + 1]
    category: np.ndarray  # (N,) int64: row in `categories`, -1 if missing
    boxes_xywh: np.ndarray  # (N, 4) float64 pixels
    crowd: np.ndarray  # (N,) bool
    points: np.ndarray  # (P, 2) float32 pixels
    piece_starts: np.ndarray  # (Q + 1,) int64, rows of `points`
    first_piece: np.ndarray  # (N + 1,) int64
    faults: dict[int, list[str]] = field(default_factory=dict)  # by image
    notes: list[str] = field(default_factory=list)

    def pieces(self, annotation: int) -> list[np.ndarray]:
        """Return the polygons of an annotation, (k, 2) pixels each."""
        first, last = self.first_piece[annotation : annotation + 2]
        return [self.points[self.piece_starts[q] : self.piece_starts[q + 1]] for q in range(first, last)]

    def size_hw(self, image: int) -> tuple[int, int] | None:
        """Return the size of an image in the JSON, None if not given."""
        height, width = self.sizes_hw[image]
        return (int(height), int(width)) if height > 0 and width > 0 else None

    def objects(self, image: int) -> FileObjects:
        """Convert the annotations of one image to objects."""
        found = FileObjects(size_hw=self.size_hw(image), image=self.names[image])
        found.faults = list(self.faults.get(image, []))
        for a in range(self.starts[image], self.starts[image + 1]):
            if self.category[a] < 0:  # reported in `faults`
                continue
            name = str(self.categories[self.category[a]].get("name", ""))
            x, y, w, h = self.boxes_xywh[a]
            aside = "crowd" if self.crowd[a] else ""
            pieces = [piece.astype(np.float64) for piece in self.pieces(a)]
            box = np.array([x, y, x + w, y + h])
            found.objects.append(LabelledObject(name, box, pieces, aside, f"annotation {self.ids[a]}"))
        return found


def read_coco_json(path: Path) -> CocoTable:
    """Read the images, categories and annotations of a COCO JSON; faults of single annotations are in `faults`.

    Raises:
        UserError: the file is unreadable or not a COCO JSON.
    """
    builder = _TableBuilder(path)
    add = {"images": builder.add_image, "categories": builder.add_category, "annotations": builder.add_annotation}
    try:
        total = path.stat().st_size
    except OSError:
        total = 0
    with progress(total=total, text=f"reading {path.name}", unit="B") as bar:
        for key, item in stream_json(path, tuple(add), lambda count: _advance(bar, count)):
            if not isinstance(item, dict):
                raise UserError(f"{path}: `{key}` must be a list of objects, got an item {str(item)[:60]!r}")
            add[key](item)
    return builder.build()


def _advance(bar: Any, count: int) -> None:
    bar.update(count)


class _TableBuilder:
    """Collects the entries in any order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.image_rows: dict[Hashable, int] = {}
        self.names: list[str] = []
        self.sizes = array("q")
        self.categories: list[dict[str, Any]] = []
        self.ids: list[Any] = []
        self.image_ids: dict[Hashable, int] = {}  # of annotations: the images may follow later
        self.image_of, self.category_of = array("q"), array("q")
        self.category_ids: dict[Hashable, int] = {}
        self.boxes, self.crowd, self.points = array("d"), array("b"), array("f")
        self.piece_ends, self.first_piece = array("q", [0]), array("q", [0])
        self.annotation_faults: list[tuple[int, str]] = []

    def add_image(self, item: dict[str, Any]) -> None:
        key, name = item.get("id"), item.get("file_name") or item.get("name")  # `name` in Argoverse-HD
        if not isinstance(key, (int, str)) or not isinstance(name, str) or not name:
            raise UserError(f"{self.path}: image number {len(self.names) + 1} needs an `id` and a `file_name`")
        if key in self.image_rows:
            raise UserError(f"{self.path}: two images have the id {key!r}: {self.names[self.image_rows[key]]}, {name}")
        self.image_rows[key] = len(self.names)
        self.names.append(name)
        sides = [item.get("height"), item.get("width")]
        self.sizes.extend([side if isinstance(side, int) and 0 < side < 2**31 else 0 for side in sides])

    def add_category(self, item: dict[str, Any]) -> None:
        if not isinstance(item.get("id"), int) or not isinstance(item.get("name"), (str, int)):
            raise UserError(f"{self.path}: category number {len(self.categories) + 1} needs an `id` and a `name`")
        self.categories.append({"id": item["id"], "name": str(item["name"]), "isthing": item.get("isthing", 1)})

    def add_annotation(self, item: dict[str, Any]) -> None:
        number = len(self.ids)
        key, image, category = item.get("id", number + 1), item.get("image_id"), item.get("category_id")
        crowd, fault = bool(item.get("iscrowd")), ""
        if not isinstance(image, (int, str)):
            image, fault = None, "no `image_id`"
        if not isinstance(category, int):
            category, fault = None, "no `category_id`"
        pieces: list[Any] = []
        if not crowd:  # crowd regions are not used for training
            pieces, fault = _polygons(item.get("segmentation"), fault)
        box = item.get("bbox")
        if not box and pieces:
            x1, y1, x2, y2 = extent([np.asarray(piece, np.float64).reshape(-1, 2) for piece in pieces]).tolist()
            box = [x1, y1, x2 - x1, y2 - y1]
        try:
            x, y, w, h = box  # type: ignore[misc]
            numbers = (float(x), float(y), float(w), float(h))
        except (TypeError, ValueError, OverflowError):
            numbers, fault = _NO_BOX, fault or "no `bbox: [x, y, width, height]`"
        if not fault and not math.isfinite(sum(numbers)):
            fault = "a `bbox` with a number that is not finite"
        if fault:
            self.annotation_faults.append((number, f"{self.path}: annotation {key}: {fault}"))
        self.ids.append(key)
        self.image_of.append(self.image_ids.setdefault(image, len(self.image_ids)))
        self.category_of.append(self.category_ids.setdefault(category, len(self.category_ids)))
        self.boxes.extend(numbers)
        self.crowd.append(crowd)
        for piece in pieces:
            self.points.extend(piece)
            self.piece_ends.append(len(self.points) // 2)
        self.first_piece.append(len(self.piece_ends) - 1)

    def build(self) -> CocoTable:
        """Build the table, with the annotations sorted by image."""
        for key, what in (("images", self.names), ("categories", self.categories)):
            if not what:
                raise UserError(f"{self.path}: no `{key}` in it; is it a COCO annotations file?")
        require_unique_ids(self.path, self.categories)
        rows = _rows_of(self.image_ids, self.image_rows)[np.asarray(self.image_of, np.int64)]
        known = {category["id"]: row for row, category in enumerate(self.categories)}
        category = _rows_of(self.category_ids, known)[np.asarray(self.category_of, np.int64)]
        for number in np.flatnonzero((category < 0) & (rows >= 0)):
            text = f"{self.path}: annotation {self.ids[number]}: its category is not in the file"
            self.annotation_faults.append((int(number), text))
        faults, notes = self._faults(rows)
        order = np.argsort(rows, kind="stable")
        order = order[rows[order] >= 0]
        first, ends = np.asarray(self.first_piece, np.int64), np.asarray(self.piece_ends, np.int64)
        counts = np.diff(first)[order]
        new_first = np.concatenate(([0], np.cumsum(counts)))
        old_piece = np.repeat(first[:-1][order] - new_first[:-1], counts) + np.arange(new_first[-1])
        lengths = np.diff(ends)[old_piece]
        piece_starts = np.concatenate(([0], np.cumsum(lengths)))
        old_point = np.repeat(ends[:-1][old_piece] - piece_starts[:-1], lengths) + np.arange(piece_starts[-1])
        return CocoTable(
            path=self.path,
            names=self.names,
            sizes_hw=np.asarray(self.sizes, np.int64).reshape(-1, 2),
            categories=self.categories,
            ids=[self.ids[a] for a in order],
            starts=np.searchsorted(rows[order], np.arange(len(self.names) + 1)),
            category=category[order],
            boxes_xywh=np.asarray(self.boxes, np.float64).reshape(-1, 4)[order],
            crowd=np.asarray(self.crowd, np.int8)[order] > 0,
            points=np.asarray(self.points, np.float32).reshape(-1, 2)[old_point],
            piece_starts=piece_starts,
            first_piece=new_first,
            faults=faults,
            notes=notes,
        )

    def _faults(self, rows: np.ndarray) -> tuple[dict[int, list[str]], list[str]]:
        """Group the faults by image; those of unknown images are warnings."""
        faults: dict[int, list[str]] = {}
        for number, text in self.annotation_faults:
            faults.setdefault(int(rows[number]), []).append(text)
        orphans = np.flatnonzero(rows < 0)
        notes = faults.pop(-1, [])
        if len(orphans):
            first = self.ids[int(orphans[0])]
            notes.append(f"{self.path}: {len(orphans)} annotations of images that it does not list, such as {first}")
        return faults, notes


def _rows_of(numbers: dict[Hashable, int], rows: dict[Any, int]) -> np.ndarray:
    """Look up the row of each key, -1 if there is none."""
    return np.array([rows.get(key, -1) for key in numbers], np.int64)


def _polygons(value: Any, fault: str) -> tuple[list[Any], str]:
    """Convert a `segmentation` to flat polygons [x1, y1, x2, y2, …] and its fault, `fault` if there is none."""
    if not value:
        return [], fault
    try:
        if isinstance(value, dict):
            return [piece.ravel().tolist() for piece in run_length_pieces(value)], fault
        if isinstance(value, list) and isinstance(value[0], list):
            pieces = [piece for piece in value if len(piece) >= 6]
            valid = all(len(piece) % 2 == 0 and math.isfinite(math.fsum(piece)) for piece in pieces)
            return (pieces, fault) if valid else ([], "a `segmentation` without pairs of finite numbers")
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        return [], f"a `segmentation` that cannot be read ({str(error)[:80]})"
    return [], "a `segmentation` that is neither a list of polygons nor run lengths"
