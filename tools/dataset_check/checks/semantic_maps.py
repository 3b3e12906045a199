"""Class maps: unusable, or of another opinion than the boxes of their images."""

from __future__ import annotations

from collections.abc import Iterator

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import Gathered


@CHECKS.register("maps")
def check_maps(gathered: Gathered) -> Iterator[Finding]:
    """Yield what is wrong with class maps."""
    config = gathered.data.semantic
    if config is None:
        return
    for split, images in gathered.maps.items():
        labels = {one.picture.path: one.labels.boxes for one in gathered.splits.get(split, ())}
        for one in images:
            path = one.picture.path
            if one.fault and not one.picture.fault:
                yield Finding("mask", one.fault, split, path)
            if one.unseen:
                rows = labels[path][one.unseen]
                names = ", ".join(dict.fromkeys(gathered.data.names[int(number)] for number in rows[:, 0]))
                boxes = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in rows[:, 1:])
                text = f"{one.mask}: nothing of {names} in {len(rows)} of its image's boxes"
                yield Finding("mask-lacks-box", text, split, path, boxes=boxes)
            if one.unboxed:
                names = ", ".join(dict.fromkeys(config.names[number] for number, _ in one.unboxed))
                text = f"{one.mask}: {len(one.unboxed)} regions of {names} where its image has no such box"
                yield Finding("box-lacks-mask", text, split, path, boxes=tuple(place for _, place in one.unboxed))
