"""The loader of one split: plans the batches of an epoch and has workers make them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol

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
from utils.datasets.labels.scan import build_index
from utils.datasets.pipeline import batch_plan as plans
from utils.datasets.pipeline.augment import optional_transforms
from utils.datasets.pipeline.batch_plan import STREAM_QUAD, WINDOW, BatchPlan, Item
from utils.datasets.pipeline.box_samples import SampleMaker
from utils.datasets.pipeline.collate import MaskStyle, collate, new_images, quad
from utils.datasets.pipeline.image_cache import Pictures
from utils.datasets.pipeline.sample import Sample
from utils.datasets.pipeline.semantic_map_cache import maps_beside
from utils.datasets.pipeline.worker_pool import Chunk, Crew


def open_loader(request: LoadRequest, rank: int | None = None, world: int | None = None) -> BatchLoader:
    """Return the batches of `request.split`; `rank` of `world` processes is the launcher's unless given."""
    if request.batch_size < 1 or request.image_size < 1:
        raise UserError(f"batch size {request.batch_size} and image size {request.image_size} must be at least 1")
    if request.quad and request.batch_size % 4:
        raise UserError(f"--quad puts four images together: the batch size of {request.batch_size} is no multiple of 4")
    index = build_index(
        request.data, request.split, request.single_class, request.allow_label_faults, need_labels=request.training
    )
    if request.masks:
        _check_masks(request, index)
    size = request.image_size
    maps = maps_beside(request, index) if request.training and request.semantic.mosaic else None
    room = (request.mosaic_window or WINDOW) * size * size * (4 if maps is None else 5)
    pictures = Pictures(index, size, request.training, room, classes=None if maps is None else maps.read)
    if request.training:
        optional_transforms()  # imported once here, not in every worker
    if request.cache:
        pictures.keep_all(request.cache)
    maker = SampleMaker(
        index, pictures, request.hyp, size, request.seed, mosaics=not request.rect, shuffled=not request.masks
    )
    place = (this_rank() if rank is None else rank, world_size() if world is None else world)
    return BatchLoader(request, maker, *place)


def _check_masks(request: LoadRequest, index: Index) -> None:
    """Raise UserError where masks are asked for that cannot be made."""
    if request.quad:
        raise UserError("--quad is not possible with masks")
    if not 1 <= request.mask_ratio <= request.stride:
        raise UserError(f"--mask-ratio {request.mask_ratio}: from 1 to {request.stride}")
    lacking = index.first_without_outline()
    if lacking is not None:
        raise UserError(
            f"{request.data.source}: the labels of {index.path(lacking)} are boxes; masks need polygons, "
            "`class x1 y1 x2 y2 x3 y3 ...` per line"
        )


class Maker(Protocol):
    """Makes samples of one split; every random number comes from (seed, epoch, position)."""

    index: Index
    pictures: Pictures
    seed: int
    faults: list[str]  # images that could not be read since the last look

    def train(self, item: Item, epoch: int, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> Sample:
        """Write the augmented image into `out_rgb` (H, W, 3) and return its labels."""
        ...

    def evaluate(self, item: Item, shape_hw: tuple[int, int], out_rgb: np.ndarray) -> tuple[Sample, Geometry]:
        """Write the image into `out_rgb` as it is scored and return its labels and how it was fitted."""
        ...


class BatchLoader:
    """Batches of one split on one rank; satisfies `contracts.Loader`.

    What a batch holds depends on (seed, epoch, position) alone: not on workers, ranks, caches or where one starts.
    """

    heads: tuple[str, ...] = ()

    def __init__(self, request: LoadRequest, maker: Maker, rank: int, world: int) -> None:
        self.parts: tuple[Loader, ...] = (self,)
        self.request, self.rank, self.world = request, rank, world
        self.index: Index = maker.index
        self.num_images = len(self.index)
        self.class_counts = self.index.class_counts(1 if request.single_class else request.data.num_classes)
        self.shapes_hw = self.index.shapes_hw
        self._maker = maker
        self._fixed: list[BatchPlan] | None = None
        if not request.training:
            self._fixed = self._evaluation()[rank::world]
            self.num_batches = len(self._fixed)
        else:
            self.num_batches = -(-self.num_images // (request.batch_size * world))
        self.workers = min(request.workers, usable_cpus(), self.num_batches)
        self._crew = Crew(_Batches(self._maker, request), self.workers)

    @cached_property
    def labels(self) -> list[np.ndarray]:
        """Return the (n, 5) labels of each image, views of the index."""
        return [self.index.labels(image) for image in range(self.num_images)]

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from batch number `start` on."""
        yield from self._crew.batches(self._chunks(self.plan(epoch, image_weights)[start:]))

    def plan(self, epoch: int, image_weights: np.ndarray | None = None) -> list[BatchPlan]:
        """Return what this rank's batches of an epoch are made of."""
        if self._fixed is not None:
            return self._fixed
        request, total = self.request, self.request.batch_size * self.world
        if request.rect:
            order = plans.by_aspect(self.shapes_hw)
            group = request.rect_group or total
            per_group = plans.rect_groups(
                self.shapes_hw, order, group, (request.image_size, request.stride, request.pad)
            )
            shapes = [_largest(per_group[s // group : -(-(s + total) // group)]) for s in range(0, len(order), total)]
        else:
            order = plans.epoch_order(self.num_images, request.seed, epoch, image_weights)
            shapes = [(request.image_size,) * 2] * self.num_batches
        sharing = (self.rank, self.world)
        return list(plans.training_batches(order, request.batch_size, sharing, shapes, epoch, request.mosaic_window))

    @property
    def decoded(self) -> int:
        """Return how many image files this process has read; workers count for themselves."""
        return self._maker.pictures.decoded

    def forget(self) -> None:
        """Drop the images that this process keeps for mosaics."""
        self._maker.pictures.forget()

    # ------------------------------------------------------------------------------------------------------------------

    def _evaluation(self) -> list[BatchPlan]:
        request = self.request
        group = request.rect_group or request.batch_size
        if request.rect:
            order = plans.by_aspect(self.shapes_hw)
            fit = (request.image_size, request.stride, request.pad)
            shapes = plans.rect_groups(self.shapes_hw, order, group, fit)
        else:
            order, group = np.arange(self.num_images), request.batch_size
            shapes = [(request.image_size,) * 2] * -(-self.num_images // group)
        return plans.evaluation_batches(order, request.batch_size, group, shapes)

    def _chunks(self, batches: list[BatchPlan]) -> list[Chunk]:
        """Return the batches in groups that one worker makes: those that share a window, if all workers get some."""
        span = 1
        if self.request.training and self.workers:
            span = max(1, self.request.mosaic_window // (self.request.batch_size * self.world))
            span = max(1, min(span, len(batches) // self.workers))
        return [tuple(batches[start : start + span]) for start in range(0, len(batches), span)]


def _largest(shapes: list[tuple[int, int]]) -> tuple[int, int]:
    return max(height for height, _ in shapes), max(width for _, width in shapes)


class _Batches(Dataset[Any]):
    """What runs in a worker: plans in, batches out."""

    def __init__(self, maker: Maker, request: LoadRequest) -> None:
        self.maker, self.training, self.quads = maker, request.training, request.quad and request.training
        self.masks = None
        if request.masks:
            self.masks = MaskStyle(request.mask_ratio, request.overlap, strict=not request.training)

    def __getitem__(self, chunk: Chunk) -> tuple[list[Batch], list[str]]:
        batches = [self._batch(plan) for plan in chunk]
        faults, self.maker.faults = list(dict.fromkeys(self.maker.faults)), []
        return batches, faults

    def _batch(self, plan: BatchPlan) -> Batch:
        items = _fours(plan.items) if self.quads else plan.items
        images = new_images(len(items), plan.shape_hw)
        pixels = images.numpy()
        samples: dict[int, Any] = {}
        info: dict[int, ImageInfo] = {}
        # window after window, so that the decoded images of one of them suffice
        rows = sorted(range(len(items)), key=lambda row: (items[row].window[:1].tolist(), row))
        for row in rows:
            item = items[row]
            if self.training:
                samples[row] = self.maker.train(item, plan.epoch, plan.shape_hw, pixels[row])
                geometry = Geometry(plan.shape_hw, plan.shape_hw)
            else:
                samples[row], geometry = self.maker.evaluate(item, plan.shape_hw, pixels[row])
            samples[row].image = pixels[row]  # let go of the copy before colours
            info[row] = ImageInfo(item.index, self.maker.index.path(item.index), geometry)
        ordered = range(len(items))
        batch = collate(images, [samples[row] for row in ordered], [info[row] for row in ordered], self.masks)
        return quad(batch, self._enlarged(items, plan.epoch)) if self.quads else batch

    def _enlarged(self, items: tuple[Item, ...], epoch: int) -> list[bool]:
        """Return for each four images whether the first is enlarged, instead of all being put together."""
        firsts = [item.position for item in items[::4]]
        return [generator(self.maker.seed, epoch, first, STREAM_QUAD).random() < 0.5 for first in firsts]


def _fours(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Return as many items as make up groups of four; fewer than four are repeated."""
    return items[: len(items) // 4 * 4] or tuple(items[i % len(items)] for i in range(4))
