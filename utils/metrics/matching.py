"""Matching of detections with labels in one image."""

from __future__ import annotations

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def match_detections(iou: np.ndarray, same_class: np.ndarray, thresholds: np.ndarray = IOU_THRESHOLDS) -> np.ndarray:
    """Decide which detections are true positives at each IoU threshold.

    Each detection is assigned to the label of its class with the highest IoU. If the IoU reaches the threshold and
    several detections are assigned to one label, the one with the highest score, not the highest IoU, is correct.

    Args:
        iou: (N, D) IoU of N labels with D detections, which are in descending order of score.
        same_class: (N, D) bool.
        thresholds: (T,) IoU thresholds.

    Returns:
        (D, T) bool.
    """
    labels, detections = iou.shape
    correct = np.zeros((detections, len(thresholds)), dtype=bool)
    if not labels or not detections:
        return correct
    candidates = np.where(same_class, iou, -1.0)
    best_label = candidates.argmax(axis=0)
    best_iou = candidates[best_label, np.arange(detections)]
    for column, threshold in enumerate(thresholds):
        above = np.flatnonzero(best_iou >= threshold)
        _, first = np.unique(best_label[above], return_index=True)  # the highest score per label
        correct[above[first], column] = True
    return correct


def match_one_to_one(iou: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Match labels and detections regardless of class, for the confusion matrix.

    Each detection is assigned to the label with the highest IoU, then each label keeps the detection with the highest
    IoU. The other detections of a label stay unmatched.

    Args:
        iou: (N, D) IoU of N labels with D detections.
        threshold: IoU that a pair must exceed.

    Returns:
        Pairs (label, detection) in descending order of IoU.
    """
    if not iou.size:
        return []
    best_label = iou.argmax(axis=0)
    best_iou = iou[best_label, np.arange(iou.shape[1])]
    matches: dict[int, int] = {}
    for detection in np.argsort(-best_iou, kind="stable"):
        if best_iou[detection] > threshold:
            matches.setdefault(int(best_label[detection]), int(detection))
    return list(matches.items())
