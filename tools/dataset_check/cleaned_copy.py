"""Cleaned copy of a data set (`--fix`); the source is not changed.

Left out are unreadable and truncated images, images with unreadable labels, duplicates within a split, and images of
train that validation or test have as well. Boxes are clipped to the image, repeated and impossible labels dropped,
images rotated by EXIF saved upright, and wrong suffixes corrected. Boxes and polygons are written as YOLO labels,
classification data as class folders, semantic maps as PNG.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from tools.converters.output_folder import OutputFolder
from tools.dataset_check.checks.image_files import SUFFIXES
from tools.dataset_check.records import DatasetRecords, ImageRecord, LabelRecord
from tools.dataset_check.text_report import CheckReport
from utils.core.data_config import SPLITS
from utils.core.errors import UserError
from utils.core.log import LOGGER, progress
from utils.datasets.image_files import read_image
from utils.datasets.labels.semantic_mask_files import map_classes, read_values
from utils.datasets.labels.yolo_lines import ImageLabels

FIX_REPORT_NAME = "fix-report.json"
_JPEG_QUALITY = 100
_UNUSABLE = ("unreadable", "truncated", "too-small", "size-differs", "label-fault", "unknown-class", "mask", "conflict")


@dataclass
class _Copy:
    """State of a copy while it is written."""

    records: DatasetRecords
    output: OutputFolder
    left_out: dict[tuple[str, str], str]  # (split, path) -> reason
    changed: Counter[str] = field(default_factory=Counter)
    stems: dict[tuple[str, str], str] = field(default_factory=dict)  # (split, path) -> name of the copy without suffix


def write_cleaned_copy(report: CheckReport, out: Path) -> Path:
    """Write a cleaned copy of a checked data set.

    Args:
        report: The findings, which decide what is left out.
        out: New folder.

    Returns:
        Path of the copy's data YAML.

    Raises:
        UserError: `out` is not empty, or no image would be left.
    """
    records = report.records
    with OutputFolder(out) as output:
        copy = _Copy(records, output, _images_to_drop(report))
        output.protected |= {os.path.realpath(path) for split in records.split_names for path in records.images(split)}
        boxes = {split: folder for split in records.splits if (folder := _write_split(copy, split))}
        values: dict[str, Any] = {"format": "folders"} if boxes and records.classification else {}
        values |= boxes | ({"names": dict(enumerate(records.data.names))} if boxes else {})
        values |= _write_maps(copy)
        if not values:
            raise UserError(f"--fix {out}: no valid image would be left")
        output.write("data.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
        left_out = [{"split": split, "image": path, "why": why} for (split, path), why in copy.left_out.items()]
        about = {"source": str(records.data.source), "left_out": left_out, "changed": dict(+copy.changed)}
        output.write(FIX_REPORT_NAME, json.dumps(about, indent=1) + "\n")
    LOGGER.info(f"{out / 'data.yaml'}: cleaned copy, {len(copy.left_out)} images left out, see {FIX_REPORT_NAME}")
    for what, count in (+copy.changed).items():
        LOGGER.info(f"    {count} {what}")
    return out / "data.yaml"


def _images_to_drop(report: CheckReport) -> dict[tuple[str, str], str]:
    """Select (split, path) of the images to leave out, with reasons; of leaks, the last split keeps its image."""
    records = report.records
    images = {split: records.images(split).keys() for split in SPLITS if split in records.split_names}
    found: dict[tuple[str, str], str] = {}
    for one in report.findings:
        paths = list(dict.fromkeys((one.image, *one.others)))
        copies = [(split, path) for split, inside in images.items() for path in paths if path in inside]
        if one.kind in _UNUSABLE:
            found |= {key: one.text for key in copies if key[1] == one.image or one.kind == "conflict"}
        elif one.kind == "duplicate-image":
            found |= {key: one.text for key in copies if key[1] != one.image}
        elif one.kind in ("leak", "near-leak"):
            found |= {key: one.text for key in copies if key[0] != copies[-1][0]}
    return found


def _write_split(copy: _Copy, split: str) -> str:
    """Write the images and labels of a split; returns its folder for the data YAML, "" if no image is left."""
    data, splits = copy.records.data, copy.records.splits
    classification = copy.records.classification
    paths = [one.image.path for one in splits[split]]
    for other in splits:
        if other == split:
            break
        if [one.image.path for one in splits[other]] == paths:  # identical splits are written once
            copy.stems |= {(split, path): stem for (name, path), stem in copy.stems.items() if name == other}
            return other if classification else f"images/{other}"
    images = [one for one in splits[split] if (split, one.image.path) not in copy.left_out]
    for one in progress(images, len(images), f"{split}: copying", "image"):
        name = _relative_name(one.image.path, data.splits[split], data.root)
        if classification:
            folder = data.names[int(one.labels.boxes[0, 0])]
            _write_image(copy, one.image, _unused(copy, f"{split}/{folder}/{Path(name).name}", one.image))
            continue
        stem = _unused(copy, f"{split}/{name}", one.image)
        _write_image(copy, one.image, f"images/{stem}")
        copy.stems[split, one.image.path] = stem
        if one.labels.present:
            copy.output.write(f"labels/{stem}.txt", _label_lines(copy, one))
    if not images:
        return ""
    return split if classification else f"images/{split}"


def _write_maps(copy: _Copy) -> dict[str, Any]:
    """Write semantic maps, for the images already written if they are the same; returns the `semantic:` block."""
    config = copy.records.data.semantic
    valid = {
        split: [one for one in images if not one.fault and (split, one.image.path) not in copy.left_out]
        for split, images in copy.records.maps.items()
    }
    valid = {split: images for split, images in valid.items() if images}
    if config is None or not valid:
        return {}
    shared = all((split, one.image.path) in copy.stems for split, images in valid.items() for one in images)
    for split, images in valid.items():
        for one in progress(images, len(images), f"{split}: copying semantic maps", "image"):
            path = one.image.path
            if shared:
                stem = copy.stems[split, path]
            else:
                name = _relative_name(path, config.splits[split], copy.records.data.root)
                stem = _unused(copy, f"seg/{split}/{name}", one.image).removeprefix("seg/")
                _write_image(copy, one.image, f"segimages/{stem}")
            _, data = cv2.imencode(".png", map_classes(read_values(Path(one.mask)), one.table))
            copy.output.write(f"{'masks' if shared else 'seglabels'}/{stem}.png", data.tobytes())
    block: dict[str, Any] = {"format": "folders", **{split: f"segimages/{split}" for split in valid}}
    if shared:  # the format coco allows images without a map
        block = {"format": "coco", **{split: f"images/{_source_split(copy, split)}" for split in valid}}
        block |= {"masks": {split: f"masks/{_source_split(copy, split)}" for split in valid}}
        block |= {"ids": {number: number for number in range(len(config.names))}}
    return {"semantic": {**block, "names": dict(enumerate(config.names))}}


def _source_split(copy: _Copy, split: str) -> str:
    """Get the split whose folder has the copies of a split's images."""
    return next(stem.split("/")[0] for (name, _), stem in copy.stems.items() if name == split)


def _relative_name(path: str, folders: tuple[Path, ...], root: Path) -> str:
    """Get the path of an image below its split, without suffix."""
    file = Path(path)
    for folder in (*folders, root):
        if folder.is_dir() and file.is_relative_to(folder):
            return file.relative_to(folder).with_suffix("").as_posix()
    return file.stem


def _unused(copy: _Copy, stem: str, image: ImageRecord) -> str:
    return copy.output.unused([stem, f"{stem}_{Path(image.path).suffix[1:]}"])


def _write_image(copy: _Copy, image: ImageRecord, stem: str) -> None:
    """Copy an image, upright and with the suffix of its content."""
    suffix = Path(image.path).suffix.lower()
    fitting = SUFFIXES.get(image.format, (suffix,))
    if suffix not in fitting:
        suffix = fitting[0]
        copy.changed["suffixes corrected"] += 1
    if image.orientation == 1:
        copy.output.add_image(Path(image.path), stem + suffix, "copy")
        return
    suffix = suffix if suffix in (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff") else ".png"
    _, data = cv2.imencode(suffix, read_image(Path(image.path)), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    copy.output.write(stem + suffix, data.tobytes())
    copy.changed["images turned upright"] += 1


def _label_lines(copy: _Copy, one: LabelRecord) -> str:
    """Format the label file of an image: valid objects only, clipped to the image."""
    labels = one.labels
    copy.changed["repeated labels dropped"] += labels.duplicates
    copy.changed["impossible objects dropped"] += len(labels.lost)
    clipped = _clip_boxes(labels)
    polygons = len(labels.polygons) > 0 and all(len(outline) for outline in labels.polygons)
    lines = []
    for row, (number, before, after) in enumerate(zip(labels.boxes[:, 0], labels.boxes[:, 1:], clipped, strict=True)):
        if (after[2:] <= 0).any():
            copy.changed["impossible objects dropped"] += 1
            continue
        copy.changed["boxes cut at the edge"] += bool(np.abs(before - after).max() > 1e-4)
        values = np.clip(labels.polygons[row], 0, 1).ravel() if polygons else after
        lines.append(" ".join([str(int(number)), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def _clip_boxes(labels: ImageLabels) -> np.ndarray:
    """Clip boxes to the image; returns (n, 4) cx, cy, w, h, normalised."""
    centre, half = labels.boxes[:, 1:3], labels.boxes[:, 3:5] / 2
    low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
    return np.concatenate(((low + high) / 2, high - low), 1)
