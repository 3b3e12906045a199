"""Fit of anchors to labelled boxes, and AutoAnchor: anchors by k-means and random mutation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.core.log import LOGGER, progress

Anchors = tuple[tuple[tuple[float, float], ...], ...]  # L x A x (w, h), in pixels of the network input

_SUFFICIENT_RECALL = 0.98  # best possible recall that needs no new anchors
_MIN_SIDE_PX = 2.0  # labels with both sides below it are not used for fitting, and anchors are at least so large
_SMALL_SIDE_PX = 3.0  # labels with a side below it are reported
_KMEANS_RUNS = 30
_KMEANS_ITERATIONS = 100
_KMEANS_TOLERANCE = 1e-5  # decrease of the mean distance that ends a run
_MAX_KMEANS_LABELS = 10_000
_MAX_MUTATION_LABELS = 50_000
_MUTATION_PROBABILITY, _MUTATION_SIGMA = 0.9, 0.1  # of each side
_MUTATION_RANGE = (0.3, 3.0)  # of the factor of a side
_SCALE_JITTER = (0.9, 1.1)  # of image sizes when anchors are checked


@dataclass(frozen=True)
class AnchorFit:
    """Quality of a set of anchors for a set of labels.

    The agreement of a label and an anchor is the smallest of w / w_a, w_a / w, h / h_a and h_a / h. They match if it
    exceeds 1 / threshold.
    """

    recall: float  # best possible recall: fraction of labels that match an anchor
    matches_per_label: float  # mean number of matching anchors
    fitness: float  # mean over labels of the best agreement, 0 for labels without a match


@dataclass(frozen=True)
class AnchorDecision:
    """Result of an anchor check."""

    old: Anchors
    new: Anchors | None  # None: keep the old ones
    message: str
    old_fit: AnchorFit
    new_fit: AnchorFit | None = None  # None: no anchors were fitted


def _log_agreement(log_labels: np.ndarray, log_anchors: np.ndarray) -> np.ndarray:
    """Compute the logarithm of the agreement, -max(|log w - log w_a|, |log h - log h_a|).

    Args:
        log_labels: (2, n) logarithms of widths and heights.
        log_anchors: (K, 2) logarithms.

    Returns:
        (K, n).
    """
    difference_w = np.abs(log_labels[0] - log_anchors[:, :1])
    difference_h = np.abs(log_labels[1] - log_anchors[:, 1:])
    return -np.maximum(difference_w, difference_h, out=difference_w)


def _log_sizes(sizes_px: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(sizes_px, dtype=np.float64).reshape(-1, 2), 1e-9))


def anchor_fit(labels_wh_px: np.ndarray, anchors_px: np.ndarray, threshold: float) -> AnchorFit:
    """Measure how well anchors fit labels.

    Args:
        labels_wh_px: (n, 2) widths and heights.
        anchors_px: (..., 2) widths and heights.
        threshold: Limit of the ratio of sides (hyperparameter `anchor_t`).

    Returns:
        The fit, with recall 1 for no labels.
    """
    if len(labels_wh_px) == 0:
        return AnchorFit(1.0, 0.0, 0.0)
    agreement = _log_agreement(_log_sizes(labels_wh_px).T, _log_sizes(anchors_px))
    best = np.exp(agreement.max(axis=0))
    limit = 1 / threshold
    matched = best > limit
    return AnchorFit(
        recall=float(matched.mean()),
        matches_per_label=float((agreement > math.log(limit)).sum(axis=0).mean()),
        fitness=float((best * matched).mean()),
    )


def _fitness(log_labels: np.ndarray, log_anchors: np.ndarray, log_limit: np.float32) -> float:
    best = _log_agreement(log_labels, log_anchors).max(axis=0)
    return float(np.exp(best[best > log_limit]).sum(dtype=np.float64)) / len(best)


def _random_subset(labels: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    return labels if len(labels) <= limit else labels[rng.choice(len(labels), limit, replace=False)]


def k_means(points: np.ndarray, count: int, rng: np.random.Generator, runs: int = _KMEANS_RUNS) -> np.ndarray:
    """Cluster points by Lloyd's algorithm, with the best of several random initialisations.

    A centre without points moves to the point farthest from its own centre.

    Args:
        points: (n, d).
        count: Number of centres, at most n.
        rng: Random generator.
        runs: Number of initialisations.

    Returns:
        (count, d) centres.

    Raises:
        ValueError: If there are fewer points than centres.
    """
    if len(points) < count:
        raise ValueError(f"k-means needs at least as many points as centres, got {len(points)} points, {count} centres")
    best_error, best = math.inf, points[:count]
    for _ in range(runs):
        centres, error = _lloyd(points, points[rng.choice(len(points), count, replace=False)])
        if error < best_error:
            best_error, best = error, centres
    return best


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    """Iterate from initial centres; return the final ones and the mean distance of the points to the nearest one."""
    count, previous = len(centres), math.inf
    for _ in range(_KMEANS_ITERATIONS):
        squared = ((points[:, None] - centres[None]) ** 2).sum(axis=2)  # (n, count)
        nearest = squared.argmin(axis=1)
        distance = np.sqrt(squared[np.arange(len(points)), nearest])
        error = float(distance.mean())
        if previous - error <= _KMEANS_TOLERANCE:
            break
        previous = error
        size = np.bincount(nearest, minlength=count)
        sums = np.stack([np.bincount(nearest, points[:, axis], count) for axis in range(points.shape[1])], axis=1)
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
    """Fit anchors to labels by k-means on whitened sizes, then by random mutations that improve the fitness.

    Labels with both sides below 2 pixels are ignored. If fewer labels than anchors remain, the mutation starts from
    random anchors. K-means uses at most 10,000 and the mutation at most 50,000 randomly chosen labels.

    Args:
        labels_wh_px: (n, 2) widths and heights at the size of the network input.
        count: Number of anchors.
        image_size: Size of the network input, for random anchors.
        threshold: Limit of the ratio of sides (hyperparameter `anchor_t`).
        rng: Random generator.
        generations: Number of mutations.

    Returns:
        (count, 2) float32, in ascending order of area.
    """
    labels = np.asarray(labels_wh_px, dtype=np.float64).reshape(-1, 2)
    labels = labels[(labels >= _MIN_SIDE_PX).any(axis=1)]
    spread = labels.std(axis=0) if len(labels) else np.ones(2)
    spread = np.where(spread > 0, spread, 1.0)
    if len(labels) < count:
        LOGGER.warning(f"anchors: {len(labels)} usable labels for {count} anchors; starting from random anchors")
        anchors = _random_anchors(count, image_size, rng)
    else:
        if len(labels) > _MAX_MUTATION_LABELS:
            LOGGER.info(f"anchors: fitting to a random subset of {_MAX_MUTATION_LABELS} of {len(labels)} labels")
        anchors = k_means(_random_subset(labels, _MAX_KMEANS_LABELS, rng) / spread, count, rng) * spread
    if len(labels):
        anchors = _mutate(_random_subset(labels, _MAX_MUTATION_LABELS, rng), anchors, threshold, rng, generations)
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")].astype(np.float32)


def _random_anchors(count: int, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (count, 2) anchors from the whole range of sizes, wider and higher from one to the next."""
    sides_px = rng.random(2 * count) * image_size
    sides_px.sort()
    return np.column_stack((sides_px[0::2], sides_px[1::2]))


def _mutate(
    labels: np.ndarray, anchors: np.ndarray, threshold: float, rng: np.random.Generator, generations: int
) -> np.ndarray:
    """Multiply the sides of the best anchors by random factors, keeping each improvement."""
    log_labels = np.ascontiguousarray(_log_sizes(labels).T, dtype=np.float32)
    log_limit = np.float32(-math.log(threshold))
    anchors = anchors.clip(min=_MIN_SIDE_PX)
    best = _fitness(log_labels, np.log(anchors).astype(np.float32), log_limit)
    bar = progress(range(generations), text="fitting anchors", unit="generation")
    for _ in bar:
        candidate = (anchors * _mutation_factors(anchors.shape, rng)).clip(min=_MIN_SIDE_PX)
        fitness = _fitness(log_labels, np.log(candidate).astype(np.float32), log_limit)
        if fitness > best:
            best, anchors = fitness, candidate
            bar.set_description(f"fitting anchors, fitness {best:.4f}", refresh=False)
    return anchors


def _mutation_factors(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw factors, 1 for sides that do not change, until at least one side changes."""
    while True:
        changes = rng.random(shape) < _MUTATION_PROBABILITY
        deviations = rng.random() * rng.standard_normal(shape) * _MUTATION_SIGMA
        factors = (1 + np.where(changes, deviations, 0.0)).clip(*_MUTATION_RANGE)
        if (factors != 1).any():
            return factors


def label_sizes_px(
    labels: Sequence[np.ndarray], shapes_hw: np.ndarray, image_size: int, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Compute the sizes of all labels when the longer side of each image is resized to `image_size`.

    Args:
        labels: Per image (n, 5) class, cx, cy, w, h, normalised by the image size.
        shapes_hw: (images, 2) heights and widths of the images.
        image_size: Longer side in pixels.
        rng: Scale each image by a random factor from U(0.9, 1.1) in addition.

    Returns:
        (N, 2) widths and heights in pixels.
    """
    sizes_wh = np.asarray(shapes_hw, dtype=np.float64).reshape(-1, 2)[:, ::-1]
    sizes_wh = image_size * sizes_wh / sizes_wh.max(axis=1, keepdims=True) if len(sizes_wh) else sizes_wh
    if rng is not None:
        sizes_wh = sizes_wh * rng.uniform(*_SCALE_JITTER, (len(sizes_wh), 1))
    scaled = [rows[:, 3:5] * size for rows, size in zip(labels, sizes_wh, strict=True) if len(rows)]
    return np.concatenate(scaled) if scaled else np.zeros((0, 2))


def in_stride_order(anchors_px: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """Order the levels of (L, A, 2) anchors like the strides: large anchors at large strides."""
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
    """Decide whether anchors fit the labels of a data set, and fit new ones otherwise.

    Anchors are kept if their best possible recall exceeds 0.98 or if that of fitted anchors is not higher. New anchors
    are rounded to half precision, in which checkpoints store them.

    Args:
        labels: Per image (n, 5) class, cx, cy, w, h, normalised by the image size.
        shapes_hw: (images, 2) heights and widths of the images.
        anchors: Current anchors in pixels.
        image_size: Size of the network input.
        threshold: Limit of the ratio of sides (hyperparameter `anchor_t`).
        rng: Random generator.
        strides: Strides of the levels, which determine the order of new anchors (default: ascending).
    """
    sizes = label_sizes_px(labels, shapes_hw, image_size, rng)
    current = np.asarray(anchors, dtype=np.float64)  # (L, A, 2)
    old = anchor_fit(sizes, current, threshold)
    if len(sizes) == 0:
        return AnchorDecision(anchors, None, "anchors: no labels to fit; keeping the current anchors", old)
    small = int((sizes < _SMALL_SIDE_PX).any(axis=1).sum())
    if small:
        LOGGER.warning(
            f"anchors: {small} of {len(sizes)} labels have a side below {_SMALL_SIDE_PX:.0f} px at image size "
            f"{image_size}"
        )
    summary = f"anchors: best possible recall {old.recall:.4f}, {old.matches_per_label:.2f} matching anchors per label"
    if old.recall > _SUFFICIENT_RECALL:
        return AnchorDecision(anchors, None, f"{summary}; they fit the data", old)
    fitted = fit_anchors(sizes, current.shape[0] * current.shape[1], image_size, threshold, rng)
    fitted = fitted.reshape(current.shape).astype(np.float16).astype(np.float64)
    fitted = in_stride_order(fitted, strides or range(len(fitted)))
    new = anchor_fit(sizes, fitted, threshold)
    if new.recall <= old.recall:
        message = f"{summary}; keeping them, as fitted anchors reach a recall of {new.recall:.4f}"
        return AnchorDecision(anchors, None, message, old, new)
    chosen = tuple(tuple((float(w), float(h)) for w, h in level) for level in fitted)
    return AnchorDecision(anchors, chosen, f"{summary}; replaced by fitted anchors, recall {new.recall:.4f}", old, new)
