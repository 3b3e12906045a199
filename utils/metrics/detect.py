"""The scores of the `detect` head: YOLOv5's table and COCO's twelve numbers from one pass (behaviour.md 6)."""

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
from utils.metrics.confusion import ConfusionMatrix
from utils.metrics.matching import IOU_THRESHOLDS, match_detections
from utils.ops.boxes import cxcywhn_to_xyxy, to_original
from utils.ops.iou import pairwise_iou_numpy

COLUMNS = ("Images", "Instances", "P", "R", "mAP50", "mAP50-95")


@dataclass(frozen=True)
class ImageRecord:
    """What is kept of one image: D detections by falling score and L labels, boxes xyxy in original pixels."""

    index: int
    path: str
    original_hw: tuple[int, int]
    boxes: np.ndarray  # (D, 4) float32
    scores: np.ndarray  # (D,) float32
    classes: np.ndarray  # (D,) int32
    label_boxes: np.ndarray  # (L, 4) float64
    label_classes: np.ndarray  # (L,) int32
    correct: np.ndarray  # (D, 10) bool


@dataclass(frozen=True)
class DetectDetails:
    """What the plots draw. K classes with labels; curves at 1000 positions from 0 to 1."""

    classes: np.ndarray  # (K,) which classes the rows below are
    names: tuple[str, ...]  # of all C classes
    labels: np.ndarray  # (K,) number of labels
    positions: np.ndarray  # (1000,) confidence, or recall for the last of the curves
    precision: np.ndarray  # (K, 1000) by confidence
    recall: np.ndarray  # (K, 1000) by confidence
    f1: np.ndarray  # (K, 1000) by confidence
    precision_by_recall: np.ndarray  # (K, 1000) at overlap .5
    ap50: np.ndarray  # (K,)
    confidence: float  # where precision and recall of the table are taken
    confusion: np.ndarray  # (C + 1, C + 1) int64, [predicted, true], background last


@EVALUATORS.register("detect")
class DetectEvaluator:
    """Collects detections and labels per image; `compute` joins those of all ranks.

    Records are ordered by the images' place in the data set, and an image seen twice counts once: the numbers depend
    neither on the number of processes nor on the order of batches. Images without box labels of any kind
    (`boxes_known` False) are left out.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.settings, self.num_classes = settings, spec.num_classes
        named = settings.names[: spec.num_classes]
        self.names = named + tuple(str(index) for index in range(len(named), spec.num_classes))
        self._records: dict[int, ImageRecord] = {}

    def update(self, results: list[Results], batch: Batch) -> None:
        """Keep what was found in each image of `batch`, and its labels."""
        labels = batch.boxes.detach().cpu().numpy().astype(np.float64)
        known = None if batch.boxes_known is None else batch.boxes_known.cpu().numpy()
        for place, result in enumerate(results):
            if known is None or known[place]:
                record = make_record(result, labels[labels[:, 0] == place])
                self._records[record.index] = record

    def compute(self) -> Scores:
        """Return the scores over all ranks' images; every rank gets the same. Writes predictions if asked to."""
        return self.score(self.gathered())

    def gathered(self) -> list[ImageRecord]:
        """Return what all ranks kept, each image once, in the data set's order."""
        merged = {record.index: record for part in gather(list(self._records.values())) for record in part}
        return [merged[index] for index in sorted(merged)]

    def score(self, records: list[ImageRecord]) -> Scores:
        """Return the scores of `records`; writes predictions if asked to."""
        table = evaluate_records(records)
        truth = self.truth(records)
        found = {record.index: (record.boxes, record.scores, record.classes) for record in records}
        if self.settings.save_json is not None and is_main():
            write_predictions(self.settings.save_json, prediction_rows(truth, found))
        numbers = mean_scores(table)
        numbers |= {f"coco/{name}": value for name, value in coco_metrics(truth, found).items()}
        return Scores(
            metrics=numbers,
            columns=COLUMNS,
            rows=self.rows(table, records, numbers),
            per_class={int(label): float(row.mean()) for label, row in zip(table.classes, table.ap, strict=True)},
            details=self.details(table, records),
        )

    def truth(self, records: list[ImageRecord]) -> CocoGroundTruth:
        """Return what COCO's numbers are counted against: the annotations file that was given, else the labels."""
        if self.settings.annotations is not None:
            images = {record.index: record.path for record in records}
            return ground_truth_from_file(self.settings.annotations, self.names, images)
        return ground_truth_from_labels(
            self.names,
            {record.index: (record.path, record.original_hw) for record in records},
            {record.index: (record.label_boxes, record.label_classes) for record in records},
        )

    def rows(
        self, table: PrecisionRecall, records: list[ImageRecord], numbers: dict[str, float]
    ) -> list[tuple[str, dict[str, float]]]:
        """Return the table's rows; a class's Images are those that show it."""
        scores = (numbers[key] for key in ("precision", "recall", "map50", "map50_95"))
        rows = [("all", dict(zip(COLUMNS, (len(records), int(table.labels.sum()), *scores), strict=True)))]
        showing = np.zeros(self.num_classes, dtype=np.int64)
        for record in records:
            showing[np.unique(record.label_classes)] += 1
        for place, label in enumerate(table.classes):
            values = (
                int(showing[label]),
                int(table.labels[place]),
                float(table.precision[place]),
                float(table.recall[place]),
                float(table.ap[place, 0]),
                float(table.ap[place].mean()),
            )
            rows.append((self.names[label], dict(zip(COLUMNS, values, strict=True))))
        return rows

    def details(self, table: PrecisionRecall, records: list[ImageRecord]) -> DetectDetails:
        """Return what the plots draw."""
        confusion = ConfusionMatrix(self.num_classes)
        for record in records:
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
    """Return the scores of every class over all `records`."""
    return evaluate_detections(
        _joined([record.correct for record in records], (0, len(IOU_THRESHOLDS)), bool),
        _joined([record.scores for record in records], (0,), np.float32),
        _joined([record.classes for record in records], (0,), np.int32),
        _joined([record.label_classes for record in records], (0,), np.int32),
    )


def mean_scores(table: PrecisionRecall) -> dict[str, float]:
    """Return the means over classes: precision, recall, map50, map50_95."""
    return {
        "precision": _mean(table.precision),
        "recall": _mean(table.recall),
        "map50": _mean(table.ap[:, 0]),
        "map50_95": _mean(table.ap),
    }


def make_record(result: Results, labels: np.ndarray) -> ImageRecord:
    """Return the record of one image. `labels` is (L, 6): image, class, cxcywh normalised to the network's input."""
    if result.boxes is None or result.scores is None or result.classes is None:
        raise ValueError(f"{result.info.path}: no boxes to evaluate; did post-processing run?")
    geometry = result.info.geometry
    boxes = result.boxes.detach().float().cpu().numpy()
    classes = result.classes.cpu().numpy().astype(np.int32)
    label_classes = labels[:, 1].astype(np.int32)
    label_boxes = to_original(cxcywhn_to_xyxy(labels[:, 2:], geometry.network_hw), geometry)
    overlap = pairwise_iou_numpy(label_boxes, boxes.astype(np.float64))
    return ImageRecord(
        index=result.info.index,
        path=result.info.path,
        original_hw=geometry.original_hw,
        boxes=boxes,
        scores=result.scores.detach().float().cpu().numpy(),
        classes=classes,
        label_boxes=label_boxes,
        label_classes=label_classes,
        correct=match_detections(overlap, label_classes[:, None] == classes[None]),
    )


def _joined(arrays: list[np.ndarray], empty_shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.zeros(empty_shape, dtype=dtype)


def _mean(values: np.ndarray) -> float:
    """Return the mean, zero of nothing."""
    return float(values.mean()) if values.size else 0.0
