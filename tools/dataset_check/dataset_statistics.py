"""Numbers about a data set: how many, how large, of which class."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.dataset_check.records import Gathered, Labelled

SIZE_EDGES = (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # pixels at the training size; the last bin is open
COUNT_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128)


def usable(gathered: Gathered, split: str) -> list[Labelled]:
    """Return the images of a split that training would use."""
    images = gathered.splits.get(split, [])
    return [one for one in images if not one.picture.fault and not one.labels.faults]


def class_counts(gathered: Gathered, split: str) -> np.ndarray:
    """Return (C,) objects of each class; classes that are not named are not counted."""
    counts = np.zeros(gathered.data.num_classes, np.int64)
    for one in usable(gathered, split):
        numbers = one.labels.boxes[:, 0].astype(np.int64)
        counts += np.bincount(numbers[numbers < len(counts)], minlength=len(counts))
    return counts


def pixel_counts(gathered: Gathered, split: str) -> np.ndarray:
    """Return (C,) pixels of each class of the class maps."""
    config = gathered.data.semantic
    counts = np.zeros(0 if config is None else len(config.names), np.int64)
    for one in gathered.maps.get(split, ()):
        if one.counts is not None:
            counts += one.counts
    return counts


def sizes_px(gathered: Gathered, split: str) -> np.ndarray:
    """Return (n,) square roots of the areas of all boxes, in pixels at the training size."""
    found = [np.zeros(0)]
    for one in usable(gathered, split):
        if one.picture.size_hw is not None and len(one.labels.boxes):
            height, width = one.picture.size_hw
            scale = gathered.imgsz / max(height, width)
            found.append(np.sqrt(one.labels.boxes[:, 3] * width * one.labels.boxes[:, 4] * height) * scale)
    return np.concatenate(found)


def _histogram(values: np.ndarray, edges: tuple[int, ...]) -> list[int]:
    counts, _ = np.histogram(values, [*edges, np.inf])
    return [int(count) for count in counts]


def statistics(gathered: Gathered) -> dict[str, Any]:
    """Return counts and histograms of every split, ready for JSON."""
    found: dict[str, Any] = {}
    for split in gathered.split_names:
        pictures = gathered.pictures(split).values()
        shapes = np.array([one.size_hw for one in pictures if one.size_hw is not None]).reshape(-1, 2)
        about: dict[str, Any] = {"images": len(pictures), "unreadable": sum(bool(one.fault) for one in pictures)}
        if len(shapes):
            about["shapes"] = {
                "smallest_wh": [int(v) for v in shapes[shapes.prod(1).argmin()][::-1]],
                "largest_wh": [int(v) for v in shapes[shapes.prod(1).argmax()][::-1]],
                "median_wh": [int(v) for v in np.median(shapes, axis=0)[::-1]],
            }
        if split in gathered.splits:
            images = usable(gathered, split)
            per_image = np.array([len(one.labels.boxes) for one in images])
            about |= {
                "format": gathered.formats[split],
                "objects": int(per_image.sum()),
                "without_objects": int((per_image == 0).sum()),
                "outlines": sum(len(outline) > 0 for one in images for outline in one.labels.polygons),
                "per_class": [int(count) for count in class_counts(gathered, split)],
                "sizes_px": _histogram(sizes_px(gathered, split), SIZE_EDGES),
                "objects_per_image": _histogram(per_image, COUNT_EDGES),
            }
        if split in gathered.maps:
            about["maps"] = len(gathered.maps[split])
            about["pixels_per_class"] = [int(count) for count in pixel_counts(gathered, split)]
        found[split] = about
    return found
