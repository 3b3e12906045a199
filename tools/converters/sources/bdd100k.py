"""BDD100K label JSON (Scalabel): boxes and polygons with curves, one file for a split or one per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tools.converters import SOURCES
from tools.converters.convert_settings import LabelSettings
from tools.converters.json_file import read_json
from tools.converters.label_items import Source, Work, works_below
from tools.converters.split_folders import named, opened
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.datasets.labels.annotation_objects import FileObjects, LabelledObject, bezier, extent
from utils.datasets.labels.annotation_paths import find_images

_LINES = ("lane", "lane/")  # lines on the road, no things


@SOURCES.register("bdd100k")
def open_bdd(settings: LabelSettings) -> Source:
    """Return the images that JSONs describe: `--source` is the JSON or a folder of them, `--pictures` the images."""
    source = settings.source
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    if not files:
        raise UserError(f"{source}: no JSON files in it")
    pictures = Path(settings.pictures) if settings.pictures else (source if source.is_dir() else source.parent)
    frames: dict[str, tuple[Path, dict[str, Any]]] = {}
    for file in files:
        for frame in _frames(read_json(file), file):
            frames[Path(str(frame.get("name", file.stem))).stem] = (file, frame)
    paths = [path for path in sorted(find_images(pictures, pictures)) if Path(path).stem in frames]
    if not paths:
        raise UserError(f"{pictures}: none of the {len(frames)} images that the JSON describes; give --pictures")
    data = opened(settings, "bdd100k") if source.is_dir() else opened_names(settings)
    names = data.names or {
        str(label.get("category"))
        for _, frame in frames.values()
        for label in frame.get("labels") or []
        if not str(label.get("category")).startswith(_LINES)
    }
    notes = [f"{missing} of {len(frames)} images not found"] if (missing := len(frames) - len(paths)) else []
    works = works_below(pictures, paths, settings.split)
    return Source(named(data, names), works, lambda work: _objects(frames, work), notes)


def opened_names(settings: LabelSettings) -> DataConfig:
    """Return a record of a source that is one file, with the names that were given."""
    from tools.converters.label_items import given_names

    return DataConfig(settings.source, settings.source.parent, given_names(settings.names), {})


def _frames(content: Any, file: Path) -> list[dict[str, Any]]:
    if isinstance(content, dict):
        content = content.get("frames", [content])
    if not isinstance(content, list) or not all(isinstance(frame, dict) for frame in content):
        raise UserError(f"{file}: not labels of BDD100K: a list of frames with `name` and `labels` is expected")
    for frame in content:  # the labels of single images have them one level down
        inner = frame.get("frames")
        if "labels" not in frame and isinstance(inner, list) and inner and isinstance(inner[0], dict):
            frame["labels"] = inner[0].get("objects", [])
    return content


def _objects(frames: dict[str, tuple[Path, dict[str, Any]]], work: Work) -> FileObjects:
    file, frame = frames[work.image.stem]
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
