"""Conversion of labelled images from one format to another."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from tools.converters import SOURCES, TARGETS
from tools.converters.conversion_report import REPORT_NAME, ConversionReport
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import BACKGROUND, LabelledImage, SourceImage, resolve_source
from tools.converters.output_folder import OutputFolder
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


def convert_labels(settings: LabelSettings) -> ConversionReport:
    """Convert the labels of a data set.

    Args:
        settings: Source, destination and formats.

    Returns:
        The report, which is also written to the output folder as JSON.

    Raises:
        UserError: Options contradict each other, the source cannot be read, or no image can be converted.
    """
    settings = replace(settings, source=resolve_source(settings.source))
    _validate(settings)
    report = ConversionReport({name: str(value) for name, value in asdict(settings).items()})
    with OutputFolder(settings.out, settings.exist_ok, settings.dry_run) as output:
        source = SOURCES.get(settings.source_format)(settings)
        for text in source.notes:
            report.note(text)
        if not source.images:
            raise UserError(f"--source {settings.source}: no images with labels to convert")
        names = source.names
        settings = replace(settings, stuff=source.stuff)
        if settings.target_format != "masks":
            names = tuple(name for name in names if name != BACKGROUND)
        target = TARGETS.get(settings.target_format)(output, settings, names, report)
        classes = ClassNumbers(names)
        for image in progress(source.images, len(source.images), "converting", "image"):
            output.protected.add(os.path.realpath(image.path))
            item = _labelled_image(source.read(image), image, classes, settings, report)
            if item is not None:
                target.add(item)
                report.images[image.split] += 1
        if not report.images:
            raise UserError(
                f"--source {settings.source}: none of {len(source.images)} images can be converted, the first one: "
                f"{report.skipped[0]['image']}: {report.skipped[0]['why']}"
            )
        target.finish()
        output.write(REPORT_NAME, report.to_json(output.written + 1))
    report.log_summary(output.written, str(settings.out), settings.dry_run)
    return report


def _validate(settings: LabelSettings) -> None:
    """Reject options that are out of range or contradict each other."""
    source, out = settings.source, settings.out
    if not source.exists():
        raise UserError(f"--source {source}: no such file or folder")
    if out.resolve() in (source.resolve(), source.resolve().parent if source.is_file() else None):
        raise UserError(f"--out {out}: is the folder of the source, which is never changed; choose another folder")
    for option, text in (("--pictures", settings.pictures), ("--masks", settings.masks)):
        if text and not Path(text).is_dir():
            raise UserError(f"{option} {text}: no such folder")
    if settings.decimals is not None and not 0 <= settings.decimals <= 12:
        raise UserError(f"--decimals expects a number from 0 to 12, got {settings.decimals}")
    if settings.background is not None and not 0 <= settings.background <= 255:
        raise UserError(f"--background expects a number from 0 to 255, got {settings.background}")
    if settings.images == "none" and settings.target_format == "labelme":
        raise UserError("--images none: LabelMe files lie beside their images; use copy or link")


def _labelled_image(
    found: FileObjects, source: SourceImage, classes: ClassNumbers, settings: LabelSettings, report: ConversionReport
) -> LabelledImage | None:
    """Validate the labels of an image and scale them to its pixels; None, with the reason in the report, if faulty."""
    image = str(source.path)
    if found.faults:
        report.skip(image, "; ".join(found.faults))
        return None
    try:
        size_hw = probe_image(source.path) if source.has_image else found.size_hw
    except ImageFault as fault:
        report.skip(image, str(fault))
        return None
    if size_hw is None:
        report.skip(image, "neither an image nor its size is known")
        return None
    stated = found.size_hw or size_hw
    if not is_same_aspect(stated, size_hw):
        sizes = " and ".join(f"{width} x {height}" for height, width in (stated, size_hw))
        report.skip(image, f"labels and image have different aspect ratios, {sizes}; is it rotated or cropped?")
        return None
    for line in found.lost:
        report.lose(image, line)
    objects = []
    for one in found.objects:
        if stated != size_hw:
            one.pieces = [resized(piece, stated, size_hw) for piece in one.pieces]
            one.box_xyxy = resized(one.box_xyxy.reshape(2, 2), stated, size_hw).ravel()
        if _keep_object(one, image, size_hw, classes, settings, report):
            objects.append(one)
    return LabelledImage(source, size_hw, objects, found.semantic, found.panoptic)


def _keep_object(
    one: LabelledObject,
    image: str,
    size_hw: tuple[int, int],
    classes: ClassNumbers,
    settings: LabelSettings,
    report: ConversionReport,
) -> bool:
    """Clip an object to its image and decide whether it is written; reasons against it go to the report."""
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
