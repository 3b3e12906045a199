"""Reader of semantic maps, PNG or numpy arrays: polygons of connected regions, or the maps themselves."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.label_items import BACKGROUND, NO_CLASS, LabelSource, SourceImage, images_below, read_class_names
from tools.converters.split_folders import SPLIT_NAMES
from utils.core.errors import UserError
from utils.core.input_files import require_regular
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject, mask_pieces
from utils.datasets.labels.annotation_paths import find_images

_MAP_TYPES = (".png", ".bmp", ".tif", ".tiff", ".npy")
_PAIRS = (("images", "masks"), ("images", "labels"), ("segimages", "seglabels"), ("imgs", "gts"))
_SUFFIXES = ("", "_mask", "_gt", "_label", "_labels", "_seg")


@SOURCES.register("masks")
def open_masks(settings: LabelSettings) -> LabelSource:
    """Open images with their semantic maps, or maps alone if there are no images.

    Folders are `--pictures` and `--masks`, otherwise common pairs (images and masks, segimages and seglabels, train
    and trainannot).
    """
    images: list[SourceImage] = []
    maps: dict[Path, Path] = {}
    for split, image_folder, masks in _folders(settings):
        files = _maps_in(masks)
        if image_folder is None:
            found = images_below(masks, [str(path) for path in sorted(files.values())], split)
            images += [SourceImage(image.split, image.path, image.name, has_image=False) for image in found]
            maps |= {image.path: image.path for image in found}
            continue
        for image in images_below(image_folder, sorted(find_images(image_folder, image_folder)), split):
            stems = [f"{base}{end}" for base in (image.name, _without_suffix(image.name)) for end in _SUFFIXES]
            file = next((files[stem] for stem in stems if stem in files), None)
            if file is not None:
                maps[image.path] = file
                images.append(image)
    if not images:
        raise UserError(
            f"--source {settings.source}: no images with masks of the same name; set --pictures and --masks"
        )
    names = read_class_names(settings.names, settings.source)
    if not names:
        if settings.target_format != "masks":
            raise UserError(f"--source {settings.source}: masks contain numbers only; set --names")
        names = tuple(f"class {value}" for value in range(NO_CLASS))
    return LabelSource(names, images, lambda image: _read(maps[image.path], names, settings))


def _folders(settings: LabelSettings) -> list[tuple[str, Path | None, Path]]:
    """Find the folders (split, images, masks) of all splits; images is None for masks alone."""
    root = settings.source
    if settings.masks:
        return [(settings.split, Path(settings.pictures) if settings.pictures else None, Path(settings.masks))]
    for images, masks in _PAIRS:
        if (root / images).is_dir() and (root / masks).is_dir():
            splits = [
                split for split in SPLIT_NAMES if (root / images / split).is_dir() and (root / masks / split).is_dir()
            ]
            if splits:
                return [(split, root / images / split, root / masks / split) for split in splits]
            return [(settings.split, root / images, root / masks)]
    pairs = [
        (s, root / s, root / f"{s}annot") for s in SPLIT_NAMES if (root / s).is_dir() and (root / f"{s}annot").is_dir()
    ]
    return pairs or [(settings.split, None, root)]  # type: ignore[return-value]


def _maps_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of masks; set --masks")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _MAP_TYPES)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def _without_suffix(name: str) -> str:
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
        found.faults.append(f"{file}: value {value} exceeds the {len(names)} class names; {NO_CLASS} is unlabelled")
        return found
    found.semantic = classes
    if settings.target_format == "masks":
        return found
    for value in np.unique(classes).tolist():
        if value in (NO_CLASS, settings.background) or names[value] == BACKGROUND:
            continue
        _, parts, stats, _ = cv2.connectedComponentsWithStats((classes == value).view(np.uint8), connectivity=8)
        for part, (x, y, width, height, pixels) in enumerate(stats.tolist()):
            if part == 0 or pixels < settings.least_px:  # 0: pixels of other values
                continue
            pieces = [piece + np.array([x, y]) for piece in mask_pieces(parts[y : y + height, x : x + width] == part)]
            box = np.array([x, y, x + width, y + height], np.float64)
            found.objects.append(LabelledObject(names[value], box, pieces, where=f"region {part}"))
    return found


def _map(file: Path) -> np.ndarray:
    """Read an (H, W) uint8 semantic map; negative values of arrays become 255, unlabelled."""
    try:
        array = file.suffix.lower() == ".npy"
        values = np.load(file, allow_pickle=False) if array else _palette_or_grey(file)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: cannot be read as a semantic map ({str(error)[:80]})") from error
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.integer) or values.dtype == bool):
        raise UserError(
            f"{file}: expected a semantic map with one integer per pixel, got {values.dtype} of shape {values.shape}"
        )
    if (values > NO_CLASS).any():
        raise UserError(f"{file}: value {int(values.max())}; semantic maps support at most 255")
    return np.where(values < 0, NO_CLASS, values).astype(np.uint8)


def _palette_or_grey(file: Path) -> np.ndarray:
    """Read pixel values; of palette images, the indices."""
    from PIL import Image

    require_regular(file)
    with Image.open(file) as image:
        if image.mode not in ("P", "L", "1", "I", "I;16"):
            raise ValueError(f"image mode {image.mode} has no single number per pixel")
        return np.asarray(image)
