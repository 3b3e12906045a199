"""Samples with semantic maps, and the loader of such a split; see docs/reference/semantic.md."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL, Geometry
from utils.core.errors import UserError
from utils.core.load_request import LoadRequest
from utils.core.seed import generator
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.semantic_layout import SemanticAugment, require_semantic
from utils.datasets.labels.semantic_scan import build_semantic_index
from utils.datasets.pipeline.batch_plan import (
    STREAM_SEMANTIC_ORDER,
    STREAM_SEMANTIC_SAMPLE,
    BatchPlan,
    Item,
    same_size_batches,
)
from utils.datasets.pipeline.image_cache import CachedImage, ImageCache
from utils.datasets.pipeline.loader import BatchLoader, check_sizes, without_box_options
from utils.datasets.pipeline.sample import Sample
from utils.datasets.pipeline.semantic_augment import apply_jitter, crop_into, draw_crop, draw_jitter
from utils.ops.letterbox import letterbox

MODES = ("whole", "native", "crop")
_MIN_STRIDE = 32  # sides of network inputs are multiples of it


def open_semantic_loader(request: LoadRequest, place: tuple[int, int] | None = None) -> BatchLoader:
    """Open the loader of a split of the `semantic:` block.

    Training sizes are drawn around, and whole images evaluated at, the first that is set of
    `request.semantic.base_size`, `semantic.base:` of the data YAML, the layout's default, and the image size.

    Args:
        request: split and options; those that concern boxes are ignored.
        place: (rank, world size); None: those of the launcher.

    Raises:
        UserError: the data set is unusable, or a training split has no labelled pixel.
    """
    check_sizes(request)
    layout = SEMANTIC_READERS.get(require_semantic(request.data).format, request.data.source)
    augment = layout.augment_for(request.data)
    base = request.semantic.base_size or augment.base or request.image_size
    stride = max(request.stride, _MIN_STRIDE)
    fit = EvaluationFit(request.semantic.mode, base, request.image_size, stride, request.semantic.fixed_hw)
    index = build_semantic_index(request.data, request.split, request.allow_label_faults)
    if request.training and not index.pixel_counts.any():
        raise UserError(f"{request.data.source}: no labelled pixel in any mask of `semantic.{request.split}:`")
    images = ImageCache(index.images, 0, training=False, limit_bytes=0, read_map=index.read_map)
    if request.cache:
        images.cache_all(request.cache)
    maker = SemanticSampleMaker(index.images, images, augment, fit, request.seed)
    return BatchLoader(without_box_options(request), maker, index.pixel_counts, place, heads=("semantic",))


@dataclass(frozen=True)
class EvaluationFit:
    """How images are fitted to the network input in evaluation.

    Attributes:
        mode: `whole`: resize to the long side `base`, with both sides rounded up to the stride; `native`: keep the
            size and pad on the right and below; `crop`: resize to the short side `size` and crop the centre.
        base: long side of whole images.
        size: side of crops.
        stride: network input sides are multiples of it.
        fixed_hw: the only input size of the network; whole images are letterboxed to it.
    """

    mode: str
    base: int
    size: int
    stride: int
    fixed_hw: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"evaluation mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.fixed_hw is not None and self.mode != "whole":
            height, width = self.fixed_hw
            raise UserError(
                f"evaluation mode {self.mode}: the network only takes {width} x {height} pixels; use mode whole"
            )

    def network_hw(self, original_hw: tuple[int, int]) -> tuple[int, int]:
        """Compute the network input size for an image."""
        if self.fixed_hw is not None:
            return self.fixed_hw
        if self.mode == "crop":
            return self.size, self.size
        height, width = original_hw
        if self.mode == "whole":
            long_side = -(-self.base // self.stride) * self.stride
            longest = max(original_hw)
            height, width = (int(side * long_side / longest) for side in original_hw)
        return self._round_up(height), self._round_up(width)

    def labelled_hw(self, original_hw: tuple[int, int]) -> tuple[int, int]:
        """Compute the size of the semantic map that predictions are compared with."""
        return (self.size, self.size) if self.mode == "crop" else original_hw

    def _round_up(self, side: int) -> int:
        return max(1, -(-side // self.stride)) * self.stride


@dataclass
class SemanticSampleMaker:
    """Creates samples of one split; implements `loader.SampleMaker`."""

    index: Index
    images: ImageCache
    augment: SemanticAugment
    fit: EvaluationFit
    seed: int
    faults: list[str] = field(default_factory=list)
    order_stream: int = STREAM_SEMANTIC_ORDER

    @property
    def training_hw(self) -> tuple[int, int]:
        """Size of training images: the image size, or fractions of it rounded up to the stride."""
        size, stride = self.fit.size, self.fit.stride
        if tuple(self.augment.crop) == (1.0, 1.0):
            return size, size
        width, height = (math.ceil(size * part / stride - 1e-9) * stride for part in self.augment.crop)
        return height, width

    def evaluation_plan(self, request: LoadRequest) -> list[BatchPlan]:
        """Plan batches of images whose semantic maps have one size."""
        shapes = [(int(height), int(width)) for height, width in self.index.shapes_hw]
        labelled = np.array([self.fit.labelled_hw(shape) for shape in shapes])
        return same_size_batches(labelled, request.batch_size, lambda image: self.fit.network_hw(shapes[image]))

    def train(self, item: Item, epoch: int, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> Sample:
        """Write a random crop of the resized image to `out_rgb` and return its semantic map."""
        rng = generator(self.seed, epoch, item.position, STREAM_SEMANTIC_SAMPLE)
        sample = self._load(item.index)
        crop = draw_crop(rng, sample.size_hw, shape_hw, self.augment, self.fit.base)
        jitter = draw_jitter(rng, self.augment.jitter)
        cropped, semantic = np.empty_like(out_rgb), np.empty(shape_hw, np.uint8)
        crop_into(sample, crop, cropped, semantic)
        cv2.cvtColor(cropped, cv2.COLOR_BGR2RGB, dst=out_rgb)
        apply_jitter(out_rgb, jitter)
        return Sample(cropped, semantic=semantic, boxes_known=False)

    def evaluate(self, item: Item, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> tuple[Sample, Geometry]:
        """Write the fitted image to `out_rgb` and return the map it is compared with and its transform."""
        sample = self._load(item.index)
        if self.fit.mode == "crop":
            sample = _crop_centre(sample, self.fit.size)
        image, (height, width) = sample.image, sample.size_hw
        geometry = Geometry((height, width), shape_hw)
        if self.fit.fixed_hw is not None:
            image, geometry = letterbox(image, self.fit.fixed_hw)
        elif self.fit.mode == "whole":
            image = _resize(image, shape_hw)
            geometry = Geometry((height, width), shape_hw, (shape_hw[1] / width, shape_hw[0] / height))
        elif (height, width) != shape_hw:
            bottom, right = shape_hw[0] - height, shape_hw[1] - width
            image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=out_rgb)
        return sample, geometry

    def _load(self, number: int) -> Sample:
        """Load an image with its semantic map; an unreadable image or map is unlabelled."""
        cached: CachedImage = self.images.read(number)
        image, semantic, fault = cached.image, cached.semantic, cached.fault
        assert semantic is not None
        if cached.map_fault:
            self.faults.append(f"{cached.map_fault}; all its pixels are unlabelled")
        if image.shape[:2] != semantic.shape:
            image = np.zeros((*semantic.shape, 3), np.uint8)
            fault = f"{self.index.path(number)}: its size has changed since the scan"
        if fault:
            self.faults.append(f"{fault}; all its pixels are unlabelled")
            semantic = np.full(semantic.shape, IGNORED_PIXEL, np.uint8)
        return Sample(image, semantic=semantic, boxes_known=False)


def _resize(image: np.ndarray, new_hw: tuple[int, int]) -> np.ndarray:
    """Resize an image, by area averaging if it shrinks."""
    shrinks = new_hw[0] <= image.shape[0] and new_hw[1] <= image.shape[1]
    return cv2.resize(image, new_hw[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _crop_centre(sample: Sample, size: int) -> Sample:
    """Resize image and map to a short side of `size` and crop the central square."""
    assert sample.semantic is not None
    shortest = min(sample.size_hw)
    height, width = (size if side == shortest else int(side * size / shortest) for side in sample.size_hw)
    top, left = (height - size) // 2, (width - size) // 2
    part = slice(top, top + size), slice(left, left + size)
    semantic = cv2.resize(sample.semantic, (width, height), interpolation=cv2.INTER_NEAREST)
    return Sample(_resize(sample.image, (height, width))[part], semantic=semantic[part], boxes_known=False)
