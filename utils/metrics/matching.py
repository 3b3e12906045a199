"""Which detections of one image count as correct, at ten overlap thresholds (behaviour.md 6.1)."""

from __future__ import annotations

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def match_detections(
    overlap: np.ndarray, same_class: np.ndarray, thresholds: np.ndarray = IOU_THRESHOLDS
) -> np.ndarray:
    """Return (D, T) bool: detection d is correct at threshold t.

    `overlap` and `same_class` are (L, D), labels by detections; detections come by falling score. At each threshold a
    detection takes the label it overlaps most, and a label that several take goes to the most confident of them, not
    to the one that overlaps it most.
    """
    labels, detections = overlap.shape
    correct = np.zeros((detections, len(thresholds)), dtype=bool)
    if not labels or not detections:
        return correct
    allowed = np.where(same_class, overlap, -1.0)
    # What a detection overlaps most does not depend on the threshold; whether it still takes part does.
    best_label = allowed.argmax(axis=0)
    best = allowed[best_label, np.arange(detections)]
    for column, threshold in enumerate(thresholds):
        taking = np.flatnonzero(best >= threshold)
        _, first = np.unique(best_label[taking], return_index=True)
        correct[taking[first], column] = True
    return correct


def match_one_to_one(overlap: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Return (label, detection) pairs above `threshold` where each is used once, the highest overlaps first.

    A detection takes the label it overlaps most, then a label keeps the detection that overlaps it most; what loses
    there is not offered another (behaviour.md 6.3). `overlap` is (L, D).
    """
    if not overlap.size:
        return []
    label_of = overlap.argmax(axis=0)
    value = overlap[label_of, np.arange(overlap.shape[1])]
    owners: dict[int, int] = {}
    for detection in np.argsort(-value, kind="stable"):
        if value[detection] > threshold:
            owners.setdefault(int(label_of[detection]), int(detection))
    return list(owners.items())
