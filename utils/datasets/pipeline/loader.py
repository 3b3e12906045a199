"""`BatchLoader`: plans the batches of a split and creates them in worker processes, for every kind of label."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from utils.core.contracts import Batch, Geometry, ImageInfo, Loader
from utils.core.device import usable_cpus
from utils.core.distributed import rank as this_rank
from utils.core.distributed import world_size
from utils.core.errors import UserError
from utils.core.load_request import LoadRequest
from utils.core.seed import generator
from utils.datasets.labels.label_index import Index
from utils.datasets.pipeline import batch_plan as plans
from utils.datasets.pipeline.batch_plan import STREAM_QUAD, BatchPlan, Item
from utils.datasets.pipeline.collate import MaskStyle, collate, new_images, quad
from utils.datasets.pipeline.image_cache import ImageCache
from utils.datasets.pipeline.sample import Sample
from utils.datasets.pipeline.worker_pool import Chunk, WorkerPool


class SampleMaker(Protocol):
    """Creates the samples of one split from a plan's items.

    Every random number comes from (seed, epoch, position), so that a sample does not depend on workers, ranks or the
    batch at which an epoch starts.
    """

    @property
    def index(self) -> Index:
        """Images of the split; their boxes are empty for semantic segmentation."""

    @property
    def images(self) -> ImageCache:
        """Decoded images."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def order_stream(self) -> int:
        """Random stream of the epoch order."""

    @property
    def training_hw(self) -> tuple[int, int]:
        """Size of training images, without --rect."""

    faults: list[str]  # files that became unreadable; cleared after each chunk

    def train(self, item: Item, epoch: int, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> Sample:
        """Write the augmented image to `out_rgb`, (H, W, 3) uint8, and return its labels."""

    def evaluate(self, item: Item, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> tuple[Sample, Geometry]:
        """Write the fitted image to `out_rgb` and return its labels and transform."""

    def evaluation_plan(self, request: LoadRequest) -> list[BatchPlan]:
        """Plan the evaluation batches of all ranks."""


class BatchLoader:
    """Batches of one split on one rank; implements `contracts.Loader`.

    A batch is a function of (seed, epoch, position) alone: workers, ranks, caches and the starting batch do not matter.

    Args:
        request: split, batch size and options.
        maker: creates the samples.
        class_counts: (C,) boxes, images or pixels per class.
        place: (rank, world size); None: those of the launcher.
        heads: heads that the labels are for; empty: all.
    """

    def __init__(
        self,
        request: LoadRequest,
        maker: SampleMaker,
        class_counts: np.ndarray,
        place: tuple[int, int] | None = None,
        heads: tuple[str, ...] = (),
    ) -> None:
        self.parts: tuple[Loader, ...] = (self,)
        self.heads, self.request, self.maker = heads, request, maker
        self.rank, self.world = (this_rank(), world_size()) if place is None else place
        self.index = maker.index
        self.num_images = len(self.index)
        self.class_counts = class_counts
        self.shapes_hw = self.index.shapes_hw
        self._evaluation: list[BatchPlan] | None = None
        if not request.training:
            self._evaluation = maker.evaluation_plan(request)[self.rank :: self.world]
            self.num_batches = len(self._evaluation)
        else:
            self.num_batches = -(-self.num_images // (request.batch_size * self.world))
        self.workers = min(request.workers, usable_cpus(), self.num_batches)
        self._pool = WorkerPool(_BatchFactory(maker, request), self.workers, request.pin)

    def with_batch_size(self, batch_size: int) -> BatchLoader:
        """Load the same images in batches of another size."""
        if batch_size == self.request.batch_size:
            return self
        request = replace(self.request, batch_size=batch_size)
        return BatchLoader(request, self.maker, self.class_counts, (self.rank, self.world), self.heads)

    @cached_property
    def labels(self) -> list[np.ndarray]:
        """Views of the (n, 5) labels of each image."""
        return [self.index.labels(image) for image in range(self.num_images)]

    @property
    def training_hw(self) -> tuple[int, int]:
        """Size of training images, without --rect."""
        return self.maker.training_hw

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Iterate over this rank's batches of an epoch from batch `start`; `image_weights` are sampling weights."""
        yield from self._pool.batches(self._chunks(self.plan(epoch, image_weights)[start:]))

    def plan(self, epoch: int, image_weights: np.ndarray | None = None) -> list[BatchPlan]:
        """Plan this rank's batches of an epoch."""
        if self._evaluation is not None:
            return self._evaluation
        request, total = self.request, self.request.batch_size * self.world
        if request.rect:
            if request.data.shuffle_window:
                raise UserError(f"{request.data.source}: `shuffle_window:` needs shuffled images; remove it or --rect")
            order = plans.by_aspect(self.shapes_hw)
            group = request.rect_group or total
            fit = (request.image_size, request.stride, request.pad)
            per_group = plans.rect_groups(self.shapes_hw, order, group, fit)
            shapes = [_largest(per_group[s // group : -(-(s + total) // group)]) for s in range(0, len(order), total)]
        else:
            window, stream = request.data.shuffle_window, self.maker.order_stream
            order = plans.epoch_order(self.num_images, request.seed, epoch, image_weights, stream, window)
            shapes = [self.maker.training_hw] * self.num_batches
        place = (self.rank, self.world)
        return list(plans.training_batches(order, request.batch_size, place, shapes, epoch, request.mosaic_window))

    @property
    def decoded(self) -> int:
        """Number of image files decoded by this process; workers count for themselves."""
        return self.maker.images.decoded

    def forget(self) -> None:
        """Drop the recently decoded images of this process."""
        self.maker.images.forget()

    def _chunks(self, batches: list[BatchPlan]) -> list[Chunk]:
        """Group the batches that share a mosaic window into chunks, if there are enough for all workers."""
        span = 1
        if self.request.training and self.workers:
            span = max(1, self.request.mosaic_window // (self.request.batch_size * self.world))
            span = max(1, min(span, len(batches) // self.workers))
        return [tuple(batches[start : start + span]) for start in range(0, len(batches), span)]


def letterbox_plan(index: Index, request: LoadRequest) -> list[BatchPlan]:
    """Plan evaluation batches of letterboxed images, of square or (with `request.rect`) rectangular shape."""
    if request.rect:
        group = request.rect_group or request.batch_size
        order = plans.by_aspect(index.shapes_hw)
        fit = (request.image_size, request.stride, request.pad)
        shapes = plans.rect_groups(index.shapes_hw, order, group, fit)
    else:
        order, group = np.arange(len(index)), request.batch_size
        shapes = [(request.image_size,) * 2] * -(-len(index) // group)
    return plans.evaluation_batches(order, request.batch_size, group, shapes)


def without_box_options(request: LoadRequest) -> LoadRequest:
    """Reset the options that only concern boxes: rectangles, --quad, masks, --single-cls and mosaic windows."""
    return replace(request, rect=False, quad=False, masks=False, single_class=False, mosaic_window=1)


def check_sizes(request: LoadRequest) -> None:
    """Reject batch and image sizes below 1.

    Raises:
        UserError: one of them is too small.
    """
    if request.batch_size < 1 or request.image_size < 1:
        raise UserError(f"batch size {request.batch_size} and image size {request.image_size} must be at least 1")


def _largest(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    return max(height for height, _ in shapes), max(width for _, width in shapes)


class _BatchFactory(Dataset[tuple[list[Batch], list[str]]]):
    """Creates batches from plans; runs in the workers."""

    def __init__(self, maker: SampleMaker, request: LoadRequest) -> None:
        self.maker, self.training, self.quads = maker, request.training, request.quad and request.training
        self.masks = None
        if request.masks:
            self.masks = MaskStyle(request.mask_ratio, request.overlap, strict=not request.training)

    def __getitem__(self, chunk: Chunk) -> tuple[list[Batch], list[str]]:
        batches = [self._create(plan) for plan in chunk]
        faults, self.maker.faults = list(dict.fromkeys(self.maker.faults)), []
        return batches, faults

    def _create(self, plan: BatchPlan) -> Batch:
        items = _fours(plan.items) if self.quads else plan.items
        images = new_images(len(items), plan.shape_hw)
        pixels = images.numpy()
        samples: dict[int, Sample] = {}
        geometries: dict[int, Geometry] = {}
        # window by window, so that the decoded images of a single window suffice
        for row in sorted(range(len(items)), key=lambda row: (items[row].window[:1].tolist(), row)):
            if self.training:
                samples[row] = self.maker.train(items[row], plan.epoch, plan.shape_hw, pixels[row])
                geometries[row] = Geometry(plan.shape_hw, plan.shape_hw)
            else:
                samples[row], geometries[row] = self.maker.evaluate(items[row], plan.shape_hw, pixels[row])
            samples[row].image = pixels[row]  # frees the image before colour conversion
        path = self.maker.index.path
        info = [ImageInfo(item.index, path(item.index), geometries[row]) for row, item in enumerate(items)]
        batch = collate(images, [samples[row] for row in range(len(items))], info, self.masks)
        return quad(batch, self._enlarged(items, plan.epoch)) if self.quads else batch

    def _enlarged(self, items: tuple[Item, ...], epoch: int) -> list[bool]:
        """Draw for each group of four images whether its first is enlarged instead of tiling all four."""
        firsts = [item.position for item in items[::4]]
        return [generator(self.maker.seed, epoch, first, STREAM_QUAD).random() < 0.5 for first in firsts]


def _fours(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Truncate items to groups of four; fewer than four are repeated."""
    return items[: len(items) // 4 * 4] or tuple(items[i % len(items)] for i in range(4))
