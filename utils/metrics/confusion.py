"""Confusion matrix of detections."""

from __future__ import annotations

import numpy as np

from utils.metrics.matching import match_one_to_one
from utils.ops.iou import pairwise_iou_numpy

CONFIDENCE, IOU = 0.25, 0.45
MAX_CLASSES = 2000  # with more classes there is no confusion matrix: it could not be drawn, and 10,000 need 800 MB


class ConfusionMatrix:
    """Confusion matrix [predicted class, true class] with the background as the last row and column.

    Detections above the confidence threshold are matched with labels by IoU, regardless of class. Matched pairs count
    at [predicted, true], missed labels at [background, true], unmatched detections at [predicted, background].

    Unlike in YOLOv5, *every* unmatched detection counts, also in images without labels or without any match. Leaving
    those out hides most false positives.

    Args:
        num_classes: Number of classes C.
        confidence: Confidence that a detection must exceed.
        iou: IoU that a pair must exceed.

    Attributes:
        matrix: (C + 1, C + 1) int64 counts.
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
        """Count one image.

        Args:
            detections_xyxy: (D, 4) predicted boxes.
            scores: (D,) confidences.
            classes: (D,) predicted classes.
            labels_xyxy: (N, 4) labelled boxes, in the same pixels.
            label_classes: (N,) labelled classes.
        """
        confident = scores > self.confidence
        detections_xyxy, predicted = detections_xyxy[confident], classes[confident].astype(np.int64)
        true = label_classes.astype(np.int64)
        background = self.num_classes
        prediction_of_label = np.full(len(true), background)
        label_of_detection = np.full(len(predicted), background)
        for label, detection in match_one_to_one(pairwise_iou_numpy(labels_xyxy, detections_xyxy), self.iou):
            prediction_of_label[label] = predicted[detection]
            label_of_detection[detection] = true[label]
        np.add.at(self.matrix, (prediction_of_label, true), 1)
        unmatched = label_of_detection == background
        np.add.at(self.matrix, (predicted[unmatched], label_of_detection[unmatched]), 1)
