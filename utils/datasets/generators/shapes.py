"""The default data set: coloured shapes with boxes, polygons, semantic masks and class folders.

Below the data root, for the splits train and val:

- `images/<split>/shapes_000000.jpg`
- `labels/<split>/shapes_000000.txt`: `class x1 y1 x2 y2 …`, each object's full outline clipped to the image, occluded
  parts included; empty for the one image in forty without objects. A ring's outline is its outer edge.
- `masks/<split>/shapes_000000.png`: semantic map of the visible classes; background is the number after the last class.
- `classes/<split>/<class>/shapes_000000.jpg`: one object each.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import cv2
import numpy as np

from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.seed import generator
from utils.datasets import GENERATORS
from utils.datasets.generators.outlines import OUTLINES
from utils.datasets.generators.prepare import Recipe
from utils.datasets.generators.scenes import MAX_OBJECTS, Scene, draw_scene, object_sizes

VERSION = 2  # to be raised when the same settings give different files
SPLITS = ("train", "val")
_EMPTY_EVERY = 40  # every 40th image has no objects
_IMAGES_PER_CROP = {"train": 16, "val": 12}  # 640 and 128 images give 40 and 10 images in each class folder
_CROP_STREAM = 16  # separates the random numbers of class images from those of scenes


@dataclass(frozen=True)
class ShapesSettings:
    """Validated `generate:` block of the data YAML."""

    train: int = 640
    val: int = 128
    size: int = 320
    seed: int = 0

    @classmethod
    def from_data(cls, data: DataConfig) -> ShapesSettings:
        """Parse the `generate:` block of `data`; raises UserError for unknown keys and invalid values."""
        limits = {"train": (1, 100_000), "val": (1, 100_000), "size": (64, 4096), "seed": (0, 2**32 - 1)}
        given = {key: value for key, value in data.generate.items() if key != "kind"}
        for key, value in given.items():
            if key not in limits:
                raise UserError(f"{data.source}: unknown key `generate.{key}`; known keys: kind, {', '.join(limits)}")
            low, high = limits[key]
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise UserError(
                    f"{data.source}: `generate.{key}` expects an integer from {low} to {high}, got {value!r}"
                )
        return cls(**given)


@GENERATORS.register("shapes")
def shapes(data: DataConfig) -> Recipe:
    """Create the recipe of the data set that `data` describes; its class names must be keys of OUTLINES."""
    settings = ShapesSettings.from_data(data)
    names = shape_names(data)
    images = [(split, index) for split in SPLITS for index in range(getattr(settings, split))]
    crops = [
        (split, label, index)
        for split in SPLITS
        for label in range(len(names))
        for index in range(max(2, getattr(settings, split) // _IMAGES_PER_CROP[split]))
    ]

    def make(step: int) -> dict[str, bytes]:
        if step < len(images):
            return _image_files(settings, names, *images[step])
        split, label, index = crops[step - len(images)]
        content = class_image(settings.seed, names[label], (split, label, index), max(64, round(settings.size * 0.4)))
        return {f"classes/{split}/{names[label]}/shapes_{index:06d}.jpg": content}

    return Recipe(
        settings={"kind": "shapes", "version": VERSION, "names": names, **asdict(settings)},
        steps=len(images) + len(crops),
        make=make,
        owned=(
            "images/*/shapes_*.jpg", "labels/*/shapes_*.txt", "masks/*/shapes_*.png", "classes/*/*/shapes_*.jpg",
        ),
    )  # fmt: skip


def shape_names(data: DataConfig) -> list[str]:
    """Get the class names of `data`; raises UserError for one that is not a shape."""
    names = list(data.label_names or data.names)
    if unknown := [name for name in names if name not in OUTLINES]:
        raise UserError(f"{data.source}: unknown shape {unknown[0]!r} in `names`; known shapes: {', '.join(OUTLINES)}")
    return names


def _image_files(settings: ShapesSettings, names: list[str], split: str, index: int) -> dict[str, bytes]:
    scene = image_scene(settings, names, split, index)
    name = f"{split}/shapes_{index:06d}"
    return {
        f"images/{name}.jpg": _jpeg(scene.image),
        f"labels/{name}.txt": _label_text(scene, names).encode(),
        f"masks/{name}.png": _encoded(".png", _semantic(scene, names), []),
    }


def image_scene(settings: ShapesSettings, names: list[str], split: str, index: int) -> Scene:
    """Render image `index` of a split; its first object cycles through the classes, so that all occur."""
    random = generator(settings.seed, 0, index, SPLITS.index(split))
    width, height = _size_xy(random, settings.size, 0.62)
    count = 0 if index % _EMPTY_EVERY == _EMPTY_EVERY - 1 else int(random.integers(1, MAX_OBJECTS + 1))
    kinds = [names[index % len(names)], *(names[int(label)] for label in random.integers(0, len(names), MAX_OBJECTS))]
    return draw_scene(random, width, height, kinds[:count], object_sizes(random, count, settings.size))


def class_image(seed: int, name: str, which: tuple[str, int, int], long_side: int, clutter: bool = True) -> bytes:
    """Render one large object as JPEG.

    Args:
        seed: Seed of the data set.
        name: Class name, a key of OUTLINES.
        which: Split, class number and index of the image.
        long_side: Longer side of the image in pixels.
        clutter: Whether to add unlabelled objects.

    Returns:
        Content of the JPEG file.
    """
    split, label, index = which
    random = generator(seed, label, index, _CROP_STREAM + SPLITS.index(split))
    width, height = _size_xy(random, long_side, 0.8)
    size = random.uniform(*((0.45, 0.85) if clutter else (0.65, 0.95))) * min(width, height)
    return _jpeg(draw_scene(random, width, height, [name], np.array([size]), clutter).image)


def _size_xy(random: np.random.Generator, long_side: int, narrowest: float) -> tuple[int, int]:
    short = round(long_side * random.uniform(narrowest, 1.0))
    return (long_side, short) if random.random() < 0.65 else (short, long_side)


def _label_text(scene: Scene, names: list[str]) -> str:
    height, width = scene.instance_map.shape
    lines = []
    for one in scene.objects:
        points = (one.polygon / [width, height]).clip(0, 1).ravel()
        lines.append(" ".join([str(names.index(one.kind)), *(f"{value:.6f}" for value in points)]) + "\n")
    return "".join(lines)


def _semantic(scene: Scene, names: list[str]) -> np.ndarray:
    """Create the (H, W) uint8 semantic map."""
    table = np.array([*(names.index(one.kind) for one in scene.objects), len(names)], np.uint8)
    return table[scene.instance_map]  # -1, background, indexes the last entry


def _jpeg(image: np.ndarray) -> bytes:
    return _encoded(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])


def _encoded(suffix: str, image: np.ndarray, options: list[int]) -> bytes:
    done, content = cv2.imencode(suffix, np.ascontiguousarray(image), options)
    assert done, f"OpenCV could not encode {suffix}"
    return content.tobytes()
