"""A cleaned copy of a data set: what training would use, without what falsifies scores. The source stays as it is.

Left out: images that cannot be read or are cut short, images whose labels cannot be read, second copies of an image in
a split, and those in train that validation or test have as well. Changed: boxes are cut at the edge, repeated and
impossible labels dropped, images turned by EXIF saved upright, wrong suffixes corrected. Boxes and outlines are written
as YOLO labels, a class per image as folders, class maps as PNG.
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

from tools.converters.output_folder import Sink
from tools.dataset_check.checks.image_files import SUFFIXES
from tools.dataset_check.records import Gathered, Labelled, Picture
from tools.dataset_check.text_report import Report
from utils.core.data_config import SPLITS
from utils.core.errors import UserError
from utils.core.log import LOGGER, progress
from utils.datasets.image_files import read_image
from utils.datasets.labels.semantic_mask_files import map_classes, read_values
from utils.datasets.labels.yolo_lines import ImageLabels

NAME = "fix-report.json"
_QUALITY = 100
_SPOILT = ("unreadable", "truncated", "too-small", "size-differs", "label-fault", "unknown-class", "mask", "conflict")


@dataclass
class _Copy:
    """One cleaned copy in the making."""

    gathered: Gathered
    sink: Sink
    left_out: dict[tuple[str, str], str]  # split and image -> why
    changed: Counter[str] = field(default_factory=Counter)
    stems: dict[tuple[str, str], str] = field(default_factory=dict)  # split and image -> what the copy is called


def write_fixed(report: Report, out: Path) -> Path:
    """Write the copy; return its data YAML. UserError: `out` is not empty, or nothing sound would be left."""
    gathered = report.gathered
    with Sink(out) as sink:
        copy = _Copy(gathered, sink, _unwanted(report))
        sink.protected |= {
            os.path.realpath(path) for split in gathered.split_names for path in gathered.pictures(split)
        }
        boxes = {split: place for split in gathered.splits if (place := _boxes(copy, split))}
        values: dict[str, Any] = {"format": "folders"} if boxes and gathered.data.format == "folders" else {}
        values |= boxes | ({"names": dict(enumerate(gathered.data.names))} if boxes else {})
        values |= _maps(copy)
        if not values:
            raise UserError(f"--fix {out}: nothing sound would be left")
        sink.write("data.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))
        left_out = [{"split": split, "image": path, "why": why} for (split, path), why in copy.left_out.items()]
        about = {"source": str(gathered.data.source), "left_out": left_out, "changed": dict(+copy.changed)}
        sink.write(NAME, json.dumps(about, indent=1) + "\n")
    LOGGER.info(f"{out / 'data.yaml'}: cleaned copy, {len(copy.left_out)} images left out, see {NAME}")
    for what, count in (+copy.changed).items():
        LOGGER.info(f"    {count} {what}")
    return out / "data.yaml"


def _unwanted(report: Report) -> dict[tuple[str, str], str]:
    """Return which image is left out of which split, and why. Of copies across splits the last split keeps its own."""
    gathered = report.gathered
    pictures = {split: gathered.pictures(split).keys() for split in SPLITS if split in gathered.split_names}
    found: dict[tuple[str, str], str] = {}
    for one in report.findings:
        paths = list(dict.fromkeys((one.image, *one.others)))
        places = [(split, path) for split, inside in pictures.items() for path in paths if path in inside]
        if one.kind in _SPOILT:
            found |= {place: one.text for place in places if place[1] == one.image or one.kind == "conflict"}
        elif one.kind == "duplicate-image":
            found |= {place: one.text for place in places if place[1] != one.image}
        elif one.kind in ("leak", "near-leak"):
            found |= {place: one.text for place in places if place[0] != places[-1][0]}
    return found


def _boxes(copy: _Copy, split: str) -> str:
    """Write the images of a split with their labels; return its place for the YAML, "" if none is left."""
    data, splits = copy.gathered.data, copy.gathered.splits
    whole = data.format == "folders"
    paths = [one.picture.path for one in splits[split]]
    for other in splits:
        if other == split:
            break
        if [one.picture.path for one in splits[other]] == paths:  # the same images under two names
            copy.stems |= {(split, path): stem for (name, path), stem in copy.stems.items() if name == other}
            return other if whole else f"images/{other}"
    images = [one for one in splits[split] if (split, one.picture.path) not in copy.left_out]
    for one in progress(images, len(images), f"{split}: copying", "image"):
        name = _name(one.picture.path, data.splits[split], data.root)
        if whole:
            folder = data.names[int(one.labels.boxes[0, 0])]
            _put(copy, one.picture, _unused(copy, f"{split}/{folder}/{Path(name).name}", one.picture))
            continue
        stem = _unused(copy, f"{split}/{name}", one.picture)
        _put(copy, one.picture, f"images/{stem}")
        copy.stems[split, one.picture.path] = stem
        if one.labels.present:
            copy.sink.write(f"labels/{stem}.txt", _lines(copy, one))
    place = split if whole else f"images/{split}"
    return place if images else ""


def _maps(copy: _Copy) -> dict[str, Any]:
    """Write class maps, beside the boxes' images if these are the same; return the `semantic:` block, if any."""
    config = copy.gathered.data.semantic
    sound = {
        split: [one for one in images if not one.fault and (split, one.picture.path) not in copy.left_out]
        for split, images in copy.gathered.maps.items()
    }
    sound = {split: images for split, images in sound.items() if images}
    if config is None or not sound:
        return {}
    shared = all((split, one.picture.path) in copy.stems for split, images in sound.items() for one in images)
    for split, images in sound.items():
        for one in progress(images, len(images), f"{split}: copying maps", "image"):
            path = one.picture.path
            if shared:
                stem = copy.stems[split, path]
            else:
                name = _name(path, config.splits[split], copy.gathered.data.root)
                stem = _unused(copy, f"seg/{split}/{name}", one.picture).removeprefix("seg/")
                _put(copy, one.picture, f"segimages/{stem}")
            _, data = cv2.imencode(".png", map_classes(read_values(Path(one.mask)), one.table))
            copy.sink.write(f"{'masks' if shared else 'seglabels'}/{stem}.png", data.tobytes())
    block: dict[str, Any] = {"format": "folders", **{split: f"segimages/{split}" for split in sound}}
    if shared:  # not every image with boxes need have a map: that is what the format coco allows
        block = {"format": "coco", **{split: f"images/{_first(copy, split)}" for split in sound}}
        block |= {"masks": {split: f"masks/{_first(copy, split)}" for split in sound}}
        block |= {"ids": {number: number for number in range(len(config.names))}}
    return {"semantic": {**block, "names": dict(enumerate(config.names))}}


def _first(copy: _Copy, split: str) -> str:
    """Return the split that the copies of a split's images are called after."""
    return next(stem.split("/")[0] for (name, _), stem in copy.stems.items() if name == split)


def _name(path: str, places: tuple[Path, ...], root: Path) -> str:
    """Return what an image is called below its split, without suffix."""
    file = Path(path)
    for folder in (*places, root):
        if folder.is_dir() and file.is_relative_to(folder):
            return file.relative_to(folder).with_suffix("").as_posix()
    return file.stem


def _unused(copy: _Copy, stem: str, picture: Picture) -> str:
    return copy.sink.unused([stem, f"{stem}_{Path(picture.path).suffix[1:]}"])


def _put(copy: _Copy, picture: Picture, stem: str) -> None:
    """Copy an image, upright and with a suffix that fits its bytes."""
    suffix = Path(picture.path).suffix.lower()
    fitting = SUFFIXES.get(picture.format, (suffix,))
    if suffix not in fitting:
        suffix = fitting[0]
        copy.changed["suffixes corrected"] += 1
    if picture.orientation == 1:
        copy.sink.take(Path(picture.path), stem + suffix, "copy")
        return
    suffix = suffix if suffix in (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff") else ".png"
    _, data = cv2.imencode(suffix, read_image(Path(picture.path)), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    copy.sink.write(stem + suffix, data.tobytes())
    copy.changed["images turned upright"] += 1


def _lines(copy: _Copy, one: Labelled) -> str:
    """Return the label file of an image: sound objects only, cut at the edge."""
    labels = one.labels
    copy.changed["repeated labels dropped"] += labels.duplicates
    copy.changed["impossible objects dropped"] += len(labels.lost)
    cut = _cut(labels)
    polygons = len(labels.polygons) > 0 and all(len(outline) for outline in labels.polygons)
    lines = []
    for row, (number, before, after) in enumerate(zip(labels.boxes[:, 0], labels.boxes[:, 1:], cut, strict=True)):
        if (after[2:] <= 0).any():
            copy.changed["impossible objects dropped"] += 1
            continue
        copy.changed["boxes cut at the edge"] += bool(np.abs(before - after).max() > 1e-4)
        values = np.clip(labels.polygons[row], 0, 1).ravel() if polygons else after
        lines.append(" ".join([str(int(number)), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)


def _cut(labels: ImageLabels) -> np.ndarray:
    """Return (n, 4) boxes cx, cy, w, h cut at the edge of the image."""
    centre, half = labels.boxes[:, 1:3], labels.boxes[:, 3:5] / 2
    low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
    return np.concatenate(((low + high) / 2, high - low), 1)
