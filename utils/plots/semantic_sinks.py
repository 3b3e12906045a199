"""Sinks of semantic maps: PNG files, and files for the Cityscapes evaluation server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.core.contracts import IGNORED_PIXEL, Frame, Results, Sink
from utils.core.errors import MAX_SUGGESTIONS, UserError
from utils.plots.figure_io import write_image
from utils.plots.prediction_sinks import AnnotatedImage, UniqueNames, summarize
from utils.plots.semantic_overlay import colourize
from utils.plots.semantic_style import SemanticStyle

# the 19 evaluated classes of Cityscapes (Cordts et al., CVPR 2016) in training order, and their ids in label files
CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
UNLABELLED_ID = 0


class SemanticMapSink(Sink):
    """Write the semantic map of every frame as a grey PNG to `folder`/masks, and coloured to `folder`/masks_colour.

    The grey images are valid training labels: one byte per pixel, 255 for unlabelled pixels.
    """

    stopped = False

    def __init__(self, folder: Path, style: SemanticStyle) -> None:
        self.folder, self.style, self._names, self._count = folder, style, UniqueNames(), 0

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Write both images of a frame."""
        if results.semantic is None:
            return
        classes = results.semantic.numpy()
        name = f"{self._names.frame_stem(frame)}.png"
        write_image(self.folder / "masks" / name, classes)
        write_image(self.folder / "masks_colour" / name, colourize(classes, self.style))
        self._count += 1

    def close(self) -> str:
        """Summarize the written files."""
        text = summarize(self._count, "semantic map", "semantic maps", self.folder / "masks")
        return f"{text}, coloured in {self.folder / 'masks_colour'}" if text else ""


class CityscapesSink(Sink):
    """Write `folder`/<stem>_pred.png with Cityscapes ids for every frame, as the evaluation server expects.

    Args:
        folder: Of the files.
        ids: (256,) uint8 id of each class, see `cityscapes_ids`.
    """

    stopped = False

    def __init__(self, folder: Path, ids: np.ndarray) -> None:
        self.folder, self.ids, self._names, self._count = folder, ids, UniqueNames(), 0

    def write(self, frame: Frame, results: Results, annotated: AnnotatedImage) -> None:
        """Write the file of a frame."""
        if results.semantic is None:
            return
        path = self.folder / f"{self._names.frame_stem(frame)}_pred.png"
        write_image(path, self.ids[results.semantic.numpy()])
        self._count += 1

    def close(self) -> str:
        """Summarize the written files."""
        return summarize(self._count, "Cityscapes result", "Cityscapes results", self.folder)


def cityscapes_ids(names: Sequence[str], num_classes: int) -> np.ndarray:
    """Map the classes of a network to the ids of Cityscapes' label files.

    Args:
        names: Class names in any order. 19 classes without names, or with numbers as names, are assumed to be
            Cityscapes' in training order.
        num_classes: Number of classes.

    Returns:
        (256,) uint8 id of each class.

    Raises:
        UserError: Some classes are not evaluated by Cityscapes.
    """
    table = np.full(IGNORED_PIXEL + 1, UNLABELLED_ID, np.uint8)
    nameless = all(re.fullmatch(r"(class)?[ _]?\d*", name) for name in names)
    if nameless and num_classes == len(CITYSCAPES_IDS):
        table[:num_classes] = list(CITYSCAPES_IDS.values())
        return table
    plain = [" ".join(name.lower().replace("_", " ").split()) for name in names]
    unknown = [name for name, normalised in zip(names, plain, strict=True) if normalised not in CITYSCAPES_IDS]
    if nameless or unknown:
        fault = "the classes have no names" if nameless else f"unknown: {', '.join(unknown[:MAX_SUGGESTIONS])}"
        raise UserError(f"--submit: the {num_classes} semantic classes must be classes of Cityscapes ({fault})")
    table[: len(plain)] = [CITYSCAPES_IDS[name] for name in plain]
    return table
