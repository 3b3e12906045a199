"""Where classes of pixels go: maps as PNG files, and the files that Cityscapes' server scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.core.contracts import IGNORED_PIXEL, Frame, Results
from utils.core.errors import UserError
from utils.plots.figure_io import write_image
from utils.plots.prediction_sinks import Names, Picture, counted
from utils.plots.semantic_overlay import SemanticStyle, colourize

# behaviour.md 12.6: the classes that are trained, in their order, and what Cityscapes' label files call them
CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
UNLABELLED_ID = 0


def _stem(names: Names, frame: Frame) -> str:
    stem = names.of(frame, stem_only=True)
    return f"{stem}_{frame.number}" if frame.is_video else stem


class ClassMapSink:
    """For every frame the numbers of its classes as a grey PNG in `folder`/masks, and a picture in masks_colour.

    The first can be trained on: one byte per pixel, 255 where there is no class.
    """

    stopped = False

    def __init__(self, folder: Path, look: SemanticStyle) -> None:
        self.folder, self.look, self._names, self._count = folder, look, Names(), 0

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Write both files of one frame."""
        if results.semantic is None:
            return
        classes = results.semantic.numpy()
        name = f"{_stem(self._names, frame)}.png"
        write_image(self.folder / "masks" / name, classes)
        write_image(self.folder / "masks_colour" / name, colourize(classes, self.look))
        self._count += 1

    def close(self) -> str:
        """Return what was written."""
        text = counted(self._count, "class map", "class maps", self.folder / "masks")
        return f"{text}, coloured in {self.folder / 'masks_colour'}" if text else ""


class SubmitSink:
    """For every frame `folder`/<stem>_pred.png with Cityscapes' numbers, as its evaluation server takes them."""

    stopped = False

    def __init__(self, folder: Path, ids: np.ndarray) -> None:
        """Take `ids` (256,) uint8 of `cityscapes_ids`: what stands in the file for each class."""
        self.folder, self.ids, self._names, self._count = folder, ids, Names(), 0

    def write(self, frame: Frame, results: Results, picture: Picture) -> None:
        """Write the file of one frame."""
        if results.semantic is None:
            return
        path = self.folder / f"{_stem(self._names, frame)}_pred.png"
        write_image(path, self.ids[results.semantic.numpy()])
        self._count += 1

    def close(self) -> str:
        """Return what was written."""
        return counted(self._count, "Cityscapes result", "Cityscapes results", self.folder)


def cityscapes_ids(names: Sequence[str], num_classes: int) -> np.ndarray:
    """Return (256,) uint8: the id in Cityscapes' label files for every class of a network.

    Classes are found by their names in any order; 19 classes without names, or with numbers for names, are taken to be
    Cityscapes' in its order, as multiyolov5 does. Other classes are a UserError that names them.
    """
    table = np.full(IGNORED_PIXEL + 1, UNLABELLED_ID, np.uint8)
    nameless = all(re.fullmatch(r"(class)?[ _]?\d*", name) for name in names)
    if nameless and num_classes == len(CITYSCAPES_IDS):
        table[:num_classes] = list(CITYSCAPES_IDS.values())
        return table
    plain = [" ".join(name.lower().replace("_", " ").split()) for name in names]
    unknown = [name for name, known in zip(names, plain, strict=True) if known not in CITYSCAPES_IDS]
    if nameless or unknown:
        what = "they have no names" if nameless else f"not so: {', '.join(unknown[:5])}"
        raise UserError(f"--submit: the {num_classes} classes of pixels must be ones that Cityscapes scores ({what})")
    table[: len(plain)] = [CITYSCAPES_IDS[name] for name in plain]
    return table
