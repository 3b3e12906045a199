"""Images with a class each, as batches for whole-image classifiers (behaviour.md 4.12)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from utils.core.contracts import Geometry
from utils.core.distributed import rank as this_rank
from utils.core.distributed import world_size
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.log import LOGGER
from utils.core.seed import generator
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.scan import build_index
from utils.datasets.pipeline.augment import write_rgb
from utils.datasets.pipeline.batch_plan import STREAM_SAMPLE, Item
from utils.datasets.pipeline.image_cache import Pictures
from utils.datasets.pipeline.loader import BatchLoader
from utils.datasets.pipeline.sample import Sample
from utils.ops.crop import centre_crop, colour_jitter, random_resized_area, resize

IMBALANCE = 10  # the largest class has so many times the images of the smallest: worth a word
UNLABELLED = -1


def open_class_loader(request: LoadRequest, rank: int | None = None, world: int | None = None) -> BatchLoader:
    """Return the batches of `request.split`, square and with `Batch.classes`, where each image has one class.

    An image's class is that of its only label; one without labels has none (-1), one with several is a UserError.
    """
    index = build_index(request.data, request.split, False, request.allow_label_faults, need_labels=request.training)
    several = np.flatnonzero(np.diff(index.box_starts) > 1)
    if len(several):
        raise UserError(f"{index.path(int(several[0]))}: has several labels; a classifier wants one class per image")
    _tell_balance(index, request)
    pictures = Pictures(index, 0, training=False, limit_bytes=0)
    if request.cache:
        pictures.keep_all(request.cache)
    maker = ClassSampleMaker(index, pictures, request.hyp, request.seed)
    # squares in a plain order, no partners: what only boxes know of is off
    plain = replace(request, rect=False, quad=False, masks=False, single_class=False, mosaic_window=1)
    return BatchLoader(plain, maker, this_rank() if rank is None else rank, world_size() if world is None else world)


def _tell_balance(index: Index, request: LoadRequest) -> None:
    """Say how many images the classes have, and warn if a class has none, or few beside the largest."""
    counts = index.class_counts(request.data.num_classes)
    named = sorted(zip(counts.tolist(), request.data.names, strict=True), reverse=True)
    shown = ", ".join(f"{count} {name}" for count, name in named[:8])
    more = f" … {named[-1][0]} {named[-1][1]}" if len(named) > 8 else ""
    LOGGER.info(f"{request.split}: {shown}{more}")
    empty = [name for count, name in named if not count]
    if empty and request.training:
        LOGGER.warning(
            f"{request.split}: no images of {', '.join(empty[:8])}; the network cannot learn what it never saw"
        )
    least = min(count for count, _ in named if count)
    if request.training and named[0][0] >= IMBALANCE * least:
        LOGGER.warning(
            f"{request.split}: {named[0][0]} images of {named[0][1]}, {least} of the rarest class; the score of all "
            "images hides what happens to rare classes, so look at each class"
        )


@dataclass
class ClassSampleMaker:
    """Makes square images of one split. Every random number comes from (seed, epoch, position)."""

    index: Index
    pictures: Pictures
    hyp: Hyp
    seed: int
    faults: list[str] = field(default_factory=list)  # images that could not be read since the last look

    def train(self, item: Item, epoch: int, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> Sample:
        """Write a random part of the image, resized, mirrored and in other colours, into `out_rgb` (H, W, 3)."""
        rng, hyp = generator(self.seed, epoch, item.position, STREAM_SAMPLE), self.hyp
        sample, _ = self._load(item.index)
        top, left, height, width = random_resized_area(rng, sample.size_hw, hyp.crop)
        image = resize(sample.image[top : top + height, left : left + width], shape_hw)
        for chance, axis in ((hyp.fliplr, 1), (hyp.flipud, 0)):
            if rng.random() < chance:
                image = cv2.flip(image, axis)
        write_rgb(colour_jitter(image, rng, hyp.jitter) if hyp.jitter else image, out_rgb, None)
        return sample

    def evaluate(self, item: Item, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> tuple[Sample, Geometry]:
        """Write the image's middle square into `out_rgb` and say how it was cut."""
        sample, _ = self._load(item.index)
        image, geometry = centre_crop(sample.image, shape_hw)
        write_rgb(image, out_rgb, None)
        return sample, geometry

    def _load(self, number: int) -> tuple[Sample, tuple[int, int]]:
        """Return image `number` with its class, and its size; what cannot be read is grey and of no class."""
        kept = self.pictures.all is not None
        picture = self.pictures.get(number) if kept else self.pictures.read(number)
        labels = self.index.labels(number)
        label = int(labels[0, 0]) if len(labels) and not picture.fault else UNLABELLED
        if picture.fault:
            self.faults.append(picture.fault)
        return Sample(picture.image, label=label), picture.original_hw
