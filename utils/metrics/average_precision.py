"""Precision, recall, F1 and average precision of detections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CONFIDENCES = np.linspace(0, 1, 1000)  # confidence thresholds at which curves are sampled
_RECALL_POINTS = np.linspace(0, 1, 101)  # of the interpolated average precision, as in COCO
_EPS = 1e-16
_SMOOTHING = 0.1  # width of the box filter that picks the operating point, relative to the length of the curve


@dataclass(frozen=True)
class PrecisionRecall:
    """Metrics of the K classes that have labels, at T IoU thresholds.

    Precision, recall and F1 are measured at the first threshold. The operating point is the confidence at which the
    mean F1 over classes, smoothed by a box filter, is highest.
    """

    classes: np.ndarray  # (K,) int64
    labels: np.ndarray  # (K,) number of labels
    true_positives: np.ndarray  # (K,) at the operating point
    false_positives: np.ndarray  # (K,) at the operating point
    precision: np.ndarray  # (K,) at the operating point
    recall: np.ndarray  # (K,) at the operating point
    f1: np.ndarray  # (K,) at the operating point
    ap: np.ndarray  # (K, T) average precision
    confidence: float  # the operating point
    precision_curve: np.ndarray  # (K, 1000) by confidence
    recall_curve: np.ndarray  # (K, 1000) by confidence
    f1_curve: np.ndarray  # (K, 1000) by confidence
    pr_curve: np.ndarray  # (K, 1000) precision by recall, from recall 0 to 1


def average_precision(recall: np.ndarray, precision: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Compute the 101-point interpolated average precision of one precision-recall curve.

    The curve is extended to precision 1 at recall 0 and precision 0 at recall 1, replaced by its envelope (the highest
    precision at this or any higher recall), sampled at 101 recalls by linear interpolation and integrated by the
    trapezoidal rule.

    Args:
        recall: (n,) recalls in ascending order.
        precision: (n,) precisions.

    Returns:
        The average precision, and the recalls and enveloped precisions (n + 2,) of the extended curve.
    """
    recalls = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([1.0], precision, [0.0]))[::-1])[::-1]
    sampled = np.interp(_RECALL_POINTS, recalls, envelope)
    area = float(((sampled[1:] + sampled[:-1]) / 2 * np.diff(_RECALL_POINTS)).sum())
    return area, recalls, envelope


def smooth(values: np.ndarray, fraction: float = _SMOOTHING) -> np.ndarray:
    """Apply a box filter about `fraction` of the length of the (n,) values wide; edge values are repeated."""
    width = round(len(values) * fraction * 2) // 2 + 1
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def evaluate_detections(
    correct: np.ndarray, scores: np.ndarray, classes: np.ndarray, label_classes: np.ndarray
) -> PrecisionRecall:
    """Compute the metrics of detections that have been matched with labels.

    Detections are ranked by descending score, equal scores in the given order. A class with labels but no detections
    has an average precision of 0; classes without labels are left out.

    Args:
        correct: (D, T) bool, whether a detection is a true positive at each IoU threshold (`match_detections`).
        scores: (D,) confidences.
        classes: (D,) predicted classes.
        label_classes: (N,) classes of all labels.

    Returns:
        The metrics of each class with labels.
    """
    order = np.argsort(-scores, kind="stable")
    correct, scores, classes = correct[order], scores[order], classes[order]
    present, counts = np.unique(label_classes.astype(np.int64), return_counts=True)
    ap = np.zeros((len(present), correct.shape[1]))
    precision, recall, pr = (np.zeros((len(present), len(CONFIDENCES))) for _ in range(3))
    for row, (index, labels) in enumerate(zip(present, counts, strict=True)):
        of_class = classes == index
        if not of_class.any():
            continue
        true_positives = correct[of_class].cumsum(axis=0)  # (d, T)
        ranks = np.arange(1, len(true_positives) + 1)[:, None]
        recalls, precisions = true_positives / (labels + _EPS), true_positives / ranks
        # np.interp needs ascending positions, so scores are negated. Above the highest score recall is 0, precision 1.
        negated = -scores[of_class]
        recall[row] = np.interp(-CONFIDENCES, negated, recalls[:, 0], left=0)
        precision[row] = np.interp(-CONFIDENCES, negated, precisions[:, 0], left=1)
        for column in range(ap.shape[1]):
            ap[row, column], at, envelope = average_precision(recalls[:, column], precisions[:, column])
            if column == 0:
                pr[row] = np.interp(CONFIDENCES, at, envelope)
    f1 = 2 * precision * recall / (precision + recall + _EPS)
    best = int(smooth(f1.mean(axis=0)).argmax()) if len(present) else 0
    best_true_positives = np.round(recall[:, best] * counts)
    return PrecisionRecall(
        classes=present,
        labels=counts,
        true_positives=best_true_positives,
        false_positives=np.round(best_true_positives / (precision[:, best] + _EPS) - best_true_positives),
        precision=precision[:, best],
        recall=recall[:, best],
        f1=f1[:, best],
        ap=ap,
        confidence=float(CONFIDENCES[best]),
        precision_curve=precision,
        recall_curve=recall,
        f1_curve=f1,
        pr_curve=pr,
    )


def weighted_sum(metrics: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Compute the fitness of an epoch: the sum of the metrics times their weights, by name; missing ones count as 0."""
    return float(sum(weight * metrics.get(name, 0.0) for name, weight in weights.items()))
