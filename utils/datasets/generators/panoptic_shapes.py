"""The default panoptic data set: shapes are things, the textures behind them stuff.

Below the data root, for the splits train and val:

- `images/<split>/scene_000000.jpg`
- `panoptic/panoptic_<split>/scene_000000.png`: COCO's panoptic maps; unlabelled bars in front are void.
- `panoptic/panoptic_<split>.json`: COCO's panoptic annotations. Category ids count from 1, shapes first.

Two thirds of the images have two textures, separated by a wavy line.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.seed import generator
from utils.datasets import GENERATORS
from utils.datasets.generators.backgrounds import TEXTURES, Canvas, texture, wavy_half
from utils.datasets.generators.prepare import Recipe
from utils.datasets.generators.scenes import MAX_OBJECTS, draw_scene, object_sizes
from utils.datasets.generators.shapes import SPLITS, ShapesSettings, shape_names
from utils.ops.panoptic import encode_png, measure_segment

VERSION = 1  # to be raised when the same settings give different files
_STREAM = 32  # separates the random numbers from those of other generated data sets
_TWO_TEXTURES = 2 / 3  # fraction of images


@GENERATORS.register("panoptic-shapes")
def panoptic_shapes(data: DataConfig) -> Recipe:
    """Create the recipe of the data set that `data` describes; things are shapes, stuff textures."""
    settings, things = ShapesSettings.from_data(data), shape_names(data)
    stuff = list(data.semantic.names[len(things) :]) if data.semantic is not None else []
    if unknown := [name for name in stuff if name not in TEXTURES]:
        known = ", ".join(TEXTURES)
        raise UserError(f"{data.source}: unknown texture {unknown[0]!r} in `stuff`; known textures: {known}")
    if not stuff:
        raise UserError(
            f"{data.source}: needs textures in `stuff`, with `format: coco-panoptic`: {', '.join(TEXTURES)}"
        )
    scenes = [(split, index) for split in SPLITS for index in range(getattr(settings, split))]
    listed: dict[tuple[str, int], dict[str, Any]] = {}  # annotations of the scenes made so far

    def make(step: int) -> dict[str, bytes]:
        if step < len(scenes):
            files, listed[scenes[step]] = _scene_files(settings, things, stuff, *scenes[step])
            return files
        split = SPLITS[step - len(scenes)]
        for index in range(getattr(settings, split)):
            if (split, index) not in listed:
                listed[split, index] = _scene_files(settings, things, stuff, split, index)[1]
        entries = [listed[split, index] for index in range(getattr(settings, split))]
        return {f"panoptic/panoptic_{split}.json": _annotations(entries, things, stuff)}

    return Recipe(
        settings={"kind": "panoptic-shapes", "version": VERSION, "names": things, "stuff": stuff, **asdict(settings)},
        steps=len(scenes) + len(SPLITS),
        make=make,
        owned=("images/*/scene_*.jpg", "panoptic/panoptic_*/scene_*.png", "panoptic/panoptic_*.json"),
    )


def _scene_files(
    settings: ShapesSettings, things: list[str], stuff: list[str], split: str, index: int
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Render one scene; return its files and its annotation."""
    random = generator(settings.seed, 0, index, _STREAM + SPLITS.index(split))
    long_side, short = settings.size, round(settings.size * random.uniform(0.62, 1.0))
    width, height = (long_side, short) if random.random() < 0.65 else (short, long_side)
    canvas, stuff_map = _textures(random, stuff, height, width)
    count = int(random.integers(1, MAX_OBJECTS + 1))
    kinds = [things[index % len(things)], *(things[int(n)] for n in random.integers(0, len(things), MAX_OBJECTS))]
    sizes = object_sizes(random, count, settings.size)
    scene = draw_scene(random, width, height, kinds[:count], sizes, canvas=canvas)
    things_count = len(scene.objects)
    ids = np.where(scene.instance_map >= 0, scene.instance_map + 1, stuff_map + 1 + things_count)
    ids[scene.bars] = 0
    categories = [things.index(one.kind) + 1 for one in scene.objects]
    categories += [len(things) + number + 1 for number in range(len(stuff))]
    segments = []
    for key, category in enumerate(categories, 1):
        area, box = measure_segment(ids, key)
        if area:
            segments.append({"id": key, "category_id": category, "area": area, "bbox": box, "iscrowd": 0})
    name = f"scene_{index:06d}"
    files = {
        f"images/{split}/{name}.jpg": _encoded(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92]),
        f"panoptic/panoptic_{split}/{name}.png": encode_png(ids),
    }
    return files, {"name": name, "height": height, "width": width, "segments_info": segments}


def _textures(random: np.random.Generator, stuff: list[str], height: int, width: int) -> tuple[Canvas, np.ndarray]:
    """Draw one or two textures; return the canvas and the (H, W) number of the texture of each pixel."""
    numbers = random.permutation(len(stuff))[: 2 if random.random() < _TWO_TEXTURES else 1]
    canvas = texture(random, stuff[int(numbers[0])], height, width)
    stuff_map = np.full((height, width), numbers[0], np.int32)
    for number in numbers[1:]:
        part = wavy_half(random, height, width)
        canvas[part] = texture(random, stuff[int(number)], height, width)[part]
        stuff_map[part] = number
    return canvas, stuff_map


def _annotations(entries: list[dict[str, Any]], things: list[str], stuff: list[str]) -> bytes:
    images = [
        {"id": number, "file_name": f"{one['name']}.jpg", "height": one["height"], "width": one["width"]}
        for number, one in enumerate(entries, 1)
    ]
    annotations = [
        {"image_id": number, "file_name": f"{one['name']}.png", "segments_info": one["segments_info"]}
        for number, one in enumerate(entries, 1)
    ]
    categories = [
        {"id": number, "name": name, "isthing": int(number <= len(things))}
        for number, name in enumerate([*things, *stuff], 1)
    ]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def _encoded(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    done, content = cv2.imencode(suffix, np.ascontiguousarray(image), options)
    assert done, f"OpenCV could not encode {suffix}"
    return content.tobytes()
