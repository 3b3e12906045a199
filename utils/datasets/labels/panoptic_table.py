"""Annotations of COCO's panoptic format as flat arrays: the segments of every image of a split, with a cache."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from utils.core.coco_categories import match_categories, require_unique_ids
from utils.core.data_config import DataConfig
from utils.core.distributed import main_first
from utils.core.errors import UserError
from utils.core.log import progress
from utils.core.segment_types import VOID, PanopticLabels
from utils.datasets.labels.annotation_paths import require_annotations
from utils.datasets.labels.json_stream import stream_json
from utils.datasets.labels.panoptic_files import NumberedMap, number_segments, read_id_map
from utils.datasets.labels.scan_cache import CACHE_SUFFIX, cache_paths, files_key, load_scan, save_scan, short_hash
from utils.datasets.labels.semantic_layout import require_semantic

FORMAT_VERSION = 1  # of the cache; a change rebuilds all caches
MAX_ID = 2**24 - 1  # three bytes of a colour


@dataclass(frozen=True)
class PanopticTable:
    """n images with S segments, sorted by image: those of image i are rows `starts[i]:starts[i + 1]`."""

    names: np.ndarray  # (n,) str, image files
    maps: np.ndarray  # (n,) str, PNG files in the folder of the maps
    image_ids: np.ndarray  # (n,) str
    numeric: np.ndarray  # () int64, whether the ids are integers
    sizes_hw: np.ndarray  # (n, 2) int64, 0 if not given
    starts: np.ndarray  # (n + 1,) int64
    ids: np.ndarray  # (S,) int64
    classes: np.ndarray  # (S,) int64
    crowd: np.ndarray  # (S,) int64, 0 or 1
    areas: np.ndarray  # (S,) int64 as stated, -1 if not given
    category_ids: np.ndarray  # (C,) int64 category of each class

    def __len__(self) -> int:
        return len(self.names)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, for the cache."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def rows(self, image: int) -> slice:
        """Return the rows of the segments of an image."""
        return slice(int(self.starts[image]), int(self.starts[image + 1]))

    def size_hw(self, image: int) -> tuple[int, int] | None:
        """Return the size of an image in the JSON, None if not given."""
        height, width = (int(side) for side in self.sizes_hw[image])
        return (height, width) if height > 0 and width > 0 else None


@dataclass(frozen=True)
class PanopticSplit:
    """Annotations of a split and the folder of its maps."""

    source: Path  # the JSON
    folder: Path
    table: PanopticTable
    notes: list[str]

    def map_path(self, image: int) -> str:
        """Return the PNG file of an image."""
        return str(self.folder / str(self.table.maps[image]))

    def read(self, image: int) -> NumberedMap:
        """Read the map of an image with its segments numbered in the order of the table.

        Raises:
            ImageFault: the file is unusable.
        """
        return number_segments(read_id_map(Path(self.map_path(image))), self.table.ids[self.table.rows(image)])

    def labels(self, image: int) -> PanopticLabels:
        """Read the labels of an image.

        Raises:
            ImageFault: the file is unusable.
        """
        table, rows = self.table, self.table.rows(image)
        key = str(table.image_ids[image])
        return PanopticLabels(
            numbers=self.read(image).numbers,
            classes=tuple(table.classes[rows].tolist()),
            crowd=tuple(bool(flag) for flag in table.crowd[rows]),
            image_id=int(key) if int(table.numeric) else key,
            map_name=str(table.maps[image]),
            category_ids=tuple(table.category_ids.tolist()),
        )


def open_panoptic_split(data: DataConfig, split: str) -> PanopticSplit:
    """Open the annotations of a split; the JSON is read only without a valid cache.

    Raises:
        UserError: there is no JSON or folder of maps, or the JSON is unusable.
    """
    source, names = require_annotations(data, split, data.format, "panoptic"), require_semantic(data).names
    folder = source.with_suffix("")
    if not folder.is_dir():
        raise UserError(f"{source}: no folder {folder} with its PNG files; unpack {folder.name}.zip there")
    things = len(data.names)
    header = "\n".join([f"polyolo panoptic {FORMAT_VERSION}", str(things), *names]).encode()
    key = files_key(header, [str(source)])
    paths = cache_paths(source.with_name(f"{source.stem}.{short_hash([*names])}.segments{CACHE_SUFFIX}"))
    with main_first():
        table, notes = load_scan(paths, key, _restored)
        if table is None:
            table, notes = read_panoptic_json(source, names, things)
            save_scan(paths, key, table.arrays(), notes)
    return PanopticSplit(source, folder, table, notes)


@dataclass
class _Reader:
    """Collects the entries of a JSON in any order."""

    path: Path
    images: dict[Any, tuple[str, int, int]] = field(default_factory=dict)  # by id: name, height, width
    categories: list[dict[str, Any]] = field(default_factory=list)
    annotations: dict[Any, tuple[str, list[dict[str, Any]]]] = field(default_factory=dict)  # by image id

    def add(self, key: str, item: Any) -> None:
        """Add an item of one of the lists."""
        if not isinstance(item, dict):
            raise UserError(f"{self.path}: `{key}` must be a list of objects, got an item {str(item)[:60]!r}")
        getattr(self, f"_add_{key}")(item)

    def _add_images(self, item: dict[str, Any]) -> None:
        key, name = item.get("id"), item.get("file_name")
        if not isinstance(key, (int, str)) or not isinstance(name, str) or not name:
            raise UserError(f"{self.path}: image number {len(self.images) + 1} needs an `id` and a `file_name`")
        if key in self.images:
            raise UserError(f"{self.path}: two images have the id {key!r}: {self.images[key][0]}, {name}")
        sides = [item.get(side) for side in ("height", "width")]
        height, width = (side if isinstance(side, int) and 0 < side < 2**31 else 0 for side in sides)
        self.images[key] = (name, height, width)

    def _add_categories(self, item: dict[str, Any]) -> None:
        if not isinstance(item.get("id"), int) or not isinstance(item.get("name"), str):
            raise UserError(f"{self.path}: category number {len(self.categories) + 1} needs an `id` and a `name`")
        self.categories.append(item)

    def _add_annotations(self, item: dict[str, Any]) -> None:
        key, name, segments = (item.get(part) for part in ("image_id", "file_name", "segments_info"))
        if not isinstance(segments, list):
            hint = "; this is not a panoptic JSON" if "segmentation" in item or "bbox" in item else ""
            raise UserError(f"{self.path}: annotation {len(self.annotations) + 1} has no `segments_info`{hint}")
        if not isinstance(key, (int, str)) or not isinstance(name, str) or not name or Path(name).is_absolute():
            raise UserError(
                f"{self.path}: annotation {len(self.annotations) + 1} needs an `image_id` and a relative `file_name`"
            )
        if ".." in re.split(r"[/\\]", name):
            raise UserError(f"{self.path}: image {key}: the map {name!r} is outside of the folder of the maps")
        if key in self.annotations:
            raise UserError(f"{self.path}: image {key} has two annotations; keep one")
        self.annotations[key] = (name, segments)


def read_panoptic_json(path: Path, names: tuple[str, ...], things: int) -> tuple[PanopticTable, list[str]]:
    """Read a panoptic JSON.

    Args:
        path: the file.
        names: names of all classes, the things first.
        things: number of things.

    Returns:
        The table of the images with an annotation, and warnings.

    Raises:
        UserError: the file is unreadable, is no panoptic JSON, or contradicts the classes or itself.
    """
    reader = _Reader(path)
    with progress(total=path.stat().st_size, text=f"reading {path.name}", unit="B") as bar:

        def advance(count: int) -> None:
            bar.update(count)

        for key, item in stream_json(path, ("images", "categories", "annotations"), advance):
            reader.add(key, item)
    for key in ("images", "categories", "annotations"):
        if not getattr(reader, key):
            raise UserError(f"{path}: no `{key}` in it; is it a panoptic JSON?")
    classes, category_ids = _class_of_category(reader, names, things)
    if unknown := next((key for key in reader.annotations if key not in reader.images), None):
        raise UserError(f"{path}: the annotation of image {unknown!r} refers to no entry of `images`")
    listed = [key for key in reader.images if key in reader.annotations]
    notes = []
    if len(listed) < len(reader.images):
        first = next(image[0] for key, image in reader.images.items() if key not in reader.annotations)
        notes.append(
            f"{path}: {len(reader.images) - len(listed)} of {len(reader.images)} images without an annotation, such as "
            f"{first}; dropped"
        )
    segments = [_segments(path, key, reader.annotations[key][1], classes) for key in listed]
    rows = np.array([row for part in segments for row in part], np.int64).reshape(-1, 4)
    table = PanopticTable(
        names=np.array([reader.images[key][0] for key in listed]),
        maps=np.array([reader.annotations[key][0] for key in listed]),
        image_ids=np.array([str(key) for key in listed]),
        numeric=np.array(all(isinstance(key, int) for key in listed), np.int64),
        sizes_hw=np.array([reader.images[key][1:] for key in listed], np.int64).reshape(-1, 2),
        starts=np.concatenate(([0], np.cumsum([len(part) for part in segments]))).astype(np.int64),
        ids=rows[:, 0],
        classes=rows[:, 1],
        crowd=rows[:, 2],
        areas=rows[:, 3],
        category_ids=np.array(category_ids, np.int64),
    )
    return table, notes


def _class_of_category(reader: _Reader, names: tuple[str, ...], things: int) -> tuple[dict[int, int], tuple[int, ...]]:
    """Match the categories to the classes; both must agree about what is a thing."""
    path = reader.path
    require_unique_ids(path, reader.categories)
    ordered = sorted(reader.categories, key=lambda category: (not category.get("isthing", 1), int(category["id"])))
    ids = match_categories(path, names, ordered)
    is_thing = {category["id"]: bool(category.get("isthing", 1)) for category in ordered}
    for number, key in enumerate(ids):
        if is_thing[key] != (number < things):
            stated, wanted = ("thing", "`stuff:`") if is_thing[key] else ("stuff", "`names:`")
            raise UserError(f"{path}: category {names[number]!r} is {stated}, but the data YAML lists it in {wanted}")
    return {key: number for number, key in enumerate(ids)}, ids


def _segments(path: Path, image: Any, entries: list[Any], classes: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """Check the segments of an image; return id, class, crowd flag and stated area of each."""
    found: dict[int, tuple[int, int, int, int]] = {}
    for entry in entries:
        key, category = (entry.get("id"), entry.get("category_id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(key, int) or not VOID < key <= MAX_ID:
            raise UserError(f"{path}: image {image}: segment {key!r} needs an `id` from 1 to {MAX_ID}")
        if category not in classes:
            raise UserError(f"{path}: image {image}: segment {key} has the unknown category {category!r}")
        if key in found:
            raise UserError(f"{path}: image {image}: two segments have the id {key}")
        area = entry.get("area", -1)
        stated = int(area) if isinstance(area, (int, float)) and 0 <= area < 2**40 else -1
        found[key] = (key, classes[category], int(bool(entry.get("iscrowd"))), stated)
    return list(found.values())


def _restored(arrays: dict[str, np.ndarray]) -> PanopticTable:
    """Rebuild the table from cached arrays; raises ValueError if they are inconsistent."""
    table = PanopticTable(**arrays)
    count, segments = len(table.names), len(table.ids)
    text, numbers = (table.names, table.maps, table.image_ids), (table.ids, table.classes, table.crowd, table.areas)
    if any(array.dtype.kind != "U" or array.shape != (count,) for array in text):
        raise ValueError("wrong names")
    if any(array.dtype.kind != "i" or array.shape != (segments,) for array in numbers):
        raise ValueError("wrong segments")
    if table.numeric.shape != () or table.category_ids.dtype.kind != "i":
        raise ValueError("wrong ids")
    if table.starts.shape != (count + 1,) or table.starts[0] != 0 or table.starts[-1] != segments:
        raise ValueError("inconsistent array lengths")
    if (np.diff(table.starts) < 0).any() or table.sizes_hw.shape != (count, 2):
        raise ValueError("inconsistent images")
    if segments and not (0 <= table.classes.min() <= table.classes.max() < len(table.category_ids)):
        raise ValueError("a segment of an unknown class")
    return table
