"""How well anchors fit labelled boxes, and finding anchors that fit better (behaviour.md 3.12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.core.log import LOGGER, progress

Anchors = tuple[tuple[tuple[float, float], ...], ...]  # L x A x (w, h), in pixels of the network's input

_GOOD_ENOUGH = 0.98  # best possible recall that needs no new anchors
_MIN_SIDE_PX = 2.0
_STARTS = 30  # of k-means
_MAX_KMEANS_LABELS = 10_000
_MAX_GENETIC_LABELS = 50_000
_MUTATION_SHARE, _MUTATION_SIZE = 0.9, 0.1


@dataclass(frozen=True)
class AnchorFit:
    """How a set of anchors fits labels."""

    recall: float  # best possible: share of labels that at least one anchor matches
    above_per_label: float  # mean number of anchors that match a label
    fitness: float  # mean over labels of the best agreement, zero where none matches


@dataclass(frozen=True)
class AnchorDecision:
    """The outcome of a check. `new` is None where the present anchors stay; `new_fit`, where none were fitted."""

    old: Anchors
    new: Anchors | None
    message: str
    old_fit: AnchorFit
    new_fit: AnchorFit | None = None


def _log_agreement(log_labels: np.ndarray, log_anchors: np.ndarray) -> np.ndarray:
    """Return (K, n): minus the log of the worse side's ratio, from (2, n) labels and (K, 2) anchors in logs.

    In logs the ratio's larger direction is an absolute difference: no division, and exp only where it is wanted.
    """
    off_w = np.abs(log_labels[0] - log_anchors[:, :1])
    off_h = np.abs(log_labels[1] - log_anchors[:, 1:])
    return -np.maximum(off_w, off_h, out=off_w)


def _logs(sizes_px: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(sizes_px, dtype=np.float64).reshape(-1, 2), 1e-9))


def anchor_fit(labels_wh_px: np.ndarray, anchors_px: np.ndarray, threshold: float) -> AnchorFit:
    """Return the fit of (..., 2) anchors to (n, 2) labels; a side's ratio must stay below `threshold` to match."""
    if len(labels_wh_px) == 0:
        return AnchorFit(1.0, 0.0, 0.0)
    agreement = _log_agreement(_logs(labels_wh_px).T, _logs(anchors_px))
    best = np.exp(agreement.max(axis=0))
    limit = 1 / threshold
    matched = best > limit
    return AnchorFit(
        recall=float(matched.mean()),
        above_per_label=float((agreement > math.log(limit)).sum(axis=0).mean()),
        fitness=float((best * matched).mean()),
    )


def _fitness(log_labels: np.ndarray, log_anchors: np.ndarray, log_limit: np.float32) -> float:
    best = _log_agreement(log_labels, log_anchors).max(axis=0)
    return float(np.exp(best[best > log_limit]).sum(dtype=np.float64)) / len(best)


def _sample(labels: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    return labels if len(labels) <= limit else labels[rng.choice(len(labels), limit, replace=False)]


def k_means(points: np.ndarray, count: int, rng: np.random.Generator, starts: int = _STARTS) -> np.ndarray:
    """Return (count, d) centres of (n, d) points: the best of `starts` runs of Lloyd's algorithm.

    A centre that loses all its points moves to the point that is farthest from its own. `count` must not exceed n.
    """
    if len(points) < count:
        raise ValueError(f"{len(points)} points cannot have {count} centres")
    best_error, best = math.inf, points[:count]
    for _ in range(starts):
        centres, error = _lloyd(points, points[rng.choice(len(points), count, replace=False)])
        if error < best_error:
            best_error, best = error, centres
    return best


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the converged centres and the mean distance of points to the nearest."""
    count, previous = len(centres), math.inf
    for _ in range(100):
        squared = ((points[:, None] - centres[None]) ** 2).sum(axis=2)  # (n, count)
        owner = squared.argmin(axis=1)
        distance = np.sqrt(squared[np.arange(len(points)), owner])
        error = float(distance.mean())
        if previous - error <= 1e-5:
            break
        previous = error
        size = np.bincount(owner, minlength=count)
        sums = np.stack([np.bincount(owner, points[:, axis], count) for axis in range(points.shape[1])], axis=1)
        centres = sums / np.maximum(size, 1)[:, None]
        empty = np.flatnonzero(size == 0)
        if len(empty):
            centres[empty] = points[np.argsort(-distance, kind="stable")[: len(empty)]]
    return centres, error


def fit_anchors(
    labels_wh_px: np.ndarray,
    count: int,
    image_size: int,
    threshold: float,
    rng: np.random.Generator,
    generations: int = 1000,
) -> np.ndarray:
    """Return (count, 2) float32 anchors in pixels, sorted by area, for (n, 2) labels in pixels.

    k-means on whitened sizes, then `generations` random changes of which those that fit better stay. Labels with both
    sides under 2 px are left out; with fewer labels than anchors the start is random. Above 50,000 labels the changes
    are judged on a random sample of that size, k-means on 10,000.
    """
    labels = np.asarray(labels_wh_px, dtype=np.float64).reshape(-1, 2)
    labels = labels[(labels >= _MIN_SIDE_PX).any(axis=1)]
    spread = labels.std(axis=0) if len(labels) else np.ones(2)
    spread = np.where(spread > 0, spread, 1.0)  # all labels alike in one direction
    if len(labels) < count:
        LOGGER.warning(f"anchors: {len(labels)} usable labels are too few for {count} anchors; starting at random")
        anchors = np.sort(rng.random(count * 2)).reshape(count, 2) * image_size
    else:
        if len(labels) > _MAX_GENETIC_LABELS:
            LOGGER.info(f"anchors: fitting to {_MAX_GENETIC_LABELS} of {len(labels)} labels")
        anchors = k_means(_sample(labels, _MAX_KMEANS_LABELS, rng) / spread, count, rng) * spread
    if len(labels):
        anchors = _evolve(_sample(labels, _MAX_GENETIC_LABELS, rng), anchors, threshold, rng, generations)
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")].astype(np.float32)


def _evolve(
    labels: np.ndarray, anchors: np.ndarray, threshold: float, rng: np.random.Generator, generations: int
) -> np.ndarray:
    """Return the best anchors met while multiplying them by random factors."""
    log_labels = np.ascontiguousarray(_logs(labels).T, dtype=np.float32)
    log_limit = np.float32(-math.log(threshold))
    anchors = anchors.clip(min=_MIN_SIDE_PX)
    best = _fitness(log_labels, np.log(anchors).astype(np.float32), log_limit)
    bar = progress(range(generations), text="fitting anchors", unit="generation")
    for _ in bar:
        factors = np.ones(anchors.shape)
        while (factors == 1).all():  # a change must change something
            mask = rng.random(anchors.shape) < _MUTATION_SHARE
            change = mask * rng.random() * rng.standard_normal(anchors.shape) * _MUTATION_SIZE
            factors = (change + 1).clip(0.3, 3.0)
        candidate = (anchors * factors).clip(min=_MIN_SIDE_PX)
        fitness = _fitness(log_labels, np.log(candidate).astype(np.float32), log_limit)
        if fitness > best:
            best, anchors = fitness, candidate
            bar.set_description(f"fitting anchors, fitness {best:.4f}", refresh=False)
    return anchors


def label_sizes_px(
    labels: Sequence[np.ndarray], shapes_hw: np.ndarray, image_size: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Return (N, 2) widths and heights of all labels when each image's longer side is `image_size`.

    `labels` hold (n, 5) class, cx, cy, w, h normalised per image. With `rng` each image is scaled by U(0.9, 1.1).
    """
    sizes_wh = np.asarray(shapes_hw, dtype=np.float64).reshape(-1, 2)[:, ::-1]
    sizes_wh = image_size * sizes_wh / sizes_wh.max(axis=1, keepdims=True) if len(sizes_wh) else sizes_wh
    if rng is not None:
        sizes_wh = sizes_wh * rng.uniform(0.9, 1.1, (len(sizes_wh), 1))
    scaled = [rows[:, 3:5] * size for rows, size in zip(labels, sizes_wh, strict=True) if len(rows)]
    return np.concatenate(scaled) if scaled else np.zeros((0, 2))


def in_stride_order(anchors_px: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """Return (L, A, 2) anchors with the levels reversed if their mean area falls where the strides rise."""
    areas = anchors_px.prod(axis=2).mean(axis=1)
    if (areas[-1] - areas[0]) * (strides[-1] - strides[0]) < 0:
        return anchors_px[::-1]
    return anchors_px


def check_anchors(
    labels: Sequence[np.ndarray],
    shapes_hw: np.ndarray,
    anchors: Anchors,
    image_size: int,
    threshold: float,
    rng: np.random.Generator,
    *,
    strides: Sequence[int] = (),
) -> AnchorDecision:
    """Return whether `anchors` should be replaced, and by which, for the labels of a data set.

    Present anchors stay when their best possible recall exceeds 0.98 or when fitted ones do not reach a higher one.
    New anchors have half precision, as checkpoints store them. `strides` of the levels set the order of new ones; the
    default is finest first.
    """
    sizes = label_sizes_px(labels, shapes_hw, image_size, rng)
    present = np.asarray(anchors, dtype=np.float64)  # (L, A, 2)
    old = anchor_fit(sizes, present, threshold)
    if len(sizes) == 0:
        return AnchorDecision(anchors, None, "anchors: no labels to compare with, keeping the present ones", old)
    small = int((sizes < 3.0).any(axis=1).sum())
    if small:
        LOGGER.warning(f"anchors: {small} of {len(sizes)} labels have a side under 3 px at image size {image_size}")
    text = f"anchors: {old.above_per_label:.2f} match a label, best possible recall {old.recall:.4f}"
    if old.recall > _GOOD_ENOUGH:
        return AnchorDecision(anchors, None, f"{text}: they fit the data", old)
    fitted = fit_anchors(sizes, present.shape[0] * present.shape[1], image_size, threshold, rng)
    fitted = fitted.reshape(present.shape).astype(np.float16).astype(np.float64)
    fitted = in_stride_order(fitted, strides or range(len(fitted)))
    new = anchor_fit(sizes, fitted, threshold)
    if new.recall <= old.recall:
        kept = f"{text}; fitted ones reach {new.recall:.4f}, keeping the present ones"
        return AnchorDecision(anchors, None, kept, old, new)
    chosen = tuple(tuple((float(w), float(h)) for w, h in level) for level in fitted)
    return AnchorDecision(anchors, chosen, f"{text}; replaced by fitted ones with recall {new.recall:.4f}", old, new)
