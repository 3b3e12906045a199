"""From a place in the epoch to an image with a class per pixel, for training and for scoring (behaviour.md 12.6)."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL, Geometry
from utils.core.errors import UserError
from utils.core.seed import generator
from utils.datasets.labels.semantic_layout import Draws
from utils.datasets.pipeline.batch_plan import STREAM_SEMANTIC_SAMPLE, Item
from utils.datasets.pipeline.image_cache import Pictures
from utils.datasets.pipeline.semantic_augment import change_colours, draw_colours, draw_placing, place_into
from utils.datasets.pipeline.semantic_map_cache import Maps
from utils.ops.letterbox import letterbox

MODES = ("whole", "native", "crop")


@dataclass(frozen=True)
class Fit:
    """How images are fitted into the network's input for scoring.

    whole: the long side becomes `base`, both sides are stretched up to the stride; native: the size stays, with a
    border right and below; crop: the short side becomes `size`, the centre square is what counts. A network that takes
    one size only, `fixed_hw`, gets whole images with a border around them, as predictions do.
    """

    mode: str
    base: int
    size: int
    stride: int
    fixed_hw: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"scoring mode {self.mode!r}: one of {', '.join(MODES)}")
        if self.fixed_hw is not None and self.mode != "whole":
            raise UserError(f"scoring mode {self.mode}: this file takes {self.fixed_hw} pixels only; mode whole fits")

    def network_hw(self, original_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the network's input for an image of this size."""
        if self.fixed_hw is not None:
            return self.fixed_hw
        if self.mode == "crop":
            return self.size, self.size
        height, width = original_hw
        if self.mode == "whole":
            long_side = -(-self.base // self.stride) * self.stride
            longest = max(original_hw)
            height, width = (int(side * long_side / longest) for side in original_hw)
        return self._up(height), self._up(width)

    def labelled_hw(self, original_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the class map that the result is compared with."""
        return (self.size, self.size) if self.mode == "crop" else original_hw

    def _up(self, side: int) -> int:
        return max(1, -(-side // self.stride)) * self.stride


@dataclass
class SemanticMaker:
    """Makes images and class maps of one split. Every random number comes from (seed, epoch, position)."""

    pictures: Pictures
    maps: Maps
    draws: Draws
    fit: Fit
    seed: int
    faults: list[str] = field(default_factory=list)  # files that could not be read since the last look

    def train(self, item: Item, epoch: int, out_rgb: np.ndarray, out_classes: np.ndarray) -> None:
        """Write the augmented image into `out_rgb` (h, w, 3) and its classes into `out_classes` (h, w)."""
        rng = generator(self.seed, epoch, item.position, STREAM_SEMANTIC_SAMPLE)
        image, classes = self.load(item.index)
        shape_hw = (out_rgb.shape[0], out_rgb.shape[1])
        placing = draw_placing(rng, (image.shape[0], image.shape[1]), shape_hw, self.draws, self.fit.base)
        colours = draw_colours(rng, self.draws.jitter)
        crop = np.empty_like(out_rgb)
        place_into(image, classes, placing, crop, out_classes)
        cv2.cvtColor(crop, cv2.COLOR_BGR2RGB, dst=out_rgb)
        change_colours(out_rgb, colours)

    def evaluate(self, item: Item, out_rgb: np.ndarray, out_classes: np.ndarray) -> Geometry:
        """Write the fitted image and the classes it is compared with; return how it was fitted."""
        image, classes = self.load(item.index)
        if self.fit.mode == "crop":
            image, classes = _centre(image, classes, self.fit.size)
        height, width = image.shape[:2]
        network_hw = (out_rgb.shape[0], out_rgb.shape[1])
        scale_xy = (1.0, 1.0)
        if self.fit.fixed_hw is not None:
            boxed, geometry = letterbox(image, self.fit.fixed_hw)
            cv2.cvtColor(boxed, cv2.COLOR_BGR2RGB, dst=out_rgb)
            out_classes[:] = classes
            return geometry
        if self.fit.mode == "whole":
            image = _resized(image, network_hw)
            scale_xy = (network_hw[1] / width, network_hw[0] / height)
        elif (height, width) != network_hw:
            image = cv2.copyMakeBorder(
                image, 0, network_hw[0] - height, 0, network_hw[1] - width, cv2.BORDER_CONSTANT, value=(0, 0, 0)
            )
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out_rgb)
        out_classes[:] = classes
        return Geometry((height, width), network_hw, scale_xy, (0.0, 0.0))

    def load(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3) BGR and the classes of its pixels (H, W), of the same size."""
        pictures = self.pictures
        picture = pictures.get(number) if pictures.all is not None else pictures.read(number)
        classes, fault = self.maps.read(number)
        if fault:
            self.faults.append(f"{fault}; none of its pixels counts")
        image, wrong = picture.image, picture.fault
        if not wrong and image.shape[:2] != classes.shape:
            image = np.zeros((*classes.shape, 3), np.uint8)
            wrong = f"{self.maps.index.images.path(number)}: its size is no longer what it was"
        if wrong:
            self.faults.append(f"{wrong}; none of its pixels counts")
            classes = np.full(classes.shape, IGNORED_PIXEL, np.uint8)
        return image, classes


def _resized(image: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    """Return the image stretched to a size, by averaging areas where it shrinks."""
    shrinks = new_hw[0] <= image.shape[0] and new_hw[1] <= image.shape[1]
    return cv2.resize(image, new_hw[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _centre(image: np.ndarray, classes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre square of the image whose short side was made `size`, and its classes."""
    shortest = min(image.shape[:2])
    height, width = (size if side == shortest else int(side * size / shortest) for side in image.shape[:2])
    top, left = (height - size) // 2, (width - size) // 2
    part = slice(top, top + size), slice(left, left + size)
    small = cv2.resize(classes, (width, height), interpolation=cv2.INTER_NEAREST)
    return _resized(image, (height, width))[part], small[part]
