"""Maps of classes, PNG or numpy arrays, one per image: outlines of connected regions, or the maps themselves."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import BACKGROUND, NO_CLASS, Source, Work, given_names, works_below
from tools.converters.split_folders import USUAL
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject, mask_pieces
from utils.datasets.labels.annotation_paths import find_images

_MAPS = (".png", ".bmp", ".tif", ".tiff", ".npy")
_PAIRS = (("images", "masks"), ("images", "labels"), ("segimages", "seglabels"), ("imgs", "gts"))
_ENDINGS = ("", "_mask", "_gt", "_label", "_labels", "_seg")


@SOURCES.register("masks")
def open_masks(settings: LabelSettings) -> Source:
    """Return the images of a folder and their maps, or maps alone if there are no images.

    Folders: `--pictures` and `--masks`, else the usual pairs (images, masks; segimages, seglabels; train, trainannot).
    """
    works: list[Work] = []
    maps: dict[Path, Path] = {}
    for split, pictures, masks in _folders(settings):
        there = _maps_in(masks)
        if pictures is None:
            found = works_below(masks, [str(path) for path in sorted(there.values())], split)
            works += [Work(work.split, work.image, work.name, has_image=False) for work in found]
            maps |= {work.image: work.image for work in found}
            continue
        for work in works_below(pictures, sorted(find_images(pictures, pictures)), split):
            stems = [f"{base}{end}" for base in (work.name, _without_ending(work.name)) for end in _ENDINGS]
            file = next((there[stem] for stem in stems if stem in there), None)
            if file is not None:
                maps[work.image] = file
                works.append(work)
    if not works:
        raise UserError(f"{settings.source}: no images with masks of the same name; give --pictures and --masks")
    names = given_names(settings.names, settings.source)
    if not names:
        if settings.target_format != "masks":
            raise UserError(f"{settings.source}: masks hold numbers only; give the names of the classes with --names")
        names = tuple(f"class {value}" for value in range(NO_CLASS))
    return Source(names, works, lambda work: _read(maps[work.image], names, settings))


def _folders(settings: LabelSettings) -> list[tuple[str, Path | None, Path]]:
    """Return (split, images, masks) of every split."""
    root = settings.source
    if settings.masks:
        return [(settings.split, Path(settings.pictures) if settings.pictures else None, Path(settings.masks))]
    for images, masks in _PAIRS:
        if (root / images).is_dir() and (root / masks).is_dir():
            splits = [split for split in USUAL if (root / images / split).is_dir() and (root / masks / split).is_dir()]
            if splits:
                return [(split, root / images / split, root / masks / split) for split in splits]
            return [(settings.split, root / images, root / masks)]
    pairs = [(s, root / s, root / f"{s}annot") for s in USUAL if (root / s).is_dir() and (root / f"{s}annot").is_dir()]
    return pairs or [(settings.split, None, root)]  # type: ignore[return-value]


def _maps_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no folder of masks")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _MAPS)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def _without_ending(name: str) -> str:
    return next((name.removesuffix(end) for end in ("_img", "_image", "_leftImg8bit") if name.endswith(end)), name)


def _read(file: Path, names: tuple[str, ...], settings: LabelSettings) -> FileObjects:
    try:
        classes = _map(file)
    except UserError as error:
        return FileObjects(faults=[str(error)])
    found = FileObjects(size_hw=(classes.shape[0], classes.shape[1]))
    too_high = (classes >= len(names)) & (classes != NO_CLASS)
    if too_high.any():
        value = int(classes[too_high].max())
        found.faults.append(f"{file}: holds {value}, but there are {len(names)} names and {NO_CLASS} for none")
        return found
    found.semantic = classes
    if settings.target_format == "masks":
        return found
    for value in np.unique(classes).tolist():
        if value in (NO_CLASS, settings.background) or names[value] == BACKGROUND:
            continue
        _, parts, stats, _ = cv2.connectedComponentsWithStats((classes == value).view(np.uint8), connectivity=8)
        for part, (x, y, width, height, pixels) in enumerate(stats.tolist()):
            if part == 0 or pixels < settings.least_px:  # 0 is what has another value
                continue
            pieces = [piece + np.array([x, y]) for piece in mask_pieces(parts[y : y + height, x : x + width] == part)]
            box = np.array([x, y, x + width, y + height], np.float64)
            found.objects.append(LabelledObject(names[value], box, pieces, where=f"region {part}"))
    return found


def _map(file: Path) -> np.ndarray:
    """Return the (H, W) uint8 classes of a file; negative numbers of an array become 255 (behaviour.md 12.10)."""
    try:
        array = file.suffix.lower() == ".npy"
        values = np.load(file, allow_pickle=False) if array else _palette_or_grey(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: cannot be read as a map of classes ({str(error)[:80]})") from error
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.integer) or values.dtype == bool):
        raise UserError(
            f"{file}: a map of classes has one whole number per pixel, this has {values.shape} {values.dtype}"
        )
    if (values > NO_CLASS).any():
        raise UserError(f"{file}: holds {int(values.max())}; classes of pixels go up to 254")
    return np.where(values < 0, NO_CLASS, values).astype(np.uint8)


def _palette_or_grey(file: Path) -> np.ndarray:
    """Return the numbers of the pixels, of palette images the numbers of the colours."""
    from PIL import Image

    with Image.open(file) as image:
        if image.mode not in ("P", "L", "1", "I", "I;16"):
            raise ValueError(f"it is a picture of mode {image.mode}, not a map with a number per pixel")
        return np.asarray(image)
