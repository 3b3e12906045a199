"""Files of a split and the `Index`: paths, sizes and labels of all images in flat arrays that forked workers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import numpy as np

from utils.datasets.labels.yolo_lines import ImageLabels


@dataclass(frozen=True)
class SplitFiles:
    """Images and label files of a split, as a reader finds them: `READERS.get(format)(data, split)`.

    Attributes:
        images: image files.
        label_files: label file of each image, "" if there is none; the cache is rebuilt when one changes.
        load_labels: loads the labels of an image by its row; thread-safe.
        cache: preferred path of the scan cache.
        prepare: called once before the first `load_labels` if there is no valid cache; returns warnings about the
            annotations as a whole.
        fingerprint: everything else that the labels depend on, such as class names; the cache is rebuilt when it
            changes.
        stamped: files whose sizes and times stand for those of images and label files; None: the files themselves.
        whole_images: the labels are classes of whole images, each a box of the whole image.
    """

    images: Sequence[str]
    label_files: Sequence[str]
    load_labels: Callable[[int], ImageLabels]
    cache: Path
    prepare: Callable[[], list[str]] | None = None
    fingerprint: str = ""
    stamped: list[str] | None = None
    whole_images: bool = False


@dataclass(frozen=True)
class Index:
    """Paths, sizes and labels of n images with N objects, whose polygons have P points in total.

    Workers read these arrays without copying them, while reference counts would copy nested Python lists page by page.
    Image i owns rows `box_starts[i]:box_starts[i + 1]` of `boxes`, and so on.
    """

    path_bytes: np.ndarray  # uint8, concatenated paths
    path_starts: np.ndarray  # (n + 1,) int64
    shapes_hw: np.ndarray  # (n, 2) int32, pixels
    boxes: np.ndarray  # (N, 5) float32: class, cx, cy, w, h, normalised
    box_starts: np.ndarray  # (n + 1,) int64
    points: np.ndarray  # (P, 2) float32, normalised
    point_starts: np.ndarray  # (N + 1,) int64; a box without polygon owns no points
    counts: np.ndarray  # (7,) int64: see `COUNTS`

    COUNTS = ("found", "missing", "empty", "corrupt", "faulty_labels", "duplicates", "lost")

    def __len__(self) -> int:
        return len(self.shapes_hw)

    def path(self, image: int) -> str:
        """Decode the path of an image."""
        start, end = self.path_starts[image : image + 2]
        return self.path_bytes[start:end].tobytes().decode("utf-8", "surrogateescape")

    def labels(self, image: int) -> np.ndarray:
        """Return a view of the (n, 5) labels of an image."""
        return self.boxes[self.box_starts[image] : self.box_starts[image + 1]]

    def polygons(self, image: int) -> list[np.ndarray]:
        """Return the normalised (k, 2) polygon of each label of an image, or an empty list if none has one."""
        first, last = int(self.box_starts[image]), int(self.box_starts[image + 1])
        starts = self.point_starts[first : last + 1]
        if starts[0] == starts[-1]:
            return []
        return [self.points[a:b] for a, b in pairwise(starts)]

    def first_without_polygon(self) -> int | None:
        """Find the first image with an object that has no polygon, None if all have one."""
        lacking = np.flatnonzero(np.diff(self.point_starts) == 0)
        return int(np.searchsorted(self.box_starts, lacking[0], side="right")) - 1 if len(lacking) else None

    @property
    def count(self) -> dict[str, int]:
        """Counts of the scan by name."""
        return {name: int(value) for name, value in zip(self.COUNTS, self.counts, strict=True)}

    def class_counts(self, num_classes: int) -> np.ndarray:
        """Count the objects of each class, (C,)."""
        return np.bincount(self.boxes[:, 0].astype(np.int64), minlength=num_classes)[:num_classes]

    def without(self, images: set[int]) -> Index:
        """Build the index of all other images; the removed ones are counted as faulty."""
        rows = [image for image in range(len(self)) if image not in images]
        labels = [ImageLabels(self.labels(image), self.polygons(image)) for image in rows]
        shapes = [(int(height), int(width)) for height, width in self.shapes_hw[rows]]
        fewer = Index.build([self.path(image) for image in rows], shapes, labels, corrupt=0)
        fewer.counts[:] = self.counts
        for name, change in (("found", -1), ("corrupt", 1), ("faulty_labels", 1)):
            fewer.counts[self.COUNTS.index(name)] += change * len(images)
        return fewer

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, for the cache."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def build(cls, paths: list[str], shapes: list[tuple[int, int]], labels: list[ImageLabels], corrupt: int) -> Index:
        """Build an index.

        Args:
            paths: image files.
            shapes: (height, width) of each image.
            labels: labels of each image.
            corrupt: number of images that were dropped.
        """
        blobs = [path.encode("utf-8", "surrogateescape") for path in paths]
        boxes = [label.boxes for label in labels]
        polygons = [
            polygon
            for label in labels
            for polygon in (label.polygons or [np.zeros((0, 2), np.float32)] * len(label.boxes))
        ]
        found = sum(label.present and len(label.boxes) > 0 for label in labels)
        missing = sum(not label.present for label in labels)
        duplicates = sum(label.duplicates for label in labels)
        lost = sum(len(label.lost) for label in labels)
        return cls(
            path_bytes=np.frombuffer(b"".join(blobs), np.uint8),
            path_starts=_starts([len(blob) for blob in blobs]),
            shapes_hw=np.array(shapes, np.int32).reshape(-1, 2),
            boxes=np.concatenate([np.zeros((0, 5), np.float32), *boxes]),
            box_starts=_starts([len(box) for box in boxes]),
            points=np.concatenate([np.zeros((0, 2), np.float32), *polygons]),
            point_starts=_starts([len(polygon) for polygon in polygons]),
            counts=np.array([found, missing, len(labels) - found - missing, corrupt, 0, duplicates, lost], np.int64),
        )


def _starts(lengths: list[int]) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)
