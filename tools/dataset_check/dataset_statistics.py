"""Statistics of a data set: numbers, sizes and classes of images and objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.dataset_check.records import DatasetRecords, LabelRecord

SIZE_EDGES = (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # bins in pixels at the training size; the last one is open
COUNT_EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128)


def usable_images(records: DatasetRecords, split: str) -> list[LabelRecord]:
    """Get the images of a split that training would use."""
    images = records.splits.get(split, [])
    return [one for one in images if not one.image.fault and not one.labels.faults]


def class_counts(records: DatasetRecords, split: str) -> np.ndarray:
    """Count objects per class, (C,); unknown classes are not counted."""
    counts = np.zeros(records.data.num_classes, np.int64)
    for one in usable_images(records, split):
        numbers = one.labels.boxes[:, 0].astype(np.int64)
        counts += np.bincount(numbers[numbers < len(counts)], minlength=len(counts))
    return counts


def pixel_counts(records: DatasetRecords, split: str) -> np.ndarray:
    """Count pixels per class of the semantic maps, (C,)."""
    config = records.data.semantic
    counts = np.zeros(0 if config is None else len(config.names), np.int64)
    for one in records.maps.get(split, ()):
        if one.counts is not None:
            counts += one.counts
    return counts


def sizes_px(records: DatasetRecords, split: str) -> np.ndarray:
    """Compute the square root of each box's area, (n,), in pixels at the training size."""
    found = [np.zeros(0)]
    for one in usable_images(records, split):
        if one.image.size_hw is not None and len(one.labels.boxes):
            height, width = one.image.size_hw
            scale = records.imgsz / max(height, width)
            found.append(np.sqrt(one.labels.boxes[:, 3] * width * one.labels.boxes[:, 4] * height) * scale)
    return np.concatenate(found)


def _histogram(values: np.ndarray, edges: tuple[int, ...]) -> list[int]:
    counts, _ = np.histogram(values, [*edges, np.inf])
    return [int(count) for count in counts]


def compute_statistics(records: DatasetRecords) -> dict[str, Any]:
    """Compute counts and histograms of every split, as values for JSON."""
    found: dict[str, Any] = {}
    for split in records.split_names:
        image_records = records.images(split).values()
        shapes = np.array([one.size_hw for one in image_records if one.size_hw is not None]).reshape(-1, 2)
        about: dict[str, Any] = {
            "images": len(image_records),
            "unreadable": sum(bool(one.fault) for one in image_records),
        }
        if len(shapes):
            about["shapes"] = {
                "smallest_wh": [int(v) for v in shapes[shapes.prod(1).argmin()][::-1]],
                "largest_wh": [int(v) for v in shapes[shapes.prod(1).argmax()][::-1]],
                "median_wh": [int(v) for v in np.median(shapes, axis=0)[::-1]],
            }
        if split in records.splits:
            images = usable_images(records, split)
            per_image = np.array([len(one.labels.boxes) for one in images])
            about |= {
                "format": records.formats[split],
                "objects": int(per_image.sum()),
                "without_objects": int((per_image == 0).sum()),
                "outlines": sum(len(outline) > 0 for one in images for outline in one.labels.polygons),
                "per_class": [int(count) for count in class_counts(records, split)],
                "sizes_px": _histogram(sizes_px(records, split), SIZE_EDGES),
                "objects_per_image": _histogram(per_image, COUNT_EDGES),
            }
        if split in records.maps:
            about["maps"] = len(records.maps[split])
            about["pixels_per_class"] = [int(count) for count in pixel_counts(records, split)]
        found[split] = about
    return found
