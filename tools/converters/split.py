"""Stratified division of images into training, validation and test lists."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from tools.converters import SOURCES
from tools.converters.conversion_report import REPORT_NAME, ConversionReport
from tools.converters.convert_settings import LabelSettings, SplitSettings
from tools.converters.label_items import read_class_names, resolve_source
from tools.converters.output_folder import OutputFolder
from tools.converters.split_folders import find_splits
from utils.core.annotation_folder import NAMED_FORMATS, find_named_format
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.log import LOGGER, progress
from utils.core.seed import generator
from utils.datasets import READERS
from utils.datasets.generators import ensure_generated
from utils.datasets.labels.annotation_paths import find_images

SPLITS = ("train", "val", "test")


def stratify(counts: np.ndarray, sizes: np.ndarray, fractions: Sequence[float], seed: int) -> np.ndarray:
    """Divide units so that every part gets its fraction of every class.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011): of the class with the fewest labels left, every
    unit goes to the part that lacks most of them, ties to the part that lacks most images; units without labels come
    last. Units with many labels of the class go first, so that small ones can even out.

    Args:
        counts: (n, C) labels per unit and class.
        sizes: (n,) images per unit.
        fractions: Relative sizes of the parts.
        seed: Seed of the order of equal units.

    Returns:
        (n,) int64 number of each unit's part.
    """
    fraction = np.asarray(fractions, np.float64) / sum(fractions)
    missing_labels = fraction[:, None] * counts.sum(0)  # (parts, C)
    missing_images = fraction * sizes.sum()
    rng = generator(seed, 0, 0, 0)
    tie = rng.permutation(len(counts))
    part = np.full(len(counts), -1, np.int64)
    while (remaining := np.flatnonzero(part < 0)).size:
        left = counts[remaining].sum(0).astype(np.float64)
        if not left.any():
            for unit in remaining[np.lexsort((tie[remaining], -sizes[remaining]))]:
                part[unit] = _part_lacking_most(missing_images, missing_images, tie[unit])
                missing_images[part[unit]] -= sizes[unit]
            break
        rarest = int(np.where(left > 0, left, np.inf).argmin())
        members = remaining[counts[remaining, rarest] > 0]
        for unit in members[np.lexsort((tie[members], -counts[members, rarest]))]:
            part[unit] = _part_lacking_most(missing_labels[:, rarest], missing_images, tie[unit])
            missing_labels[part[unit]] -= counts[unit]
            missing_images[part[unit]] -= sizes[unit]
    return part


def _part_lacking_most(first: np.ndarray, second: np.ndarray, tie: int) -> int:
    """Select the part with the largest `first`, then the largest `second`, then by the random number `tie`."""
    best = np.flatnonzero(first >= first.max() - 1e-9)  # tolerance for rounding in sums of fractions
    best = best[second[best] >= second[best].max() - 1e-9]
    return int(best[tie % len(best)])


def split_images(settings: SplitSettings) -> ConversionReport:
    """Write list files of the splits and a data YAML; the images stay where they are.

    Args:
        settings: Source, destination and fractions.

    Returns:
        The report, which is also written to the output folder as JSON.

    Raises:
        UserError: The options are invalid, the labels cannot be read, or a split would be empty.
    """
    fractions = settings.shares
    if not 2 <= len(fractions) <= 3 or min(fractions) <= 0:
        given = " ".join(f"{fraction:g}" for fraction in fractions)
        raise UserError(f"--shares expects two or three positive numbers, for train, val and test; got {given}")
    settings = replace(settings, source=resolve_source(settings.source))
    data = _open_data(settings)
    report = ConversionReport({"source": str(settings.source), "shares": list(fractions), "seed": settings.seed})
    images, counts = _count_labels(data, settings, report)
    if len(images) < len(fractions):
        raise UserError(
            f"--source {settings.source}: {len(images)} images cannot be divided into {len(fractions)} splits"
        )
    keys = _group_keys(images, settings)
    groups, group_of = np.unique(np.array(keys), return_inverse=True)
    group_counts = np.zeros((len(groups), counts.shape[1]), np.int64)
    np.add.at(group_counts, group_of, counts)
    part = stratify(group_counts, np.bincount(group_of), fractions, settings.seed)[group_of]
    lists = {split: [images[i] for i in np.flatnonzero(part == n)] for n, split in enumerate(SPLITS[: len(fractions)])}
    if empty := [split for split, members in lists.items() if not members]:
        raise UserError(f"--group: {len(groups)} groups leave the split {empty[0]} without images; use a finer --group")
    with OutputFolder(settings.out, settings.exist_ok, settings.dry_run) as output:
        output.protected |= {os.path.realpath(path) for path in [*images, str(settings.source)]}
        for split, members in lists.items():
            lines = [Path(os.path.relpath(path, output.out)).as_posix() for path in members]
            output.write(f"{split}.txt", "".join(f"./{line}\n" for line in lines))
            report.images[split] = len(members)
        if data.names:
            output.write("data.yaml", _format_yaml(data, settings, output.out, lists))
        output.write(REPORT_NAME, report.to_json(output.written + 1))
    _log_rarest_classes(data, counts, part, report)
    report.log_summary(output.written, str(settings.out), settings.dry_run)
    if data.names and not settings.dry_run:
        LOGGER.info(f"check it: python check.py --data {settings.out}; train: python train.py --data {settings.out}")
    return report


def _open_data(settings: SplitSettings) -> DataConfig:
    source = settings.source
    if source.suffix.lower() in (".yaml", ".yml"):
        data = load_data(str(source))
        ensure_generated(data)
        return data
    if not source.is_dir():
        raise UserError(f"--source {source}: expected a folder of images or a data YAML")
    names = read_class_names(settings.names, source)
    data = DataConfig(source, source, names, find_splits(source, "train"), format=settings.source_format)
    label_format = find_named_format(source) if data.format == "auto" else data.format
    if names or settings.stratify != "labels" or label_format not in NAMED_FORMATS:
        return data
    opened = SOURCES.get(label_format)(LabelSettings(source, settings.out, label_format, "yolo"))
    return replace(data, names=opened.names, format=label_format)


def _count_labels(data: DataConfig, settings: SplitSettings, report: ConversionReport) -> tuple[list[str], np.ndarray]:
    """List the images of all splits with their (n, C) labels per class; images with faulty labels are left out."""
    if settings.stratify != "labels":
        images = sorted(
            {image for paths in data.splits.values() for path in paths for image in find_images(path, data.root)}
        )
        names = [Path(path).parent.name if settings.stratify == "folders" else "" for path in images]
        known = sorted(set(names))
        report.objects.update(Counter(names) if settings.stratify == "folders" else {})
        return images, np.eye(len(known), dtype=np.int64)[[known.index(name) for name in names]]
    if not data.names:
        raise UserError(f"{settings.source}: no class names; set --names, or --stratify folders or none")
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
        raise UserError(f"{too_many[0]}: a class number exceeds the {data.num_classes} names of {data.source}")
    images = sorted(rows)
    counts = np.stack([rows[image] for image in images]) if images else np.zeros((0, 1), np.int64)
    report.objects.update(dict(zip(data.names, counts.sum(0).tolist(), strict=False)))
    return images, counts


def _group_keys(images: list[str], settings: SplitSettings) -> list[str]:
    """Get the group of each image: the match of --group in its path; images without a match stay alone."""
    if not settings.group:
        return images
    try:
        pattern = re.compile(settings.group)
    except re.error as error:
        raise UserError(f"--group {settings.group!r}: not a valid regular expression ({error})") from error
    root = settings.source if settings.source.is_dir() else settings.source.parent
    keys = []
    for image in images:
        found = pattern.search(Path(os.path.relpath(image, root)).as_posix())
        keys.append(f"group {found[1] if pattern.groups else found[0]}" if found else image)
    LOGGER.info(f"{len(images)} images in {len(set(keys))} groups")
    return keys


def _format_yaml(data: DataConfig, settings: SplitSettings, out: Path, lists: dict[str, list[str]]) -> str:
    values: dict[str, object] = {"format": data.format}
    values |= {split: f"{split}.txt" for split in lists}
    if data.annotations:
        if len(set(data.annotations.values())) > 1:
            raise UserError(f"{settings.source}: the splits have different annotation files; convert to yolo first")
        shared = os.path.relpath(next(iter(data.annotations.values())), out)
        values["annotations"] = dict.fromkeys(lists, Path(shared).as_posix())
    values["names"] = dict(enumerate(data.names))
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))


def _log_rarest_classes(data: DataConfig, counts: np.ndarray, part: np.ndarray, report: ConversionReport) -> None:
    """Log how the five rarest classes are divided."""
    present = np.flatnonzero(counts.sum(0))
    for label in present[counts[:, present].sum(0).argsort()][:5]:
        numbers = [int(counts[part == n, label].sum()) for n in range(len(report.images))]
        name = data.names[label] if label < len(data.names) else str(label)
        LOGGER.info(f"{name}: {', '.join(f'{n} {split}' for n, split in zip(numbers, report.images, strict=True))}")
