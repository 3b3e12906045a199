"""Divide images into training, validation and test lists: by classes, by groups, by a seed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from tools.converters.conversion_report import NAME, Report
from tools.converters.convert_settings import SplitSettings
from tools.converters.label_items import given_names, located
from tools.converters.output_folder import Sink
from tools.converters.split_folders import splits_of
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.log import LOGGER, progress
from utils.core.seed import generator
from utils.datasets import READERS
from utils.datasets.labels.annotation_paths import find_images

SPLITS = ("train", "val", "test")


def stratified(counts: np.ndarray, sizes: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Return the part (n,) of each of n units that gives all parts their share of every class.

    `counts` (n, C) are labels of each class in a unit, `sizes` (n,) its images. Iterative stratification (Sechidis,
    Tsoumakas, Vlahavas, 2011): of the class with fewest labels left, every unit goes to the part that lacks most of it,
    of equal ones to the one that lacks most images; units without labels last. Large units of a class go first, so
    that small ones can even out.
    """
    share = np.asarray(shares, np.float64) / sum(shares)
    wanted = share[:, None] * counts.sum(0)  # (parts, C)
    room = share * sizes.sum()
    rng = generator(seed, 0, 0, 0)
    tie = rng.permutation(len(counts))
    part = np.full(len(counts), -1, np.int64)
    while (open_units := np.flatnonzero(part < 0)).size:
        left = counts[open_units].sum(0).astype(np.float64)
        if not left.any():
            for unit in open_units[np.lexsort((tie[open_units], -sizes[open_units]))]:
                part[unit] = _neediest(room, room, tie[unit])
                room[part[unit]] -= sizes[unit]
            break
        rarest = int(np.where(left > 0, left, np.inf).argmin())
        having = open_units[counts[open_units, rarest] > 0]
        for unit in having[np.lexsort((tie[having], -counts[having, rarest]))]:
            part[unit] = _neediest(wanted[:, rarest], room, tie[unit])
            wanted[part[unit]] -= counts[unit]
            room[part[unit]] -= sizes[unit]
    return part


def _neediest(first: np.ndarray, second: np.ndarray, tie: int) -> int:
    """Return the part that lacks most; what is equal goes by images, then by lot."""
    best = np.flatnonzero(first >= first.max() - 1e-9)
    best = best[second[best] >= second[best].max() - 1e-9]
    return int(best[tie % len(best)])


def split_images(settings: SplitSettings) -> Report:
    """Write list files and a data YAML; the images stay where they are."""
    shares = settings.shares
    if not 2 <= len(shares) <= 3 or min(shares) <= 0:
        raise UserError("--shares: two or three numbers above 0 are expected, for train, val and test")
    settings = replace(settings, source=located(settings.source))
    data = _data(settings)
    report = Report({"source": str(settings.source), "shares": list(shares), "seed": settings.seed})
    images, counts = _counted(data, settings, report)
    if len(images) < len(shares):
        raise UserError(f"{settings.source}: {len(images)} images for {len(shares)} splits")
    keys = _groups(images, settings)
    units, owner = np.unique(np.array(keys), return_inverse=True)
    of_units = np.zeros((len(units), counts.shape[1]), np.int64)
    np.add.at(of_units, owner, counts)
    part = stratified(of_units, np.bincount(owner), shares, settings.seed)[owner]
    lists = {split: [images[i] for i in np.flatnonzero(part == n)] for n, split in enumerate(SPLITS[: len(shares)])}
    if empty := [split for split, members in lists.items() if not members]:
        raise UserError(f"{settings.source}: {len(units)} groups leave {empty[0]} without images; use a finer --group")
    with Sink(settings.out, settings.exist_ok, settings.dry_run) as sink:
        sink.protected |= {os.path.realpath(path) for path in [*images, str(settings.source)]}
        for split, members in lists.items():
            lines = [Path(os.path.relpath(path, sink.out)).as_posix() for path in members]
            sink.write(f"{split}.txt", "".join(f"./{line}\n" for line in lines))
            report.images[split] = len(members)
        if data.names:
            sink.write("data.yaml", _yaml(data, settings, sink.out, lists))
        sink.write(NAME, report.text(sink.written + 1))
    _tell(data, counts, part, report)
    report.tell(sink.written, str(settings.out), settings.dry_run)
    return report


def _data(settings: SplitSettings) -> DataConfig:
    source = settings.source
    if source.suffix.lower() in (".yaml", ".yml"):
        return load_data(str(source))
    if not source.is_dir():
        raise UserError(f"--source {source}: a folder of images or a data YAML is expected")
    names = given_names(settings.names, source)
    return DataConfig(source, source, names, splits_of(source, "train"), format=settings.source_format)


def _counted(data: DataConfig, settings: SplitSettings, report: Report) -> tuple[list[str], np.ndarray]:
    """Return the images of all splits and their (n, C) labels per class; images with faulty labels are left out."""
    if settings.stratify != "labels":
        images = sorted(
            {path for places in data.splits.values() for place in places for path in find_images(place, data.root)}
        )
        names = [Path(path).parent.name if settings.stratify == "folders" else "" for path in images]
        known = sorted(set(names))
        report.objects.update(Counter(names) if settings.stratify == "folders" else {})
        return images, np.eye(len(known), dtype=np.int64)[[known.index(name) for name in names]]
    if not data.names:
        raise UserError(f"{settings.source}: give the names of the classes with --names, or another --stratify")
    rows: dict[str, np.ndarray] = {}
    for split in data.splits:
        listing = READERS.get(data.format, data.source)(data, split)
        for note in listing.prepare() if listing.prepare is not None else []:
            report.note(note)
        for i, image in enumerate(progress(listing.images, len(listing.images), f"{split}: reading labels", "image")):
            labels = listing.load_labels(i)
            if labels.faults:
                report.skip(image, "; ".join(labels.faults))
            elif labels.listed:
                rows[image] = np.bincount(labels.boxes[:, 0].astype(np.int64), minlength=data.num_classes)
    if too_many := [image for image, row in rows.items() if len(row) > data.num_classes]:
        raise UserError(f"{too_many[0]}: has a class above the {data.num_classes} that {data.source} names")
    images = sorted(rows)
    counts = np.stack([rows[image] for image in images]) if images else np.zeros((0, 1), np.int64)
    report.objects.update(dict(zip(data.names, counts.sum(0).tolist(), strict=False)))
    return images, counts


def _groups(images: list[str], settings: SplitSettings) -> list[str]:
    """Return the group of each image: what the expression matches in its path; without a match it is alone."""
    if not settings.group:
        return images
    try:
        pattern = re.compile(settings.group)
    except re.error as error:
        raise UserError(f"--group {settings.group!r}: no regular expression ({error})") from error
    root = settings.source if settings.source.is_dir() else settings.source.parent
    keys = []
    for image in images:
        found = pattern.search(Path(os.path.relpath(image, root)).as_posix())
        keys.append(f"group {found[1] if pattern.groups else found[0]}" if found else image)
    LOGGER.info(f"{len(set(keys))} groups among {len(images)} images")
    return keys


def _yaml(data: DataConfig, settings: SplitSettings, out: Path, lists: dict[str, list[str]]) -> str:
    values: dict[str, object] = {"format": data.format}
    values |= {split: f"{split}.txt" for split in lists}
    if data.annotations:
        if len(set(data.annotations.values())) > 1:
            raise UserError(f"{settings.source}: its splits have several JSONs; convert it to yolo first, then split")
        shared = os.path.relpath(next(iter(data.annotations.values())), out)
        values["annotations"] = dict.fromkeys(lists, Path(shared).as_posix())
    values["names"] = dict(enumerate(data.names))
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))


def _tell(data: DataConfig, counts: np.ndarray, part: np.ndarray, report: Report) -> None:
    """Log how far the rarest classes are from an even division."""
    present = np.flatnonzero(counts.sum(0))
    for label in present[counts[:, present].sum(0).argsort()][:5]:
        shares = [int(counts[part == n, label].sum()) for n in range(len(report.images))]
        name = data.names[label] if label < len(data.names) else str(label)
        LOGGER.info(f"{name}: {', '.join(f'{n} {split}' for n, split in zip(shares, report.images, strict=True))}")
