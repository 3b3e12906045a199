"""Samples with one class per image, and the loader of such a split."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from utils.core.contracts import Geometry
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.log import LOGGER
from utils.core.seed import generator
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.label_scan import build_index
from utils.datasets.pipeline.augment import write_rgb
from utils.datasets.pipeline.batch_plan import STREAM_ORDER, STREAM_SAMPLE, BatchPlan, Item
from utils.datasets.pipeline.image_cache import ImageCache
from utils.datasets.pipeline.loader import BatchLoader, letterbox_plan, without_box_options
from utils.datasets.pipeline.sample import Sample
from utils.ops.crop import centre_crop, colour_jitter, random_resized_area, resize

IMBALANCE_RATIO = 10  # of the largest to the smallest class, from which on a warning is logged
UNLABELLED = -1
_MAX_LISTED = 8  # classes in a log line


def open_classification_loader(request: LoadRequest, place: tuple[int, int] | None = None) -> BatchLoader:
    """Open the loader of a split with one class per image; images without a label are `UNLABELLED`.

    Args:
        request: split and options; those that concern boxes are ignored.
        place: (rank, world size); None: those of the launcher.

    Raises:
        UserError: the data set is unusable or an image has several labels.
    """
    index = build_index(request.data, request.split, False, request.allow_label_faults, need_labels=request.training)
    several = np.flatnonzero(np.diff(index.box_starts) > 1)
    if len(several):
        raise UserError(f"{index.path(int(several[0]))}: several labels; classification needs one class per image")
    counts = index.class_counts(request.data.num_classes)
    _log_balance(counts, request)
    images = ImageCache(index, 0, training=False, limit_bytes=0)
    if request.cache:
        images.cache_all(request.cache)
    maker = ClassificationSampleMaker(index, images, request.hyp, request.image_size, request.seed)
    return BatchLoader(without_box_options(request), maker, counts, place)


def _log_balance(counts: np.ndarray, request: LoadRequest) -> None:
    """Log the images per class; warn about classes without images and about strong imbalance."""
    named = sorted(zip(counts.tolist(), request.data.names, strict=True), reverse=True)
    shown = ", ".join(f"{count} {name}" for count, name in named[:_MAX_LISTED])
    more = f" … {named[-1][0]} {named[-1][1]}" if len(named) > _MAX_LISTED else ""
    LOGGER.info(f"{request.split}: {shown}{more}")
    empty = [name for count, name in named if not count]
    if empty and request.training:
        LOGGER.warning(
            f"{request.split}: no images of {', '.join(empty[:_MAX_LISTED])}; the network cannot learn these classes"
        )
    smallest = min(count for count, _ in named if count)
    if request.training and named[0][0] >= IMBALANCE_RATIO * smallest:
        LOGGER.warning(
            f"{request.split}: {named[0][0]} images of {named[0][1]}, but {smallest} of the rarest class; the total "
            "accuracy hides errors in rare classes, so check the accuracy per class"
        )


@dataclass
class ClassificationSampleMaker:
    """Creates square images of one split; implements `loader.SampleMaker`."""

    index: Index
    images: ImageCache
    hyp: Hyp
    size: int
    seed: int
    faults: list[str] = field(default_factory=list)
    order_stream: int = STREAM_ORDER

    @property
    def training_hw(self) -> tuple[int, int]:
        """Size of training images."""
        return self.size, self.size

    def evaluation_plan(self, request: LoadRequest) -> list[BatchPlan]:
        """Plan batches of square images."""
        return letterbox_plan(self.index, request)

    def train(self, item: Item, epoch: int, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> Sample:
        """Write a random resized crop, flipped and with colour jitter, to `out_rgb` and return its class."""
        rng, hyp = generator(self.seed, epoch, item.position, STREAM_SAMPLE), self.hyp
        sample = self._load(item.index)
        top, left, height, width = random_resized_area(rng, sample.size_hw, hyp.crop)
        image = resize(sample.image[top : top + height, left : left + width], shape_hw)
        for probability, axis in ((hyp.fliplr, 1), (hyp.flipud, 0)):
            if rng.random() < probability:
                image = cv2.flip(image, axis)
        write_rgb(colour_jitter(image, rng, hyp.jitter) if hyp.jitter else image, out_rgb, None)
        return sample

    def evaluate(self, item: Item, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> tuple[Sample, Geometry]:
        """Write the central square to `out_rgb` and return its class and transform."""
        sample = self._load(item.index)
        image, geometry = centre_crop(sample.image, shape_hw)
        write_rgb(image, out_rgb, None)
        return sample, geometry

    def _load(self, number: int) -> Sample:
        """Load an image with its class; an unreadable image is grey and unlabelled."""
        cached = self.images.read(number)
        labels = self.index.labels(number)
        if cached.fault:
            self.faults.append(cached.fault)
        return Sample(cached.image, label=int(labels[0, 0]) if len(labels) and not cached.fault else UNLABELLED)
