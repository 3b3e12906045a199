"""Reader of BDD100K JSON (Scalabel): boxes and polygons with curves, one file per split or per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.json_file import read_json
from tools.converters.label_items import LabelSource, SourceImage, images_below, read_class_names
from tools.converters.split_folders import open_dataset, resolve_class_names
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject, bezier, extent
from utils.datasets.labels.annotation_paths import find_images

_LINES = ("lane", "lane/")  # lane markings are lines, not objects


@SOURCES.register("bdd100k")
def open_bdd(settings: LabelSettings) -> LabelSource:
    """Open a JSON file or a folder of them; images are in `--pictures`, by default beside the JSON."""
    source = settings.source
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    if not files:
        raise UserError(f"--source {source}: no JSON files in the folder")
    image_folder = Path(settings.pictures) if settings.pictures else (source if source.is_dir() else source.parent)
    frames: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in files:
        for frame in _frames(read_json(file), file):
            frames[Path(str(frame.get("name", file.stem))).stem] = (file, frame)
    paths = [path for path in sorted(find_images(image_folder, image_folder)) if Path(path).stem in frames]
    if not paths:
        raise UserError(f"{image_folder}: none of the {len(frames)} images in the JSON found; set --pictures")
    if source.is_dir():
        data = open_dataset(settings, "bdd100k")
    else:
        data = DataConfig(source, source.parent, read_class_names(settings.names), {})
    names = data.names or {
        str(label.get("category"))
        for _, frame in frames.values()
        for label in frame.get("labels") or []
        if not str(label.get("category")).startswith(_LINES)
    }
    notes = [f"{missing} of {len(frames)} images not found"] if (missing := len(frames) - len(paths)) else []
    images = images_below(image_folder, paths, settings.split)
    return LabelSource(resolve_class_names(data, names), images, lambda image: _objects(frames, image), notes)


def _frames(content: Any, file: Path) -> list[dict[str, Any]]:
    if isinstance(content, dict):
        content = content.get("frames", [content])
    if not isinstance(content, list) or not all(isinstance(frame, dict) for frame in content):
        raise UserError(f"{file}: not BDD100K labels; expected a list of frames with `name` and `labels`")
    for frame in content:  # files of single images nest the labels one level deeper
        inner = frame.get("frames")
        if "labels" not in frame and isinstance(inner, list) and inner and isinstance(inner[0], dict):
            frame["labels"] = inner[0].get("objects", [])
    return content


def _objects(frames: dict[str, tuple[Path, dict[str, Any]]], image: SourceImage) -> FileObjects:
    file, frame = frames[image.path.stem]
    found = FileObjects()
    for number, label in enumerate(frame.get("labels") or [], 1):
        name, where = str(label.get("category")), f"label {number}"
        try:
            pieces = [_polygon(part) for part in label.get("poly2d") or []]
            pieces = [piece for piece in pieces if len(piece) >= 3]
            box = label.get("box2d")
            if box:
                corners = np.array([float(box[side]) for side in ("x1", "y1", "x2", "y2")])
            elif pieces:
                corners = extent(pieces)
            else:
                continue
        except (KeyError, TypeError, ValueError) as error:
            found.faults.append(f"{file}: {frame.get('name')}: {where}: cannot be read ({error!r:.60})")
            continue
        aside = "crowd" if (label.get("attributes") or {}).get("crowd") is True else ""
        found.objects.append(LabelledObject(name, corners, pieces, aside, where))
    return found


def _polygon(part: Any) -> np.ndarray:
    vertices = part["vertices"] if isinstance(part, dict) else [point[:2] for point in part]
    corners = np.array(vertices, np.float64).reshape(-1, 2)
    kinds = part.get("types", "") if isinstance(part, dict) else "".join(str(point[2]) for point in part)
    return bezier(corners, str(kinds))
