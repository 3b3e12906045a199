"""Read every image, label and class map of a data set once, on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from tools.dataset_check.findings import Finding
from tools.dataset_check.inspect_image import look_at
from tools.dataset_check.inspect_semantic_map import map_of
from tools.dataset_check.records import Gathered, Labelled, Mapped, Picture
from utils.core.data_config import SPLITS, DataConfig
from utils.core.errors import UserError
from utils.core.log import progress
from utils.datasets import READERS, SEMANTIC_READERS
from utils.datasets.labels.label_index import SplitFiles
from utils.datasets.labels.readers.auto import detect_format
from utils.datasets.labels.scan import ThreadPool
from utils.datasets.labels.semantic_layout import SemanticSplitFiles
from utils.datasets.labels.yolo_lines import ImageLabels


def gather(data: DataConfig, imgsz: int, fast: bool = False) -> Gathered:
    """Return everything about all splits of a data set; `fast` leaves out what needs pixels.

    A split that cannot be read becomes a finding. UserError: none can.
    """
    gathered = Gathered(data, imgsz)
    listings, maps = _listings(gathered), _semantic_listings(gathered)
    if not listings and not maps:
        raise UserError(gathered.met[0].text if gathered.met else f"{data.source}: names no split")
    paths = dict.fromkeys(path for listing in listings.values() for path in listing.images)
    paths |= dict.fromkeys(path for semantic in maps.values() for path in semantic.images)
    looked = _on_all_cores(partial(look_at, fast=fast), list(paths), "looking at images")
    pictures = dict(zip(paths, looked, strict=True))
    for split, listing in listings.items():
        twin = _first_like(listing, {other: listings[other] for other in gathered.splits})
        gathered.splits[split] = gathered.splits[twin] if twin else _labelled(listing, pictures, split)
    for split, semantic in maps.items():
        files = (semantic.images, semantic.masks)
        same = [other for other in gathered.maps if (maps[other].images, maps[other].masks) == files]
        gathered.maps[split] = gathered.maps[same[0]] if same else _mapped(gathered, semantic, pictures, split, fast)
    return gathered


def _first_like(listing: SplitFiles, others: dict[str, SplitFiles]) -> str:
    """Return which of `others` has the same images and labels, "" if none has."""
    files = (listing.images, listing.label_files)
    return next((name for name, other in others.items() if (other.images, other.label_files) == files), "")


def _unread(split: str, error: UserError) -> Finding:
    return Finding("no-test" if split == "test" else "split", str(error), split)


def _on_all_cores(work: Callable[[Any], Any], items: Sequence[Any], text: str) -> list[Any]:
    with ThreadPool(os.cpu_count() or 1) as pool:
        return list(progress(pool.map(work, items), len(items), text, "image"))


def _listings(gathered: Gathered) -> dict[str, SplitFiles]:
    """Return what the reader of the data's format finds in each split that can be read."""
    data, found = gathered.data, {}
    for split in (split for split in SPLITS if split in data.splits):
        try:
            name = detect_format(data, split) if data.format == "auto" else data.format
            listing: SplitFiles = READERS.get(name, data.source)(data, split)
            notes = listing.prepare() if listing.prepare is not None else []
        except UserError as error:
            gathered.met.append(_unread(split, error))
            continue
        gathered.formats[split] = name
        gathered.met += [Finding("annotations", note, split) for note in notes]
        found[split] = listing
    return found


def _semantic_listings(gathered: Gathered) -> dict[str, SemanticSplitFiles]:
    config, found = gathered.data.semantic, {}
    for split in SPLITS if config is not None else ():
        if config is None or split not in config.splits:
            continue
        try:
            listing: SemanticSplitFiles = SEMANTIC_READERS.get(config.format, gathered.data.source).read(
                gathered.data, split
            )
        except UserError as error:
            gathered.met.append(_unread(split, error))
            continue
        gathered.met += [Finding("unmapped", note, split) for note in listing.notes]
        found[split] = listing
    return found


def _labelled(listing: SplitFiles, pictures: dict[str, Picture], split: str) -> list[Labelled]:
    labels: Iterable[ImageLabels] = _on_all_cores(
        listing.load_labels, range(len(listing.images)), f"{split}: reading labels"
    )
    files = zip(listing.images, listing.label_files, labels, strict=True)
    return [Labelled(pictures[path], label, file) for path, file, label in files if label.listed]


def _mapped(
    gathered: Gathered, listing: SemanticSplitFiles, pictures: dict[str, Picture], split: str, fast: bool
) -> list[Mapped]:
    config = gathered.data.semantic
    assert config is not None
    boxes = {one.picture.path: one.labels for one in gathered.splits.get(split, ()) if not one.labels.faults}
    numbers = {name: number for number, name in enumerate(config.names)}
    of_box = [numbers.get(name, -1) for name in gathered.data.names]  # class of the map of each class of boxes

    def read(row: int) -> Mapped:
        path = listing.images[row]
        return map_of(
            pictures[path],
            listing.masks[row],
            listing.tables[listing.table_of[row]],
            len(config.names),
            None if fast else boxes.get(path),
            of_box,
        )

    return _on_all_cores(read, range(len(listing.images)), f"{split}: reading class maps")
