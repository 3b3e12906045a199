"""Which classes detections are taken for (behaviour.md 6.3)."""

from __future__ import annotations

import numpy as np

from utils.metrics.matching import match_one_to_one
from utils.ops.iou import pairwise_iou_numpy

CONFIDENCE, IOU = 0.25, 0.45


class ConfusionMatrix:
    """Counts [predicted class, true class]; the last row and column stand for the background.

    Detections above the confidence and labels are paired by overlap alone. A pair counts under both classes, a label
    without a detection as taken for background, a detection without a label as made of background.

    Unlike YOLOv5's, the matrix counts *every* detection without a label, also in images without labels and in images
    where nothing matched: leaving those out hides most false alarms.
    """

    def __init__(self, num_classes: int, confidence: float = CONFIDENCE, iou: float = IOU) -> None:
        self.num_classes, self.confidence, self.iou = num_classes, confidence, iou
        self.matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)

    def add(
        self,
        detections_xyxy: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        labels_xyxy: np.ndarray,
        label_classes: np.ndarray,
    ) -> None:
        """Count one image with D detections and L labels, boxes in the same pixels."""
        sure = scores > self.confidence
        detections_xyxy, classes = detections_xyxy[sure], classes[sure].astype(np.int64)
        truth = label_classes.astype(np.int64)
        pairs = match_one_to_one(pairwise_iou_numpy(labels_xyxy, detections_xyxy), self.iou)
        background = self.num_classes
        predicted_as = np.full(len(truth), background)
        made_of = np.full(len(classes), background)
        for label, detection in pairs:
            predicted_as[label] = classes[detection]
            made_of[detection] = truth[label]
        np.add.at(self.matrix, (predicted_as, truth), 1)
        unmatched = made_of == background
        np.add.at(self.matrix, (classes[unmatched], made_of[unmatched]), 1)
