"""Checks of panoptic maps: ids that differ between PNG and JSON, stated areas, unlabelled pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tools.dataset_check import CHECKS
from tools.dataset_check.findings import Finding
from tools.dataset_check.records import DatasetRecords
from utils.core.errors import UserError
from utils.core.log import progress
from utils.datasets.image_files import ImageFault
from utils.datasets.labels.panoptic_table import open_panoptic_split
from utils.datasets.labels.readers.coco_panoptic import match_panoptic_images

_MAX_VOID = 0.5  # of an image; with more, little of it can be learned


@CHECKS.register("panoptic")
def check_panoptic(records: DatasetRecords) -> Iterator[Finding]:
    """Compare every panoptic map with its annotation."""
    if not records.data.is_panoptic:
        return
    for split in records.splits:
        try:
            found = open_panoptic_split(records.data, split)
            images, rows = match_panoptic_images(records.data, split, found)
        except UserError:  # a finding of its own, from reading the split
            continue
        void_px = total_px = 0
        for image, row in progress(zip(images, rows, strict=True), len(images), f"{split}: panoptic maps", "image"):
            try:
                numbered = found.read(row)
            except ImageFault:
                continue
            path, segments = found.map_path(row), found.table.rows(row)
            keys, stated, areas = found.table.ids[segments], found.table.areas[segments], numbered.areas[1:]
            if numbered.unlisted_px:
                text = f"{path}: {numbered.unlisted_px} pixels of unlisted segments, such as {numbered.unlisted}"
                yield Finding("panoptic-ids", text, split, image)
            if (empty := keys[areas == 0]).size:
                yield Finding("panoptic-empty", f"{path}: no pixel of segment {empty[0]}", split, image)
            differ = np.flatnonzero((stated >= 0) & (stated != areas) & (areas > 0))
            if differ.size:
                first = int(differ[0])
                text = f"{path}: segment {keys[first]} has {areas[first]} pixels, `area` is {stated[first]}"
                yield Finding("panoptic-area", text, split, image)
            size = numbered.numbers.size
            void = int(numbered.areas[0]) - numbered.unlisted_px
            if void > _MAX_VOID * size:
                yield Finding("panoptic-void", f"{path}: {void / size:.0%} of the pixels are void", split, image)
            void_px, total_px = void_px + void, total_px + size
        if total_px:
            text = f"{split}: {void_px / total_px:.1%} of all pixels are void"
            yield Finding("panoptic-labelled", text, split)
