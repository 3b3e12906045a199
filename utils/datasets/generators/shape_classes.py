"""Pictures of one shape each, in a folder per class: the default data set of classification.

Below the data root, for the splits train and val: `<split>/<class>/shape_000000.jpg`.
"""

from __future__ import annotations

from dataclasses import asdict

from utils.core.data_config import DataConfig
from utils.datasets import GENERATORS
from utils.datasets.generators.prepare import Recipe
from utils.datasets.generators.shapes import SPLITS, Settings, class_picture, shape_names

VERSION = 1  # raise it when the same settings give other files


@GENERATORS.register("shape-classes")
def shape_classes(data: DataConfig) -> Recipe:
    """Return the recipe of the set that `data` describes: `train` and `val` are pictures per class."""
    settings, names = Settings.from_data(data), shape_names(data)
    pictures = [
        (split, label, index)
        for split in SPLITS
        for label in range(len(names))
        for index in range(getattr(settings, split))
    ]

    def make(step: int) -> dict[str, bytes]:
        split, label, index = pictures[step]
        name = f"{split}/{names[label]}/shape_{index:06d}.jpg"
        return {name: class_picture(settings.seed, names[label], (split, label, index), settings.size, clutter=False)}

    return Recipe(
        settings={"kind": "shape-classes", "version": VERSION, "names": names, **asdict(settings)},
        steps=len(pictures),
        make=make,
        owned=("*/*/shape_*.jpg",),
    )
