"""Checks of semantic maps: unusable, or in disagreement with the boxes of their images."""

from __future__ import annotations

from collections.abc import Iterator

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import DatasetRecords


@CHECKS.register("maps")
def check_maps(records: DatasetRecords) -> Iterator[Finding]:
    """Check every semantic map."""
    config = records.data.semantic
    if config is None:
        return
    for split, images in records.maps.items():
        labels = {one.image.path: one.labels.boxes for one in records.splits.get(split, ())}
        for one in images:
            path = one.image.path
            if one.fault and not one.image.fault:
                yield Finding("mask", one.fault, split, path)
            if one.absent_boxes:
                rows = labels[path][one.absent_boxes]
                names = ", ".join(dict.fromkeys(records.data.names[int(number)] for number in rows[:, 0]))
                boxes = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in rows[:, 1:])
                text = f"{one.mask}: no pixel of {names} in {len(rows)} boxes of the image"
                yield Finding("mask-lacks-box", text, split, path, boxes=boxes)
            if one.unboxed_regions:
                names = ", ".join(dict.fromkeys(config.names[number] for number, _ in one.unboxed_regions))
                text = f"{one.mask}: {len(one.unboxed_regions)} regions of {names} without a box"
                yield Finding("box-lacks-mask", text, split, path, boxes=tuple(box for _, box in one.unboxed_regions))
