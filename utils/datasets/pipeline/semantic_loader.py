"""The loader of one split whose images have a class per pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.core.contracts import Batch, Geometry, ImageInfo, Loader
from utils.core.device import usable_cpus
from utils.core.distributed import rank as this_rank
from utils.core.distributed import world_size
from utils.core.errors import UserError
from utils.core.load_request import LoadRequest
from utils.datasets import SEMANTIC_READERS
from utils.datasets.labels.semantic_layout import Draws, Layout, semantic_of
from utils.datasets.labels.semantic_scan import SemanticIndex, build_semantic_index
from utils.datasets.pipeline import batch_plan as plans
from utils.datasets.pipeline.batch_plan import STREAM_SEMANTIC_ORDER, BatchPlan
from utils.datasets.pipeline.collate import new_bytes, new_images
from utils.datasets.pipeline.image_cache import Pictures
from utils.datasets.pipeline.semantic_map_cache import Maps
from utils.datasets.pipeline.semantic_samples import Fit, SemanticMaker
from utils.datasets.pipeline.worker_pool import Chunk, Crew


def open_semantic_loader(request: LoadRequest, rank: int | None = None, world: int | None = None) -> SemanticLoader:
    """Return the batches of `request.split` of the data set's `semantic:` block.

    `rank` of `world` processes is the launcher's unless given. Sizes are drawn around, and whole images scored at,
    `request.semantic.base_size`; if that is 0, the `base` of the YAML or of the layout; if that is 0, the image size.
    """
    if request.batch_size < 1 or request.image_size < 1:
        raise UserError(f"batch size {request.batch_size} and image size {request.image_size} must be at least 1")
    layout: Layout = SEMANTIC_READERS.get(semantic_of(request.data).format, request.data.source)
    draws = layout.draws_for(request.data)
    wanted = request.semantic
    base = wanted.base_size or draws.base or request.image_size
    fit = Fit(wanted.mode, base, request.image_size, max(request.stride, 32), wanted.fixed_hw)
    index = build_semantic_index(request.data, request.split, request.allow_label_faults)
    if request.training and not index.pixel_counts.any():
        raise UserError(f"{request.data.source}: no labelled pixel in any mask of `semantic.{request.split}:`")
    pictures, maps = Pictures(index.images, 0, training=False, limit_bytes=0), Maps(index)
    if request.cache:
        pictures.keep_all(request.cache)
        if request.cache == "ram":
            maps.keep_all()
    maker = SemanticMaker(pictures, maps, draws, fit, request.seed)
    place = (this_rank() if rank is None else rank, world_size() if world is None else world)
    return SemanticLoader(request, index, maker, place)


class SemanticLoader:
    """Batches of images with a class per pixel on one rank; satisfies `contracts.Loader`.

    What a batch holds depends on (seed, epoch, position) alone. For scoring, images of one original size share a
    batch, and `Batch.semantic` has that size. There are no boxes: `labels` are empty and `boxes_known` is all False.
    """

    heads: tuple[str, ...] = ("semantic",)

    def __init__(
        self, request: LoadRequest, index: SemanticIndex, maker: SemanticMaker, place: tuple[int, int]
    ) -> None:
        self.parts: tuple[Loader, ...] = (self,)
        self.request, self.index, (self.rank, self.world) = request, index, place
        self.num_images = len(index)
        self.class_counts = index.pixel_counts  # (C,) pixels
        self.image_counts = index.image_counts  # (C,) images that show a class
        self.shapes_hw = index.images.shapes_hw
        self.labels = [np.zeros((0, 5), np.float32)] * self.num_images
        self._fit, self._fixed = maker.fit, None if request.training else self._evaluation(maker.fit)
        self.train_hw = _crop_hw(request, maker.draws)
        total = request.batch_size * self.world
        self.num_batches = -(-self.num_images // total) if self._fixed is None else len(self._fixed)
        workers = min(request.workers, usable_cpus(), self.num_batches)
        self._crew = Crew(_Maker(maker, request.training), workers)

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield this rank's batches of an epoch from batch number `start` on."""
        chunks: list[Chunk] = [(plan,) for plan in self.plan(epoch, image_weights)[start:]]
        yield from self._crew.batches(chunks)

    def plan(self, epoch: int, image_weights: np.ndarray | None = None) -> list[BatchPlan]:
        """Return what this rank's batches of an epoch are made of."""
        if self._fixed is not None:
            return self._fixed
        request, sharing = self.request, (self.rank, self.world)
        order = plans.epoch_order(self.num_images, request.seed, epoch, image_weights, STREAM_SEMANTIC_ORDER)
        shapes = [self.train_hw] * self.num_batches
        # nobody needs partners: windows of one image
        return list(plans.training_batches(order, request.batch_size, sharing, shapes, epoch, window=1))

    def _evaluation(self, fit: Fit) -> list[BatchPlan]:
        """Return this rank's batches for scoring; no batch reaches across two sizes of originals."""
        labelled = np.array([fit.labelled_hw((int(h), int(w))) for h, w in self.shapes_hw])
        order = np.lexsort((labelled[:, 1], labelled[:, 0]))
        ends = [*(np.flatnonzero(np.diff(labelled[order], axis=0).any(1)) + 1), len(order)]
        found: list[BatchPlan] = []
        nobody = np.zeros(0, np.int64)
        for first, end in zip([0, *ends], ends, strict=False):
            height, width = (int(side) for side in self.shapes_hw[order[first]])
            for start in range(first, end, self.request.batch_size):
                places = range(start, min(start + self.request.batch_size, end))
                items = tuple(plans.Item(place, int(order[place]), nobody) for place in places)
                found.append(BatchPlan(0, items, fit.network_hw((height, width))))
        return found[self.rank :: self.world]


def _crop_hw(request: LoadRequest, draws: Draws) -> tuple[int, int]:
    """Return (height, width) of training images: parts of the image size, up to the stride."""
    stride = max(request.stride, 32)
    width, height = (math.ceil(request.image_size * part / stride - 1e-9) * stride for part in draws.crop)
    square = (request.image_size, request.image_size)
    return square if tuple(draws.crop) == (1.0, 1.0) else (height, width)


class _Maker(Dataset[Any]):
    """What runs in a worker: plans in, batches out."""

    def __init__(self, maker: SemanticMaker, training: bool) -> None:
        self.maker, self.training = maker, training

    def __getitem__(self, chunk: Chunk) -> tuple[list[Batch], list[str]]:
        batches = [self._batch(plan) for plan in chunk]
        faults, self.maker.faults = list(dict.fromkeys(self.maker.faults)), []
        return batches, faults

    def _batch(self, plan: BatchPlan) -> Batch:
        maker, count = self.maker, len(plan.items)
        first = plan.items[0].index
        height, width = (int(side) for side in maker.maps.index.images.shapes_hw[first])
        labelled_hw = plan.shape_hw if self.training else maker.fit.labelled_hw((height, width))
        images, semantic = new_images(count, plan.shape_hw), new_bytes((count, *labelled_hw))
        info = []
        for row, item in enumerate(plan.items):
            pixels, classes = images[row].numpy(), semantic[row].numpy()
            if self.training:
                maker.train(item, plan.epoch, pixels, classes)
                geometry = Geometry(plan.shape_hw, plan.shape_hw)
            else:
                geometry = maker.evaluate(item, pixels, classes)
            info.append(ImageInfo(item.index, maker.maps.index.images.path(item.index), geometry))
        return Batch(
            images=images.permute(0, 3, 1, 2),
            boxes=torch.zeros((0, 6)),
            info=info,
            boxes_known=torch.zeros(count, dtype=torch.bool),
            semantic=semantic,
        )
