"""Convert labelled images from one format to another."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tools.converters import SOURCES, TARGETS
from tools.converters.conversion_report import NAME, Report
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import BACKGROUND, Item, Source, Work, located
from tools.converters.output_folder import Sink
from utils.core.errors import UserError
from utils.core.log import progress
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.annotation_objects import (
    ClassNumbers,
    FileObjects,
    LabelledObject,
    box_fault,
    extent,
    resized,
)
from utils.datasets.labels.label_scan import is_same_aspect


class Target(Protocol):
    """What is built as `TARGETS.get(format)(sink, settings, names, report)`."""

    def add(self, item: Item) -> None:
        """Write one image."""
        ...

    def finish(self) -> None:
        """Write what belongs to all."""
        ...


def convert_labels(settings: LabelSettings) -> Report:
    """Convert; return what was done, which also lies as JSON in the output folder."""
    settings = replace(settings, source=located(settings.source))
    _check(settings)
    report = Report({name: str(value) for name, value in asdict(settings).items()})
    with Sink(settings.out, settings.exist_ok, settings.dry_run) as sink:
        source: Source = SOURCES.get(settings.source_format)(settings)
        for text in source.notes:
            report.note(text)
        if not source.works:
            raise UserError(f"{settings.source}: no images that could be converted")
        names = source.names
        if settings.target_format != "masks":
            names = tuple(name for name in names if name != BACKGROUND)
        target: Target = TARGETS.get(settings.target_format)(sink, settings, names, report)
        classes = ClassNumbers(names)
        for work in progress(source.works, len(source.works), "converting", "image"):
            sink.protected.add(os.path.realpath(work.image))
            item = _item(source.read(work), work, classes, settings, report)
            if item is not None:
                target.add(item)
                report.images[work.split] += 1
        if not report.images:
            raise UserError(
                f"{settings.source}: none of {len(source.works)} images could be converted, the first: "
                f"{report.skipped[0]['image']}: {report.skipped[0]['why']}"
            )
        target.finish()
        sink.write(NAME, report.text(sink.written + 1))
    report.tell(sink.written, str(settings.out), settings.dry_run)
    return report


def _check(settings: LabelSettings) -> None:
    """Raise UserError for options that cannot be meant."""
    source, out = settings.source, settings.out
    if not source.exists():
        raise UserError(f"--source {source}: not there")
    if out.resolve() in (source.resolve(), source.resolve().parent if source.is_file() else None):
        raise UserError(f"--out {out}: is where the source lies, which is never changed; choose another folder")
    for option, text in (("--pictures", settings.pictures), ("--masks", settings.masks)):
        if text and not Path(text).is_dir():
            raise UserError(f"{option} {text}: no such folder")
    if settings.decimals is not None and not 0 <= settings.decimals <= 12:
        raise UserError(f"--decimals {settings.decimals}: from 0 to 12")
    if settings.background is not None and not 0 <= settings.background <= 255:
        raise UserError(f"--background {settings.background}: from 0 to 255")
    if settings.images == "none" and settings.target_format == "labelme":
        raise UserError("--images none: LabelMe files lie beside their images; copy or link them")


def _item(
    found: FileObjects, work: Work, classes: ClassNumbers, settings: LabelSettings, report: Report
) -> Item | None:
    """Return the image with sound objects in its own pixels, or None and why in the report."""
    image = str(work.image)
    if found.faults:
        report.skip(image, "; ".join(found.faults))
        return None
    try:
        size_hw = probe_image(work.image) if work.has_image else found.size_hw
    except ImageFault as fault:
        report.skip(image, str(fault))
        return None
    if size_hw is None:
        report.skip(image, "neither an image nor its size")
        return None
    stated = found.size_hw or size_hw
    if not is_same_aspect(stated, size_hw):
        sizes = " and ".join(f"{width} x {height}" for height, width in (stated, size_hw))
        report.skip(image, f"labels and image have different shapes, {sizes}; is it turned or cut?")
        return None
    for line in found.lost:
        report.lose(image, line)
    objects = []
    for one in found.objects:
        if stated != size_hw:
            one.pieces = [resized(piece, stated, size_hw) for piece in one.pieces]
            one.box_xyxy = resized(one.box_xyxy.reshape(2, 2), stated, size_hw).ravel()
        if _sound(one, size_hw, classes, (settings, report, image)):
            objects.append(one)
    return Item(work, size_hw, objects, found.semantic)


def _sound(one: LabelledObject, size_hw: tuple[int, int], classes: ClassNumbers, by: tuple[Any, ...]) -> bool:
    """Tell whether an object is to be written, cut at the border of its image; why not goes into the report."""
    settings, report, image = by
    if classes.get(one.name) is None and one.aside != "ignore":
        report.left_out[f"class {one.name!r} not among the names"] += 1
        return False
    if fault := box_fault(one.box_xyxy, size_hw):
        report.lose(image, f"{one.where}: {fault}")
        return False
    limit = (size_hw[1], size_hw[0])
    one.box_xyxy = np.clip(one.box_xyxy.reshape(2, 2), 0, limit).ravel()
    pieces = [np.clip(piece, 0, limit) for piece in one.pieces]
    one.pieces = [piece for piece in pieces if (np.ptp(piece, axis=0) > 0).all()]
    if settings.style == "polygons" and one.pieces:
        one.box_xyxy = extent(one.pieces)
    width, height = one.box_xyxy[2:] - one.box_xyxy[:2]
    if width * height < settings.least_px:
        report.left_out["smaller than --least-px"] += 1
        return False
    return True
