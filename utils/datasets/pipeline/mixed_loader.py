"""Loaders of several data sets: mixed batches for training, one data set after the other in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import IGNORED_PIXEL, Batch, ImageInfo, Loader
from utils.core.device import usable_cpus
from utils.core.errors import UserError
from utils.core.load_request import LoadRequest
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.datasets.pipeline.semantic_samples import open_semantic_loader


def split_batch_size(batch_size: int, fraction: float) -> tuple[int, int]:
    """Divide a batch between two data sets.

    Args:
        batch_size: batch size per process, at least 2.
        fraction: fraction of images with semantic maps, between 0 and 1.

    Returns:
        The numbers of images with boxes and with semantic maps, at least 1 each; half an image goes to the boxes.

    Raises:
        UserError: the batch cannot be divided.
    """
    if not 0 < fraction < 1:
        raise UserError(f"the fraction of images with semantic maps must be between 0 and 1, got {fraction}")
    if batch_size < 2:
        raise UserError(f"batch size {batch_size} per process: two data sets need at least 2")
    semantic = min(max(int(np.ceil(batch_size * fraction - 0.5)), 1), batch_size - 1)
    return batch_size - semantic, semantic


def open_mixed_loader(
    request: LoadRequest,
    heads: tuple[str, ...] = ("detect", "semantic"),
    place: tuple[int, int] | None = None,
    open_boxes: Callable[[LoadRequest], Loader] | None = None,
) -> MixedLoader:
    """Open the loader of batches that mix images with boxes and images with semantic maps.

    Args:
        request: split and options; batch size and workers are divided between the two data sets.
        heads: heads that the labels are for.
        place: (rank, world size); None: those of the launcher.
        open_boxes: opens the images with boxes; None: `open_box_loader`.

    Raises:
        UserError: a data set is unusable or the options cannot be combined.
    """
    boxes, semantic = split_batch_size(request.batch_size, request.semantic.fraction)
    if request.rect or request.quad:
        option = "--rect" if request.rect else "--quad"
        raise UserError(f"{option} cannot be combined with batches from two data sets, whose images must be square")
    workers = min(request.workers, usable_cpus())
    for_semantic = min(max(round(workers * request.semantic.fraction), 1), max(workers - 1, 1)) if workers else 0
    for_boxes = max(workers - for_semantic, 1) if workers else 0
    own = replace(request, batch_size=boxes, workers=for_boxes)
    primary = open_boxes(own) if open_boxes else open_box_loader(own, place)
    secondary = open_semantic_loader(replace(request, batch_size=semantic, workers=for_semantic), place)
    if secondary.training_hw != (request.image_size,) * 2:
        raise UserError(
            f"{request.data.source}: `semantic.crop:` must be [1, 1] for batches from two data sets, got images of "
            f"{secondary.training_hw[1]} x {secondary.training_hw[0]}"
        )
    return MixedLoader(primary, secondary, heads, request.semantic.fraction)


class MixedLoader:
    """Batches with images of `primary`, which has boxes, followed by images of `secondary`.

    Missing kinds of labels are marked per image (`Batch.boxes_known`, `IGNORED_PIXEL`). An epoch has as many batches as
    that of the longer loader; the shorter one continues with its next epoch, so that none of its images is left out.
    Which batches meet depends on the step alone. Labels, counts and sizes are those of `primary`; the image indices of
    `secondary` follow its own. `fraction` of a batch are images of `secondary`.
    """

    def __init__(
        self,
        primary: Loader,
        secondary: Loader,
        heads: tuple[str, ...] = ("detect", "semantic"),
        fraction: float = 0.5,
    ) -> None:
        self.primary, self.secondary, self.heads, self.fraction = primary, secondary, heads, fraction
        self.parts: tuple[Loader, ...] = (self,)
        self.num_images = primary.num_images  # the length of `labels` and `shapes_hw`
        self.total_images = primary.num_images + secondary.num_images
        self.num_batches = max(primary.num_batches, secondary.num_batches)
        self.class_counts, self.shapes_hw = primary.class_counts, primary.shapes_hw

    def with_batch_size(self, batch_size: int) -> MixedLoader:
        """Load the same images in batches of another size."""
        boxes, semantic = split_batch_size(batch_size, self.fraction)
        pair = self.primary.with_batch_size(boxes), self.secondary.with_batch_size(semantic)
        return MixedLoader(*pair, self.heads, self.fraction)

    @property
    def labels(self) -> list[np.ndarray]:
        """Labels of the images of `primary`."""
        return self.primary.labels

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Iterate over an epoch from batch `start`; `image_weights` are sampling weights of the images of `primary`.

        A thread concatenates the next batch, megabytes of pixels, while the caller works on the current one.
        """
        first = epoch * self.num_batches + start
        count = self.num_batches - start
        boxes = _continuous(self.primary, first, count, image_weights)
        semantic = _continuous(self.secondary, first, count, None)
        try:
            with ThreadPoolExecutor(1, "mixed batches") as thread:
                waiting: list[Future[Batch]] = []
                for pair in zip(boxes, semantic, strict=True):
                    waiting.append(thread.submit(concatenate_batches, *pair, self.primary.num_images))
                    if len(waiting) > 1:
                        yield waiting.pop(0).result()
                for last in waiting:
                    yield last.result()
        finally:
            boxes.close()
            semantic.close()


def _continuous(
    loader: Loader, first: int, count: int, image_weights: np.ndarray | None
) -> Generator[Batch, None, None]:
    """Yield `count` batches of the concatenated epochs of a loader, from batch `first` on."""
    epoch, start = divmod(first, loader.num_batches)
    while count > 0:
        for batch in loader.epoch(epoch, start, image_weights):
            yield batch
            count -= 1
            if count == 0:
                break
        epoch, start = epoch + 1, 0


def concatenate_batches(first: Batch, second: Batch, offset: int = 0) -> Batch:
    """Concatenate two batches; kinds of labels that only one of them has are marked unknown for the other.

    Args:
        first: batch with images of the same size as `second`.
        second: batch whose images follow.
        offset: added to the image indices of `second`.

    Raises:
        ValueError: the sizes differ, or only one batch has instance masks and the other has boxes.
    """
    if first.images.shape[1:] != second.images.shape[1:]:
        raise ValueError(
            f"images of {tuple(first.images.shape)} and {tuple(second.images.shape)} cannot be concatenated"
        )
    moved = second.boxes.clone()
    moved[:, 0] += len(first)
    others = [ImageInfo(info.index + offset, info.path, info.geometry) for info in second.info]
    pair = (first, second)
    known = [_filled(batch.boxes_known, (len(batch),), True) for batch in pair]
    semantic = classes = None
    if any(batch.semantic is not None for batch in pair):
        shape_hw = next(batch.semantic.shape[1:] for batch in pair if batch.semantic is not None)
        maps = [_filled(batch.semantic, (len(batch), *shape_hw), IGNORED_PIXEL) for batch in pair]
        semantic = _concatenate(maps)
    if any(batch.classes is not None for batch in pair):
        classes = torch.cat([_filled(batch.classes, (len(batch),), -1) for batch in pair])
    return Batch(
        images=_concatenate([batch.images.permute(0, 2, 3, 1) for batch in pair]).permute(0, 3, 1, 2),
        boxes=torch.cat((first.boxes, moved)),
        info=[*first.info, *others],
        boxes_known=torch.cat(known),
        masks=_concatenate_masks(first, second),
        classes=classes,
        semantic=semantic,
    )


def _filled(values: Tensor | None, shape: tuple[int, ...], default: int | bool) -> Tensor:
    """Return `values`, or a tensor of `shape` filled with `default`."""
    if values is not None:
        return values
    dtypes = {IGNORED_PIXEL: torch.uint8, -1: torch.int64}
    return torch.full(shape, default, dtype=torch.bool if default is True else dtypes[default])


def _concatenate(parts: list[Tensor]) -> Tensor:
    """Concatenate tensors, in page-locked memory if the first one is."""
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    whole = torch.empty(shape, dtype=parts[0].dtype, pin_memory=parts[0].is_pinned())
    return torch.cat(parts, out=whole)


def _concatenate_masks(first: Batch, second: Batch) -> Tensor | None:
    """Concatenate the instance masks of two batches, in the order of their boxes."""
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


class LoaderSequence:
    """Loaders that are evaluated one after the other, each for the heads that it has labels for."""

    def __init__(self, parts: Sequence[Loader]) -> None:
        if not parts:
            raise ValueError("a sequence of loaders needs at least one part")
        self.parts: tuple[Loader, ...] = tuple(parts)
        self.heads: tuple[str, ...] = tuple(dict.fromkeys(head for part in parts for head in part.heads))
        self.num_images = sum(part.num_images for part in parts)
        self.num_batches = sum(part.num_batches for part in parts)
        self.class_counts, self.shapes_hw = parts[0].class_counts, parts[0].shapes_hw

    def with_batch_size(self, batch_size: int) -> LoaderSequence:
        """Load the same images in batches of another size."""
        return LoaderSequence([part.with_batch_size(batch_size) for part in self.parts])

    @property
    def labels(self) -> list[np.ndarray]:
        """Labels of the images of the first part."""
        return self.parts[0].labels

    def epoch(self, epoch: int, start: int = 0, image_weights: np.ndarray | None = None) -> Iterator[Batch]:
        """Iterate over all parts from batch `start` on; `image_weights` are for the images of the first part."""
        for number, part in enumerate(self.parts):
            if start < part.num_batches:
                yield from part.epoch(epoch, start, image_weights if number == 0 else None)
            start = max(0, start - part.num_batches)


def has_same_images(request: LoadRequest) -> bool:
    """Check whether the images with boxes and those with semantic maps have the same paths in the data YAML."""
    semantic = request.data.semantic
    if semantic is None or request.split not in request.data.splits or request.split not in semantic.splits:
        return False
    first, second = (
        {Path(path).resolve() for path in paths}
        for paths in (request.data.splits[request.split], semantic.splits[request.split])
    )
    return first == second
