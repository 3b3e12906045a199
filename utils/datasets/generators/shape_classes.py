"""The default data set of classification: images of one shape each, in a folder per class.

Below the data root, for the splits train and val: `<split>/<class>/shape_000000.jpg`.
"""

from __future__ import annotations

from dataclasses import asdict

from utils.core.data_config import DataConfig
from utils.datasets import GENERATORS
from utils.datasets.generators.prepare import Recipe
from utils.datasets.generators.shapes import SPLITS, ShapesSettings, class_image, shape_names

VERSION = 1  # to be raised when the same settings give different files


@GENERATORS.register("shape-classes")
def shape_classes(data: DataConfig) -> Recipe:
    """Create the recipe of the data set that `data` describes; `train` and `val` count images per class."""
    settings, names = ShapesSettings.from_data(data), shape_names(data)
    images = [
        (split, label, index)
        for split in SPLITS
        for label in range(len(names))
        for index in range(getattr(settings, split))
    ]

    def make(step: int) -> dict[str, bytes]:
        split, label, index = images[step]
        name = f"{split}/{names[label]}/shape_{index:06d}.jpg"
        return {name: class_image(settings.seed, names[label], (split, label, index), settings.size, clutter=False)}

    return Recipe(
        settings={"kind": "shape-classes", "version": VERSION, "names": names, **asdict(settings)},
        steps=len(images),
        make=make,
        owned=("*/*/shape_*.jpg",),
    )
