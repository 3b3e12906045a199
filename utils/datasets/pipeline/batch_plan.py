"""Which images make which batch: a function of seed and epoch, cut up among ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.core.seed import generator

STREAM_ORDER, STREAM_SAMPLE, STREAM_QUAD = 1, 2, 3  # of utils.core.seed.generator
STREAM_SEMANTIC_ORDER, STREAM_SEMANTIC_SAMPLE = 4, 5  # of images with a class per pixel, which may be beside others
WINDOW = 64  # images from which the partners of a mosaic are drawn


@dataclass(frozen=True)
class Item:
    """One image to be made: its place in the epoch, its number in the split, and the numbers of its partners."""

    position: int
    index: int
    window: np.ndarray  # (k,) image numbers


@dataclass(frozen=True)
class BatchPlan:
    """What one batch is made of."""

    epoch: int
    items: tuple[Item, ...]
    shape_hw: tuple[int, int]


def epoch_order(
    count: int, seed: int, epoch: int, weights: np.ndarray | None = None, stream: int = STREAM_ORDER
) -> np.ndarray:
    """Return the (count,) image numbers of an epoch: a permutation, or with weights a draw with replacement."""
    rng = generator(seed, epoch, 0, stream)
    if weights is None:
        return rng.permutation(count)
    chances = np.asarray(weights, np.float64)
    if chances.shape != (count,) or not np.isfinite(chances).all() or (chances < 0).any():
        raise ValueError(f"image weights must be {count} finite numbers of at least 0")
    total = chances.sum()
    return rng.choice(count, count, replace=True, p=chances / total if total > 0 else None)


def window_of(position: int, count: int, global_batch: int, window: int = WINDOW) -> range:
    """Return the positions from which the partners of `position` are drawn.

    Windows belong to places in the epoch, not to workers or ranks, so that results do not depend on either. A batch
    smaller than a window shares it with the next ones; a larger one is dealt out to windows like cards, so that a rank,
    which gets every world-size-th image of the batch, gets whole windows. 0 stands for the whole epoch.
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
    sharing: tuple[int, int],
    shapes: Sequence[tuple[int, int]],
    epoch: int,
    window: int = WINDOW,
) -> Iterator[BatchPlan]:
    """Yield the batches of one rank; `sharing` is (rank, world size), `shapes` gives the size of each global batch.

    A rank gets every world-size-th image of a global batch.

    Together the ranks make exactly the batches that one process with `batch_size * world` makes. The last one may be
    smaller; only if it has fewer images than there are ranks are some repeated.
    """
    rank, world = sharing
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
    """Return the image numbers sorted by height / width; equal ones keep their order."""
    return np.argsort(shapes_hw[:, 0] / shapes_hw[:, 1], kind="stable")


def rect_shape(aspects: np.ndarray, size: int, stride: int, pad: float) -> tuple[int, int]:
    """Return the (height, width) that images with these height / width ratios share (behaviour.md 4.5)."""
    low, high = float(aspects.min()), float(aspects.max())
    parts = (1.0, 1.0)
    if high < 1:
        parts = (high, 1.0)
    elif low > 1:
        parts = (1.0, 1 / low)
    height, width = (int(np.ceil(part * size / stride + pad)) * stride for part in parts)
    return height, width


def rect_groups(shapes_hw: np.ndarray, order: np.ndarray, group: int, fit: tuple[int, int, float]) -> list:
    """Return the shape of each `group` successive images of `order`; `fit` is (size, stride, pad)."""
    size, stride, pad = fit
    aspects = shapes_hw[order, 0] / shapes_hw[order, 1]
    return [rect_shape(aspects[start : start + group], size, stride, pad) for start in range(0, len(order), group)]


def evaluation_batches(
    order: np.ndarray, batch_size: int, group: int, shapes: Sequence[tuple[int, int]]
) -> list[BatchPlan]:
    """Return all batches in order; no batch reaches across two groups, which may have different shapes."""
    plans = []
    nobody = np.zeros(0, np.int64)
    for number, start in enumerate(range(0, len(order), group)):
        end = min(start + group, len(order))
        for first in range(start, end, batch_size):
            items = tuple(Item(p, int(order[p]), nobody) for p in range(first, min(first + batch_size, end)))
            plans.append(BatchPlan(0, items, shapes[number]))
    return plans
