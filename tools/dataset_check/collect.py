"""Reading of every image, label and semantic map of a data set, once and on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from tools.dataset_check.findings import Finding
from tools.dataset_check.inspect_image import inspect_image
from tools.dataset_check.inspect_semantic_map import inspect_semantic_map
from tools.dataset_check.records import DatasetRecords, ImageRecord, LabelRecord, SemanticRecord
from utils.core.data_config import SPLITS, DataConfig
from utils.core.errors import UserError
from utils.core.log import progress
from utils.datasets import READERS, SEMANTIC_READERS
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.readers.auto import detect_format
from utils.datasets.labels.scan import ThreadPool
from utils.datasets.labels.semantic_layout import SemanticSplitFiles
from utils.datasets.labels.semantic_scan import values_of
from utils.datasets.labels.yolo_lines import ImageLabels


def collect_records(data: DataConfig, imgsz: int, fast: bool = False) -> DatasetRecords:
    """Read all splits of a data set.

    Args:
        data: The data set.
        imgsz: Longer side in pixels at which object sizes are measured.
        fast: Read headers and labels only, no pixels.

    Returns:
        The records; splits that cannot be read become findings.

    Raises:
        UserError: No split can be read.
    """
    records = DatasetRecords(data, imgsz)
    listings, maps = _listings(records), _semantic_listings(records)
    if not listings and not maps:
        raise UserError(records.findings[0].text if records.findings else f"{data.source}: defines no split")
    paths = dict.fromkeys(path for listing in listings.values() for path in listing.images)
    paths |= dict.fromkeys(path for semantic in maps.values() for path in semantic.images)
    inspected = _map_on_all_cores(partial(inspect_image, fast=fast), list(paths), "inspecting images")
    images = dict(zip(paths, inspected, strict=True))
    for split, listing in listings.items():
        same_as = _find_same(listing, {other: listings[other] for other in records.splits})
        records.splits[split] = records.splits[same_as] if same_as else _read_labels(listing, images, split)
    for split, semantic in maps.items():
        files = (semantic.images, semantic.masks)
        same = [other for other in records.maps if (maps[other].images, maps[other].masks) == files]
        records.maps[split] = records.maps[same[0]] if same else _read_maps(records, semantic, images, split, fast)
    return records


def _find_same(listing: SplitFiles, others: dict[str, SplitFiles]) -> str:
    """Find the split among `others` with the same images and labels, "" if there is none."""
    files = (listing.images, listing.label_files)
    return next((name for name, other in others.items() if (other.images, other.label_files) == files), "")


def _unreadable_split(split: str, error: UserError) -> Finding:
    return Finding("no-test" if split == "test" else "split", str(error), split)


def _map_on_all_cores(function: Callable[[Any], Any], items: Sequence[Any], text: str) -> list[Any]:
    with ThreadPool(os.cpu_count() or 1) as pool:
        return list(progress(pool.map(function, items), len(items), text, "image"))


def _listings(records: DatasetRecords) -> dict[str, SplitFiles]:
    """List the images and labels of each split that can be read."""
    data, found = records.data, {}
    for split in (split for split in SPLITS if split in data.splits):
        try:
            name = detect_format(data, split) if data.format == "auto" else data.format
            listing: SplitFiles = READERS.get(name, data.source)(data, split)
            notes = listing.prepare() if listing.prepare is not None else []
        except UserError as error:
            records.findings.append(_unreadable_split(split, error))
            continue
        records.formats[split] = name
        records.classification |= listing.whole_images
        records.findings += [Finding("annotations", note, split) for note in notes]
        found[split] = listing
    return found


def _semantic_listings(records: DatasetRecords) -> dict[str, SemanticSplitFiles]:
    config, found = records.data.semantic, {}
    for split in SPLITS if config is not None else ():
        if config is None or split not in config.splits:
            continue
        try:
            listing: SemanticSplitFiles = SEMANTIC_READERS.get(config.format, records.data.source).read(
                records.data, split
            )
        except UserError as error:
            records.findings.append(_unreadable_split(split, error))
            continue
        records.findings += [Finding("unmapped", note, split) for note in listing.notes]
        found[split] = listing
    return found


def _read_labels(listing: SplitFiles, images: dict[str, ImageRecord], split: str) -> list[LabelRecord]:
    labels: Iterable[ImageLabels] = _map_on_all_cores(
        listing.load_labels, range(len(listing.images)), f"{split}: reading labels"
    )
    files = zip(listing.images, listing.label_files, labels, strict=True)
    return [LabelRecord(images[path], label, file) for path, file, label in files if label.listed]


def _read_maps(
    records: DatasetRecords, listing: SemanticSplitFiles, images: dict[str, ImageRecord], split: str, fast: bool
) -> list[SemanticRecord]:
    config = records.data.semantic
    assert config is not None
    boxes = {one.image.path: one.labels for one in records.splits.get(split, ()) if not one.labels.faults}
    numbers = {name: number for number, name in enumerate(config.names)}
    semantic_classes = [numbers.get(name, -1) for name in records.data.names]  # of each box class

    def read(row: int) -> SemanticRecord:
        path = listing.images[row]
        return inspect_semantic_map(
            images[path],
            listing.masks[row],
            partial(values_of, listing, row),
            listing.tables[listing.table_of[row]],
            len(config.names),
            None if fast else boxes.get(path),
            semantic_classes,
        )

    return _map_on_all_cores(read, range(len(listing.images)), f"{split}: reading semantic maps")
