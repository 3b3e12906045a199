"""Evaluator of the `detect` head: precision, recall and AP per class, confusion matrix, COCO's twelve metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.core.contracts import Batch, EvalSettings, HeadSpec, Results, Scores
from utils.core.distributed import gather, is_main
from utils.metrics import EVALUATORS
from utils.metrics.average_precision import CONFIDENCES, PrecisionRecall, evaluate_detections
from utils.metrics.coco import (
    CocoGroundTruth,
    coco_metrics,
    ground_truth_from_file,
    ground_truth_from_labels,
    prediction_rows,
    write_predictions,
)
from utils.metrics.confusion import MAX_CLASSES, ConfusionMatrix
from utils.metrics.matching import IOU_THRESHOLDS, match_detections
from utils.ops.boxes import cxcywhn_to_xyxy, to_original
from utils.ops.iou import pairwise_iou_numpy

COLUMNS = ("Images", "Instances", "P", "R", "mAP50", "mAP50-95")


@dataclass(frozen=True)
class ImageRecord:
    """Detections and labels of one image; D detections in descending order of score, N labels.

    Boxes are xyxy in pixels of the original image.
    """

    index: int
    path: str
    original_hw: tuple[int, int]
    boxes: np.ndarray  # (D, 4) float32
    scores: np.ndarray  # (D,) float32
    classes: np.ndarray  # (D,) int32
    label_boxes: np.ndarray  # (N, 4) float64
    label_classes: np.ndarray  # (N,) int32
    correct: np.ndarray  # (D, 10) bool, true positive at each of IOU_THRESHOLDS


@dataclass(frozen=True)
class DetectDetails:
    """Data for plots: curves of the K classes with labels, sampled at 1000 positions from 0 to 1."""

    classes: np.ndarray  # (K,) class of each row below
    names: tuple[str, ...]  # of all C classes
    labels: np.ndarray  # (K,) number of labels
    positions: np.ndarray  # (1000,) confidence, or recall for `precision_by_recall`
    precision: np.ndarray  # (K, 1000) by confidence
    recall: np.ndarray  # (K, 1000) by confidence
    f1: np.ndarray  # (K, 1000) by confidence
    precision_by_recall: np.ndarray  # (K, 1000) at IoU 0.5
    ap50: np.ndarray  # (K,)
    confidence: float  # operating point of the precision and recall in the table
    confusion: np.ndarray  # (C + 1, C + 1) int64, [predicted, true], background last; (0, 0) for too many classes


@EVALUATORS.register("detect")
class DetectEvaluator:
    """Evaluator of boxes that collects detections and labels per image.

    Images are evaluated in the order of the data set, and an image that occurs twice counts once, so metrics depend
    neither on the number of processes nor on the order of batches. Images without box labels (`boxes_known` False) are
    ignored.

    Args:
        spec: Description of the head.
        settings: Class names, annotations file and predictions file.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.settings, self.num_classes = settings, spec.num_classes
        named = settings.names[: spec.num_classes]
        self.names = named + tuple(str(index) for index in range(len(named), spec.num_classes))
        self._records: dict[int, ImageRecord] = {}

    def update(self, results: list[Results], batch: Batch) -> None:
        """Add the detections and labels of a batch.

        Args:
            results: Post-processed results, one per image.
            batch: The batch they were computed from.
        """
        labels = batch.boxes.detach().cpu().numpy().astype(np.float64)
        known = None if batch.boxes_known is None else batch.boxes_known.cpu().numpy()
        for position, result in enumerate(results):
            if known is None or known[position]:
                record = make_record(result, labels[labels[:, 0] == position])
                self._records[record.index] = record

    def compute(self) -> Scores:
        """Compute the metrics over the images of all ranks; every rank returns the same.

        Writes predictions in COCO format if `settings.save_json` is set.
        """
        return self.score(self.gather_records())

    def gather_records(self) -> list[ImageRecord]:
        """Collect the records of all ranks, one per image, in the order of the data set."""
        merged = {record.index: record for part in gather(list(self._records.values())) for record in part}
        return [merged[index] for index in sorted(merged)]

    def score(self, records: list[ImageRecord]) -> Scores:
        """Compute the metrics of `records`; see `compute`."""
        table = evaluate_records(records)
        ground_truth = self.ground_truth(records)
        detections = {record.index: (record.boxes, record.scores, record.classes) for record in records}
        if self.settings.save_json is not None and is_main():
            write_predictions(self.settings.save_json, prediction_rows(ground_truth, detections))
        metrics = mean_scores(table)
        metrics |= {f"coco/{name}": value for name, value in coco_metrics(ground_truth, detections).items()}
        return Scores(
            metrics=metrics,
            columns=COLUMNS,
            rows=self.table_rows(table, records, metrics),
            per_class={int(label): float(row.mean()) for label, row in zip(table.classes, table.ap, strict=True)},
            details=self.plot_details(table, records),
        )

    def ground_truth(self, records: list[ImageRecord]) -> CocoGroundTruth:
        """Return the ground truth of COCO's metrics: the annotations file if one is given, else the labels."""
        if self.settings.annotations is not None:
            images = {record.index: record.path for record in records}
            return ground_truth_from_file(self.settings.annotations, self.names, images)
        return ground_truth_from_labels(
            self.names,
            {record.index: (record.path, record.original_hw) for record in records},
            {record.index: (record.label_boxes, record.label_classes) for record in records},
        )

    def table_rows(
        self, table: PrecisionRecall, records: list[ImageRecord], metrics: dict[str, float]
    ) -> list[tuple[str, dict[str, float]]]:
        """Build the rows of the printed table, one per class after the row "all".

        Args:
            table: Metrics per class.
            records: Evaluated images; the column Images counts those that contain the class.
            metrics: Means over classes, from `mean_scores`.
        """
        means = (metrics[key] for key in ("precision", "recall", "map50", "map50_95"))
        rows = [("all", dict(zip(COLUMNS, (len(records), int(table.labels.sum()), *means), strict=True)))]
        image_counts = np.zeros(self.num_classes, dtype=np.int64)
        for record in records:
            image_counts[np.unique(record.label_classes)] += 1
        for row, label in enumerate(table.classes):
            values = (
                int(image_counts[label]),
                int(table.labels[row]),
                float(table.precision[row]),
                float(table.recall[row]),
                float(table.ap[row, 0]),
                float(table.ap[row].mean()),
            )
            rows.append((self.names[label], dict(zip(COLUMNS, values, strict=True))))
        return rows

    def plot_details(self, table: PrecisionRecall, records: list[ImageRecord]) -> DetectDetails:
        """Collect the data for plots, including the confusion matrix of `records`."""
        confusion = ConfusionMatrix(self.num_classes if self.num_classes <= MAX_CLASSES else -1)
        for record in records if len(confusion.matrix) else ():
            confusion.add(record.boxes, record.scores, record.classes, record.label_boxes, record.label_classes)
        return DetectDetails(
            classes=table.classes,
            names=self.names,
            labels=table.labels,
            positions=CONFIDENCES,
            precision=table.precision_curve,
            recall=table.recall_curve,
            f1=table.f1_curve,
            precision_by_recall=table.pr_curve,
            ap50=table.ap[:, 0],
            confidence=table.confidence,
            confusion=confusion.matrix,
        )


def evaluate_records(records: list[ImageRecord]) -> PrecisionRecall:
    """Compute the metrics of every class over all records."""
    return evaluate_detections(
        _concatenate([record.correct for record in records], (0, len(IOU_THRESHOLDS)), bool),
        _concatenate([record.scores for record in records], (0,), np.float32),
        _concatenate([record.classes for record in records], (0,), np.int32),
        _concatenate([record.label_classes for record in records], (0,), np.int32),
    )


def mean_scores(table: PrecisionRecall) -> dict[str, float]:
    """Average precision, recall, AP at IoU 0.5 and AP at IoU 0.5 to 0.95 over classes; 0 without any class."""
    return {
        "precision": _mean(table.precision),
        "recall": _mean(table.recall),
        "map50": _mean(table.ap[:, 0]),
        "map50_95": _mean(table.ap),
    }


def make_record(result: Results, labels: np.ndarray) -> ImageRecord:
    """Match the detections of one image with its labels.

    Args:
        result: Post-processed detections.
        labels: (N, 6) image index, class and cx, cy, w, h, the last four normalised by the network input size.

    Raises:
        ValueError: If the result has no boxes.
    """
    if result.boxes is None or result.scores is None or result.classes is None:
        raise ValueError(f"{result.info.path}: no boxes to evaluate; run post-processing first")
    geometry = result.info.geometry
    boxes = result.boxes.detach().float().cpu().numpy().copy()  # views would keep all candidates of NMS
    classes = result.classes.cpu().numpy().astype(np.int32)
    label_classes = labels[:, 1].astype(np.int32)
    label_boxes = to_original(cxcywhn_to_xyxy(labels[:, 2:], geometry.network_hw), geometry)
    iou = pairwise_iou_numpy(label_boxes, boxes.astype(np.float64))
    return ImageRecord(
        index=result.info.index,
        path=result.info.path,
        original_hw=geometry.original_hw,
        boxes=boxes,
        scores=result.scores.detach().float().cpu().numpy().copy(),
        classes=classes,
        label_boxes=label_boxes,
        label_classes=label_classes,
        correct=match_detections(iou, label_classes[:, None] == classes[None]),
    )


def _concatenate(arrays: list[np.ndarray], empty_shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(empty_shape, dtype=dtype)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0
