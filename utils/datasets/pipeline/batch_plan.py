"""Batch plans: which images form which batch, as a function of seed and epoch, divided among ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.core.seed import generator

STREAM_ORDER, STREAM_SAMPLE, STREAM_QUAD = 1, 2, 3  # random streams, see utils.core.seed.generator
STREAM_SEMANTIC_ORDER, STREAM_SEMANTIC_SAMPLE = 4, 5  # independent, since both kinds may be loaded side by side
WINDOW = 64  # images from which the partners of a mosaic are drawn

_NO_PARTNERS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Item:
    """One sample to create: its position in the epoch, its image and the candidate images for its mosaic."""

    position: int
    index: int
    window: np.ndarray  # (k,) image indices


@dataclass(frozen=True)
class BatchPlan:
    """Samples and image shape of one batch."""

    epoch: int
    items: tuple[Item, ...]
    shape_hw: tuple[int, int]


def epoch_order(
    count: int,
    seed: int,
    epoch: int,
    weights: np.ndarray | None = None,
    stream: int = STREAM_ORDER,
    shuffle_window: int = 0,
) -> np.ndarray:
    """Draw the order of the images of an epoch.

    Args:
        count: number of images.
        seed: seed of the run.
        epoch: epoch, from 0.
        weights: (count,) sampling weights; None: a permutation.
        stream: random stream.
        shuffle_window: shuffle only within windows of this many successive images, and the windows; 0: all images.

    Returns:
        (count,) image indices, drawn with replacement if there are weights.

    Raises:
        ValueError: the weights are not `count` finite non-negative numbers.
    """
    rng = generator(seed, epoch, 0, stream)
    if weights is None:
        return _shuffled_windows(np.arange(count), shuffle_window, rng) if shuffle_window else rng.permutation(count)
    chances = np.asarray(weights, np.float64)
    if chances.shape != (count,) or not np.isfinite(chances).all() or (chances < 0).any():
        raise ValueError(f"image weights must be {count} finite numbers of at least 0")
    total = chances.sum()
    drawn = rng.choice(count, count, replace=True, p=chances / total if total > 0 else None)
    return _shuffled_windows(np.sort(drawn), shuffle_window, rng) if shuffle_window else drawn


def _shuffled_windows(order: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """Shuffle windows of successive images and the images in each; where windows begin differs between epochs."""
    parts = np.split(order, range(int(rng.integers(window)), len(order), window))
    return np.concatenate([rng.permutation(parts[number]) for number in rng.permutation(len(parts))])


def window_of(position: int, count: int, global_batch: int, window: int = WINDOW) -> range:
    """Return the positions from which the mosaic partners of a position are drawn.

    Windows belong to positions in the epoch, not to workers or ranks, so that results do not depend on either. Batches
    smaller than a window share it with their neighbours; larger batches are dealt out to windows in turn, so that a
    rank, which gets every world-size-th image of the batch, gets whole windows.

    Args:
        position: position in the epoch.
        count: number of images in the epoch.
        global_batch: batch size over all ranks.
        window: size of a window; 0: the whole epoch.
    """
    if window == 0 or count <= window:
        return range(count)
    groups = global_batch // window
    if groups <= 1:
        span = max(global_batch, window // global_batch * global_batch)
        end = min(count, position // span * span + span)
        return range(max(0, end - span), end)
    start = position // global_batch * global_batch
    end = min(count, start + global_batch)
    if end - start < window:
        return range(max(0, end - window), end)
    return range(start + (position - start) % groups, end, groups)


def training_batches(
    order: np.ndarray,
    batch_size: int,
    place: tuple[int, int],
    shapes: Sequence[tuple[int, int]],
    epoch: int,
    window: int = WINDOW,
) -> Iterator[BatchPlan]:
    """Plan the training batches of one rank.

    Together the ranks create exactly the batches of a single process with `batch_size * world`: a rank gets every
    world-size-th image of a global batch. The last batch may be smaller; images are repeated only if it has fewer
    images than there are ranks.

    Args:
        order: (n,) image indices of the epoch.
        batch_size: batch size per rank.
        place: (rank, world size).
        shapes: (height, width) of each global batch.
        epoch: epoch, from 0.
        window: size of a mosaic window, see `window_of`.
    """
    rank, world = place
    total = batch_size * world
    windows: dict[range, np.ndarray] = {}
    for number, start in enumerate(range(0, len(order), total)):
        positions = list(range(start, min(start + total, len(order))))
        positions = [positions[i % len(positions)] for i in range(max(len(positions), world))]
        items = []
        for position in positions[rank::world]:
            span = window_of(position, len(order), total, window)
            if span not in windows:
                windows[span] = order[span.start : span.stop : span.step]
            items.append(Item(position, int(order[position]), windows[span]))
        yield BatchPlan(epoch, tuple(items), shapes[number])


def by_aspect(shapes_hw: np.ndarray) -> np.ndarray:
    """Sort images by height / width (stable) and return their (n,) indices."""
    return np.argsort(shapes_hw[:, 0] / shapes_hw[:, 1], kind="stable")


def rect_shape(aspects: np.ndarray, size: int, stride: int, pad: float) -> tuple[int, int]:
    """Compute the common rectangular shape of a group of images.

    Args:
        aspects: height / width of each image.
        size: long side in pixels before padding.
        stride: sides are multiples of it.
        pad: extra padding in strides.

    Returns:
        (height, width); a square if the group has portrait and landscape images.
    """
    low, high = float(aspects.min()), float(aspects.max())
    parts = (1.0, 1.0)
    if high < 1:
        parts = (high, 1.0)
    elif low > 1:
        parts = (1.0, 1 / low)
    height, width = (int(np.ceil(part * size / stride + pad)) * stride for part in parts)
    return height, width


def rect_groups(
    shapes_hw: np.ndarray, order: np.ndarray, group: int, fit: tuple[int, int, float]
) -> list[tuple[int, int]]:
    """Compute the `rect_shape` of each `group` successive images of `order`; `fit` is (size, stride, pad)."""
    size, stride, pad = fit
    aspects = shapes_hw[order, 0] / shapes_hw[order, 1]
    return [rect_shape(aspects[start : start + group], size, stride, pad) for start in range(0, len(order), group)]


def evaluation_batches(
    order: np.ndarray, batch_size: int, group: int, shapes: Sequence[tuple[int, int]]
) -> list[BatchPlan]:
    """Plan evaluation batches; no batch spans two groups of `group` images, whose `shapes` may differ."""
    found: list[BatchPlan] = []
    for number, start in enumerate(range(0, len(order), group)):
        found += _cut(order, start, min(start + group, len(order)), batch_size, shapes[number])
    return found


def same_size_batches(
    labelled_hw: np.ndarray, batch_size: int, network_hw: Callable[[int], tuple[int, int]]
) -> list[BatchPlan]:
    """Plan evaluation batches whose images have semantic maps of one size.

    Args:
        labelled_hw: (n, 2) size of each map.
        batch_size: batch size per rank.
        network_hw: network input size of an image by its index.
    """
    order = np.lexsort((labelled_hw[:, 1], labelled_hw[:, 0]))
    ends = [*(np.flatnonzero(np.diff(labelled_hw[order], axis=0).any(1)) + 1), len(order)]
    starts = [0, *ends[:-1]]
    return [
        plan
        for start, end in zip(starts, ends, strict=True)
        for plan in _cut(order, int(start), int(end), batch_size, network_hw(int(order[start])))
    ]


def _cut(order: np.ndarray, start: int, end: int, size: int, shape_hw: tuple[int, int]) -> Iterator[BatchPlan]:
    """Cut the positions from `start` to `end` into batches."""
    for first in range(start, end, size):
        positions = range(first, min(first + size, end))
        yield BatchPlan(0, tuple(Item(p, int(order[p]), _NO_PARTNERS) for p in positions), shape_hw)
