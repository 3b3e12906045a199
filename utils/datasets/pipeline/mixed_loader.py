"""Two data sets as one: mixed batches for training, one after the other for scoring."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import IGNORED_PIXEL, Batch, ImageInfo, Loader
from utils.core.device import usable_cpus
from utils.core.errors import UserError
from utils.core.load_request import LoadRequest
from utils.datasets.pipeline.loader import open_loader
from utils.datasets.pipeline.semantic_loader import open_semantic_loader


def shared_batch_sizes(batch_size: int, share: float) -> tuple[int, int]:
    """Return how many images of a batch come from the boxes' data set and how many from that of the pixels.

    The latter get `share` of the batch, rounded to the nearest whole number (a half goes to the boxes), but both get
    at least one image. UserError: the batch cannot be shared.
    """
    if not 0 < share < 1:
        raise UserError(f"share {share} of images with a class per pixel: above 0 and below 1")
    if batch_size < 2:
        raise UserError(f"batch size {batch_size} per process: two data sets need at least 2")
    pixels = min(max(int(np.ceil(batch_size * share - 0.5)), 1), batch_size - 1)
    return batch_size - pixels, pixels


def open_mixed(
    request: LoadRequest,
    heads: tuple[str, ...] = ("detect", "semantic"),
    place: tuple[int, int] | None = None,
    open_boxes: Callable[[LoadRequest], Loader] | None = None,
) -> MixedLoader:
    """Return mixed batches of the images with boxes and of those with a class per pixel.

    `place` is (rank, world), None: the launcher's. `open_boxes` opens the former where they need more than boxes. The
    workers are shared as the batches are.
    """
    boxes, pixels = shared_batch_sizes(request.batch_size, request.semantic.fraction)
    if request.rect or request.quad:
        option = "--rect" if request.rect else "--quad"
        raise UserError(f"{option} is not possible with images of two data sets in a batch: all must be squares")
    rank, world = place or (None, None)
    helpers = min(request.workers, usable_cpus())
    for_pixels = min(max(round(helpers * request.semantic.fraction), 1), max(helpers - 1, 1)) if helpers else 0
    for_boxes = max(helpers - for_pixels, 1) if helpers else 0
    own = replace(request, batch_size=boxes, workers=for_boxes)
    primary = open_boxes(own) if open_boxes else open_loader(own, rank, world)
    secondary = open_semantic_loader(replace(request, batch_size=pixels, workers=for_pixels), rank, world)
    if secondary.train_hw != (request.image_size,) * 2:
        raise UserError(
            f"{request.data.source}: `semantic.crop:` must be [1, 1] for images of two data sets in a batch, got "
            f"images of {secondary.train_hw[1]} x {secondary.train_hw[0]}"
        )
    return MixedLoader(primary, secondary, heads)


class MixedLoader:
    """Batches of which some images come from `primary`, which knows boxes, the others from `secondary`.

    Every image says what is known about it (`Batch.boxes_known`, `IGNORED_PIXEL`). An epoch has as many batches as
    the longer of the two; when the other one ends it begins its next epoch, so that none of its images is left out.
    Which batches meet depends on the number of the step alone. Labels, counts and sizes are those of `primary`; the
    indices of the others' images follow on its own.
    """

    def __init__(self, primary: Loader, secondary: Loader, heads: tuple[str, ...] = ("detect", "semantic")) -> None:
        self.primary, self.secondary, self.heads = primary, secondary, heads
        self.parts: tuple[Loader, ...] = (self,)
        self.num_images = primary.num_images  # those that `labels` and `shapes_hw` are about
        self.num_images_of_both = primary.num_images + secondary.num_images
        self.num_batches = max(primary.num_batches, secondary.num_batches)
        self.class_counts, self.shapes_hw = primary.class_counts, primary.shapes_hw

    @property
    def labels(self) -> list[np.ndarray]:
        """Return the labels of the primary's images."""
        return self.primary.labels

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch from number `start` on; `image_weights` are for the primary's images."""
        first = epoch * self.num_batches + start
        count = self.num_batches - start
        boxes = _endless(self.primary, first, count, image_weights)
        pixels = _endless(self.secondary, first, count, None)
        try:
            for pair in zip(boxes, pixels, strict=True):
                yield joined(*pair, self.primary.num_images)
        finally:
            boxes.close()
            pixels.close()


def _endless(loader: Loader, first: int, count: int, image_weights: np.ndarray | None) -> Generator[Batch, None, None]:
    """Yield `count` batches of the loader's epochs put one after the other, from batch `first` of all on."""
    epoch, start = divmod(first, loader.num_batches)
    while count > 0:
        for batch in loader.epoch(epoch, start, image_weights):
            yield batch
            count -= 1
            if count == 0:
                break
        epoch, start = epoch + 1, 0


def joined(first: Batch, second: Batch, offset: int = 0) -> Batch:
    """Return one batch of both's images; `offset` is added to the indices of the second's.

    Images of different sizes raise ValueError. What only one of them has is unknown for the images of the other.
    """
    if first.images.shape[1:] != second.images.shape[1:]:
        raise ValueError(f"images of {tuple(first.images.shape)} and {tuple(second.images.shape)} make no batch")
    moved = second.boxes.clone()
    moved[:, 0] += len(first)
    others = [ImageInfo(info.index + offset, info.path, info.geometry) for info in second.info]
    pair = (first, second)
    known = [_or(batch.boxes_known, (len(batch),), True) for batch in pair]
    semantic = classes = None
    if any(batch.semantic is not None for batch in pair):
        shape_hw = next(batch.semantic.shape[1:] for batch in pair if batch.semantic is not None)
        maps = [_or(batch.semantic, (len(batch), *shape_hw), IGNORED_PIXEL) for batch in pair]
        semantic = _together(maps)
    if any(batch.classes is not None for batch in pair):
        classes = torch.cat([_or(batch.classes, (len(batch),), -1) for batch in pair])
    return Batch(
        images=_together([batch.images.permute(0, 2, 3, 1) for batch in pair]).permute(0, 3, 1, 2),
        boxes=torch.cat((first.boxes, moved)),
        info=[*first.info, *others],
        boxes_known=torch.cat(known),
        masks=_masks(first, second),
        classes=classes,
        semantic=semantic,
    )


def _or(values: Tensor | None, shape: tuple[int, ...], otherwise: int | bool) -> Tensor:
    """Return the values, or a tensor of `shape` that says nothing about any image."""
    if values is not None:
        return values
    kinds = {IGNORED_PIXEL: torch.uint8, -1: torch.int64}
    return torch.full(shape, otherwise, dtype=torch.bool if otherwise is True else kinds[otherwise])


def _together(parts: list[Tensor]) -> Tensor:
    """Return the parts one after the other, in page-locked memory where there is a GPU to copy it to."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    whole = torch.empty(shape, dtype=parts[0].dtype, pin_memory=torch.cuda.is_available())
    return torch.cat(parts, out=whole)


def _masks(first: Batch, second: Batch) -> Tensor | None:
    """Return the masks of both's instances, in the order of their boxes."""
    if first.masks is None and second.masks is None:
        return None
    known = first.masks if first.masks is not None else second.masks
    assert known is not None
    parts = []
    for batch in (first, second):
        count = len(batch.boxes) if known.dtype == torch.bool else len(batch)
        if batch.masks is None and len(batch.boxes):
            raise ValueError("one of the batches has boxes without masks")
        parts.append(batch.masks if batch.masks is not None else known.new_zeros((count, *known.shape[1:])))
    return torch.cat([part.to(torch.promote_types(parts[0].dtype, parts[1].dtype)) for part in parts])


class Suite:
    """Loaders that are scored one after the other, each for the heads that it has labels for."""

    def __init__(self, parts: Sequence[Loader]) -> None:
        if not parts:
            raise ValueError("a suite needs at least one part")
        self.parts: tuple[Loader, ...] = tuple(parts)
        self.heads: tuple[str, ...] = tuple(dict.fromkeys(head for part in parts for head in part.heads))
        self.num_images = sum(part.num_images for part in parts)
        self.num_batches = sum(part.num_batches for part in parts)
        self.class_counts, self.shapes_hw = parts[0].class_counts, parts[0].shapes_hw

    @property
    def labels(self) -> list[np.ndarray]:
        """Return the labels of the first part's images."""
        return self.parts[0].labels

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Yield the batches of all parts from number `start` of all on; weights are for the first part's images."""
        for number, part in enumerate(self.parts):
            if start < part.num_batches:
                yield from part.epoch(epoch, start, image_weights if number == 0 else None)
            start = max(0, start - part.num_batches)


def open_suite(
    request: LoadRequest, box_heads: tuple[str, ...] = ("detect",), place: tuple[int, int] | None = None
) -> Suite:
    """Return the images with boxes, for `box_heads`, and then those with a class per pixel, for scoring."""
    rank, world = place or (None, None)
    boxes = open_loader(request, rank, world)
    boxes.heads = box_heads
    return Suite((boxes, open_semantic_loader(request, rank, world)))


def same_images(request: LoadRequest) -> bool:
    """Tell whether the images of the split with boxes are those with a class per pixel, by where the YAML has them."""
    semantic = request.data.semantic
    if semantic is None or request.split not in request.data.splits or request.split not in semantic.splits:
        return False
    first, second = (
        {Path(place).resolve() for place in places}
        for places in (request.data.splits[request.split], semantic.splits[request.split])
    )
    return first == second
