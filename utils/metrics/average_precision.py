"""Precision, recall, F1 and average precision of scored detections (behaviour.md 6.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

CONFIDENCES = np.linspace(0, 1, 1000)  # where curves are sampled
_RECALLS = np.linspace(0, 1, 101)
_EPS = 1e-16
_SMOOTHING = 0.1


@dataclass(frozen=True)
class PrecisionRecall:
    """Scores of the K classes that have labels, T overlap thresholds, curves over 1000 confidences or recalls."""

    classes: np.ndarray  # (K,) int64
    labels: np.ndarray  # (K,) number of labels
    true_positives: np.ndarray  # (K,) at the operating point
    false_positives: np.ndarray  # (K,)
    precision: np.ndarray  # (K,) at the operating point
    recall: np.ndarray  # (K,)
    f1: np.ndarray  # (K,)
    ap: np.ndarray  # (K, T)
    confidence: float  # the operating point: where the smoothed mean F1 is highest
    precision_curve: np.ndarray  # (K, 1000) by confidence
    recall_curve: np.ndarray  # (K, 1000)
    f1_curve: np.ndarray  # (K, 1000)
    pr_curve: np.ndarray  # (K, 1000) precision by recall at the first threshold, both from 0 to 1


def average_precision(recall: np.ndarray, precision: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the area under a precision-recall curve, with the recalls and the enveloped precisions it is made of.

    The curve is closed at recall 1 with precision 0, made falling from the right, sampled at 101 recalls by linear
    interpolation and integrated by trapezoids.
    """
    recalls = np.concatenate(([0.0], recall, [1.0]))
    envelope = np.maximum.accumulate(np.concatenate(([1.0], precision, [0.0]))[::-1])[::-1]
    sampled = np.interp(_RECALLS, recalls, envelope)
    area = float(((sampled[1:] + sampled[:-1]) / 2 * np.diff(_RECALLS)).sum())
    return area, recalls, envelope


def smooth(values: np.ndarray, fraction: float = _SMOOTHING) -> np.ndarray:
    """Return a box filter of `values` over about `fraction` of their number, edges repeated."""
    width = round(len(values) * fraction * 2) // 2 + 1  # odd
    padded = np.pad(values, width // 2, mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def evaluate_detections(
    correct: np.ndarray, scores: np.ndarray, classes: np.ndarray, label_classes: np.ndarray
) -> PrecisionRecall:
    """Return the scores of D detections, `correct` (D, T) at each overlap threshold, against (L,) label classes.

    Detections are ranked by falling score, equal scores in the order given. Classes with labels and no detections
    have average precision 0; classes without labels do not appear.
    """
    order = np.argsort(-scores, kind="stable")
    correct, scores, classes = correct[order], scores[order], classes[order]
    present, counts = np.unique(label_classes.astype(np.int64), return_counts=True)
    ap = np.zeros((len(present), correct.shape[1]))
    precision, recall, pr = (np.zeros((len(present), len(CONFIDENCES))) for _ in range(3))
    for row, (index, labels) in enumerate(zip(present, counts, strict=True)):
        mine = classes == index
        if not mine.any():
            continue
        hits = correct[mine].cumsum(axis=0)  # (d, T)
        ranks = np.arange(1, len(hits) + 1)[:, None]
        recalls, precisions = hits / (labels + _EPS), hits / ranks
        # np.interp wants rising positions, and confidences fall; beyond the highest one nothing is recalled.
        falling = -scores[mine]
        recall[row] = np.interp(-CONFIDENCES, falling, recalls[:, 0], left=0)
        precision[row] = np.interp(-CONFIDENCES, falling, precisions[:, 0], left=1)
        for column in range(ap.shape[1]):
            ap[row, column], at, envelope = average_precision(recalls[:, column], precisions[:, column])
            if column == 0:
                pr[row] = np.interp(CONFIDENCES, at, envelope)
    f1 = 2 * precision * recall / (precision + recall + _EPS)
    best = int(smooth(f1.mean(axis=0)).argmax()) if len(present) else 0
    hits_there = np.round(recall[:, best] * counts)
    return PrecisionRecall(
        classes=present,
        labels=counts,
        true_positives=hits_there,
        false_positives=np.round(hits_there / (precision[:, best] + _EPS) - hits_there),
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


def weighted_sum(numbers: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the sum of `numbers` times `weights`, by name: what ranks epochs (behaviour.md 3.10).

    What was not measured counts as 0 (behaviour.md 12.8).
    """
    return float(sum(weight * numbers.get(name, 0.0) for name, weight in weights.items()))
