"""Evaluator of the `segment` head: the metrics of boxes, and the same with mask IoU instead of box IoU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from utils.core.contracts import Batch, EvalSettings, HeadSpec, Results, Scores
from utils.core.distributed import gather, is_main
from utils.core.log import LOGGER
from utils.metrics import EVALUATORS
from utils.metrics.coco import coco_metrics, ground_truth_from_labels, prediction_rows, write_predictions
from utils.metrics.detect import DetectDetails, DetectEvaluator, ImageRecord, evaluate_records, mean_scores
from utils.metrics.matching import match_detections
from utils.ops.batch_masks import batch_mask_iou
from utils.ops.masks import chunk_slices, encode_rle, mask_in_original, mask_iou

_METRICS = ("P", "R", "mAP50", "mAP50-95")  # columns of the detection table that boxes and masks both have
COLUMNS = (
    "Images", "Instances", *(f"Box {name[-5:]}" for name in _METRICS), *(f"Mask {name[-5:]}" for name in _METRICS),
)  # fmt: skip


@dataclass(frozen=True)
class MaskRecord:
    """Mask results of one image; run-length encodings in the original image only if a JSON file is written."""

    index: int
    correct: np.ndarray  # (D, 10) bool, true positive at each of IOU_THRESHOLDS
    rles: list[dict[str, Any]]  # of the D detections, or empty
    label_rles: list[dict[str, Any]]  # of the N labels, or empty


@dataclass(frozen=True)
class SegmentDetails:
    """Data for plots, for boxes and for masks."""

    box: DetectDetails
    mask: DetectDetails


@EVALUATORS.register("segment")
class SegmentEvaluator:
    """Evaluator of boxes, as `DetectEvaluator`, and of masks by the same rules.

    Masks are compared at the resolution of the prototypes or, if results have `fine_masks`, of the network input. With
    `settings.save_json`, masks of the original size are written as run-length encodings and COCO's metrics for masks
    are computed.

    Args:
        spec: Description of the head.
        settings: Class names, annotations file and predictions file.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.settings = settings
        self.boxes = DetectEvaluator(spec, replace(settings, save_json=None))
        self._masks: dict[int, MaskRecord] = {}

    def update(self, results: list[Results], batch: Batch) -> None:
        """Add the detections and labels of a batch.

        Args:
            results: Post-processed results, one per image.
            batch: The batch they were computed from.
        """
        self.boxes.update(results, batch)
        known = None if batch.boxes_known is None else batch.boxes_known.cpu().numpy()
        overlaps = batch_overlaps(results, batch)
        for position, result in enumerate(results):
            if known is None or known[position]:
                given = None if overlaps is None else overlaps[position]
                self._masks[result.info.index] = self._make_record(result, batch, position, given)

    def _make_record(self, result: Results, batch: Batch, position: int, overlaps: Tensor | None) -> MaskRecord:
        if result.masks is None or result.classes is None:
            raise ValueError(f"{result.info.path}: no masks to evaluate; run post-processing first")
        in_image = batch.boxes[:, 0] == position
        classes = batch.boxes[in_image, 1].cpu().numpy().astype(np.int32)
        same_class = classes[:, None] == result.classes.cpu().numpy().astype(np.int32)[None]
        if result.masks.device.type != "cpu" and (overlaps is None or self.settings.save_json is not None):
            result = result.cpu()
        if overlaps is None:
            overlaps = mask_overlaps(label_masks(batch, position), result)
        correct = match_detections(overlaps.numpy().astype(np.float64), same_class)
        if self.settings.save_json is None or result.fine_masks is None:
            return MaskRecord(result.info.index, correct, [], [])
        labels, fine, geometry = label_masks(batch, position), result.fine_masks, result.info.geometry
        rles = [encode_rle(fine.original(row)) for row in range(len(fine))]
        label_rles = [encode_rle(mask_in_original(label.float().numpy(), geometry)) for label in labels]
        return MaskRecord(result.info.index, correct, rles, label_rles)

    def compute(self) -> Scores:
        """Compute the metrics over the images of all ranks; every rank returns the same.

        Writes predictions in COCO format if `settings.save_json` is set.
        """
        masks = {record.index: record for part in gather(list(self._masks.values())) for record in part}
        records = self.boxes.gather_records()
        mask_records = [replace(record, correct=masks[record.index].correct) for record in records]
        box, mask_table = self.boxes.score(records), evaluate_records(mask_records)
        mask_means = mean_scores(mask_table)
        metrics = {f"mask_{name}": value for name, value in mask_means.items()}
        for name, value in box.metrics.items():
            metrics[name if name.startswith("coco/") else f"box_{name}"] = value
        if self.settings.save_json is not None:
            metrics |= self._coco_mask_metrics(records, masks)
        rows = []
        mask_rows = self.boxes.table_rows(mask_table, mask_records, mask_means)
        for (name, box_row), (_, mask_row) in zip(box.rows, mask_rows, strict=True):
            values = [box_row[column] for column in _METRICS] + [mask_row[column] for column in _METRICS]
            rows.append((name, dict(zip(COLUMNS, (box_row["Images"], box_row["Instances"], *values), strict=True))))
        mask_ap = {int(label): float(row.mean()) for label, row in zip(mask_table.classes, mask_table.ap, strict=True)}
        return Scores(
            metrics=metrics,
            columns=COLUMNS,
            rows=rows,
            per_class={label: (value + mask_ap[label]) / 2 for label, value in box.per_class.items()},
            details=SegmentDetails(box.details, self.boxes.plot_details(mask_table, mask_records)),
        )

    def _coco_mask_metrics(self, records: list[ImageRecord], masks: dict[int, MaskRecord]) -> dict[str, float]:
        """Write the predictions and compute COCO's metrics for masks, empty if the ground truth has no masks."""
        rles = {record.index: masks[record.index].rles for record in records}
        detections = {record.index: (record.boxes, record.scores, record.classes) for record in records}
        if self.settings.annotations is not None:
            ground_truth = self.boxes.ground_truth(records)
        else:
            ground_truth = ground_truth_from_labels(
                self.boxes.names,
                {record.index: (record.path, record.original_hw) for record in records},
                {record.index: (record.label_boxes, record.label_classes) for record in records},
                {record.index: masks[record.index].label_rles for record in records},
            )
        if self.settings.save_json is not None and is_main():
            write_predictions(self.settings.save_json, prediction_rows(ground_truth, detections, rles))
        if not all(annotation.get("segmentation") for annotation in ground_truth.data.anns.values()):
            LOGGER.warning(
                f"{self.settings.annotations}: some annotations have no segmentation; COCO's metrics are computed for "
                "boxes only"
            )
            return {}
        return {f"coco/segm/{name}": value for name, value in coco_metrics(ground_truth, detections, rles).items()}


def label_masks(batch: Batch, position: int) -> Tensor:
    """Return the labelled masks of one image of a batch.

    Args:
        batch: Batch with masks, either as (N, h, w) bool or as index maps.
        position: Index of the image in the batch.

    Returns:
        (n, h, w) bool on the CPU, in the order of the boxes of the image.

    Raises:
        ValueError: If the batch has no masks.
    """
    in_image = (batch.boxes[:, 0] == position).cpu()
    if batch.masks is None:
        raise ValueError("the batch has no masks; load it with LoadRequest(masks=True)")
    masks = batch.masks.cpu()
    if masks.dtype == torch.bool:
        return masks[in_image]
    return masks[position] == torch.arange(1, int(in_image.sum()) + 1, dtype=masks.dtype)[:, None, None]


def batch_overlaps(results: list[Results], batch: Batch) -> list[Tensor] | None:
    """Compute the mask IoU of all images at once where the masks are, and copy only that to the CPU.

    Args:
        results: Of all images, with the padded masks of the batch.
        batch: Labels, with masks on the same device.

    Returns:
        Per image (N, D) float32 on the CPU; None if there are no padded masks, or finer ones to compare.
    """
    masks = results[0].batch_masks if results else None
    if masks is None or batch.masks is None or results[0].fine_masks is not None:
        return None
    labels = _padded_labels(batch)
    if labels.shape[2:] != masks.shape[2:] and labels.shape[1]:
        labels = interpolate(labels.float(), size=masks.shape[2:], mode="bilinear", align_corners=False) > 0.5
    counts = torch.bincount(batch.boxes[:, 0].long(), minlength=len(batch)).tolist()
    found = [0 if result.classes is None else len(result.classes) for result in results]
    overlaps = batch_mask_iou(labels, masks).cpu()
    return [iou[:rows, :columns] for iou, rows, columns in zip(overlaps, counts, found, strict=True)]


def _padded_labels(batch: Batch) -> Tensor:
    """Return the (B, N, h, w) bool labelled masks of a batch whose boxes are on the CPU, padded with empty ones."""
    assert batch.masks is not None
    masks, counts = batch.masks, torch.bincount(batch.boxes[:, 0].long(), minlength=len(batch))
    numbers = torch.arange(1, int(counts.max()) + 1)  # in the index map
    if masks.dtype != torch.bool:
        return masks[:, None] == numbers.to(masks.device, masks.dtype, non_blocking=True)[:, None, None]
    rows = (counts.cumsum(0) - counts)[:, None] + numbers - 1
    rows = torch.where(numbers <= counts[:, None], rows, len(masks)).to(masks.device, non_blocking=True)
    return torch.cat((masks, masks.new_zeros((1, *masks.shape[1:]))))[rows]


def mask_overlaps(labels: Tensor, result: Results) -> Tensor:
    """Compute the IoU of labelled and predicted masks at the resolution of the predictions.

    Args:
        labels: (N, h, w) bool masks over the network input.
        result: Results with D masks; `fine_masks` are used if present.

    Returns:
        (N, D) float32.

    Raises:
        ValueError: If the result has no masks.
    """
    if result.masks is None:
        raise ValueError(f"{result.info.path}: no masks to evaluate; run post-processing first")
    if result.fine_masks is None:
        masks = result.masks
        return mask_iou(_resize_masks(labels, (masks.shape[1], masks.shape[2])), masks)
    height, width = result.info.geometry.network_hw
    labels = _resize_masks(labels, (height, width))
    slices = chunk_slices(len(result.masks), height * width)
    parts = [mask_iou(labels, result.fine_masks.network(rows)) for rows in slices]
    return torch.cat([torch.zeros((len(labels), 0)), *parts], dim=1)


def _resize_masks(masks: Tensor, size_hw: tuple[int, int]) -> Tensor:
    if masks.shape[1:] == size_hw or not len(masks):
        return masks if len(masks) else masks.new_zeros((0, *size_hw))
    return interpolate(masks[None].float(), size=size_hw, mode="bilinear", align_corners=False)[0] > 0.5
