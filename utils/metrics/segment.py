"""The scores of the `segment` head: those of boxes, and the same with masks instead of boxes (behaviour.md 6.6)."""

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
from utils.ops.masks import chunk_slices, encode_rle, mask_in_original, mask_iou

_SCORES = ("P", "R", "mAP50", "mAP50-95")  # columns of the boxes' table that masks have, too
COLUMNS = ("Images", "Instances", *(f"Box {name[-5:]}" for name in _SCORES), *(f"Mask {name[-5:]}" for name in _SCORES))


@dataclass(frozen=True)
class MaskRecord:
    """What is kept of one image's masks; run lengths, in the original image, only where a JSON is asked for."""

    index: int
    correct: np.ndarray  # (D, 10) bool
    shapes: list[dict[str, Any]]  # D of them, or none
    label_shapes: list[dict[str, Any]]  # L of them, or none


@dataclass(frozen=True)
class SegmentDetails:
    """What the plots draw, for boxes and for masks."""

    box: DetectDetails
    mask: DetectDetails


@EVALUATORS.register("segment")
class SegmentEvaluator:
    """Scores boxes as the `detect` evaluator does, and masks by the same rules with the overlap of masks.

    Masks are compared at the resolution of the prototypes, or, where results have `fine_masks`, of the network's input.
    With `save_json`, masks in the original image are written as run lengths, and COCO's numbers for masks counted.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.settings = settings
        self.boxes = DetectEvaluator(spec, replace(settings, save_json=None))
        self._masks: dict[int, MaskRecord] = {}

    def update(self, results: list[Results], batch: Batch) -> None:
        """Keep what was found in each image of `batch`, and its labels."""
        self.boxes.update(results, batch)
        known = None if batch.boxes_known is None else batch.boxes_known.cpu().numpy()
        for place, result in enumerate(results):
            if known is None or known[place]:
                self._masks[result.info.index] = self._record(result, batch, place)

    def _record(self, result: Results, batch: Batch, place: int) -> MaskRecord:
        if result.masks is None or result.classes is None:
            raise ValueError(f"{result.info.path}: no masks to evaluate; did post-processing run?")
        mine = batch.boxes[:, 0] == place
        labels = label_masks(batch, place)
        classes = batch.boxes[mine, 1].cpu().numpy().astype(np.int32)
        same_class = classes[:, None] == result.classes.cpu().numpy().astype(np.int32)[None]
        correct = match_detections(mask_overlaps(labels, result).numpy().astype(np.float64), same_class)
        if self.settings.save_json is None or result.fine_masks is None:
            return MaskRecord(result.info.index, correct, [], [])
        fine, geometry = result.fine_masks, result.info.geometry
        shapes = [encode_rle(fine.original(row)) for row in range(len(fine))]
        truth = [encode_rle(mask_in_original(label.float().numpy(), geometry)) for label in labels]
        return MaskRecord(result.info.index, correct, shapes, truth)

    def compute(self) -> Scores:
        """Return the scores over all ranks' images; every rank gets the same. Writes predictions if asked to."""
        masks = {record.index: record for part in gather(list(self._masks.values())) for record in part}
        records = self.boxes.gathered()
        by_mask = [replace(record, correct=masks[record.index].correct) for record in records]
        box, table = self.boxes.score(records), evaluate_records(by_mask)
        found = mean_scores(table)
        numbers = {f"mask_{name}": value for name, value in found.items()}
        for name, value in box.metrics.items():
            numbers[name if name.startswith("coco/") else f"box_{name}"] = value
        if self.settings.save_json is not None:
            numbers |= self._coco(records, masks)
        rows = []
        for (name, first), (_, second) in zip(box.rows, self.boxes.rows(table, by_mask, found), strict=True):
            scores = [first[column] for column in _SCORES] + [second[column] for column in _SCORES]
            rows.append((name, dict(zip(COLUMNS, (first["Images"], first["Instances"], *scores), strict=True))))
        per_mask = {int(label): float(row.mean()) for label, row in zip(table.classes, table.ap, strict=True)}
        return Scores(
            metrics=numbers,
            columns=COLUMNS,
            rows=rows,
            per_class={label: (value + per_mask[label]) / 2 for label, value in box.per_class.items()},
            details=SegmentDetails(box.details, self.boxes.details(table, by_mask)),
        )

    def _coco(self, records: list[ImageRecord], masks: dict[int, MaskRecord]) -> dict[str, float]:
        """Write the predictions and return COCO's numbers for masks, none if the truth has no masks."""
        shapes = {record.index: masks[record.index].shapes for record in records}
        found = {record.index: (record.boxes, record.scores, record.classes) for record in records}
        if self.settings.annotations is not None:
            truth = self.boxes.truth(records)
        else:
            truth = ground_truth_from_labels(
                self.boxes.names,
                {record.index: (record.path, record.original_hw) for record in records},
                {record.index: (record.label_boxes, record.label_classes) for record in records},
                {record.index: masks[record.index].label_shapes for record in records},
            )
        if self.settings.save_json is not None and is_main():
            write_predictions(self.settings.save_json, prediction_rows(truth, found, shapes))
        if not all(one.get("segmentation") for one in truth.data.anns.values()):
            LOGGER.warning(
                f"{self.settings.annotations}: holds objects without masks; COCO's numbers are of boxes only"
            )
            return {}
        return {f"coco/segm/{name}": value for name, value in coco_metrics(truth, found, shapes).items()}


def label_masks(batch: Batch, place: int) -> Tensor:
    """Return the (L, h, w) bool masks of the labels of one image, in the order of its boxes."""
    mine = (batch.boxes[:, 0] == place).cpu()
    if batch.masks is None:
        raise ValueError("the batch has no masks; load it with LoadRequest.masks")
    masks = batch.masks.cpu()
    if masks.dtype == torch.bool:
        return masks[mine]
    return masks[place] == torch.arange(1, int(mine.sum()) + 1, dtype=masks.dtype)[:, None, None]


def mask_overlaps(labels: Tensor, result: Results) -> Tensor:
    """Return (L, D) mask_overlaps of label masks with those found, at the resolution of the latter."""
    if result.masks is None:
        raise ValueError(f"{result.info.path}: no masks to evaluate")
    if result.fine_masks is None:
        masks = result.masks
        return mask_iou(_at(labels, (masks.shape[1], masks.shape[2])), masks)
    height, width = result.info.geometry.network_hw
    labels = _at(labels, (height, width))
    parts = [
        mask_iou(labels, result.fine_masks.network(rows)) for rows in chunk_slices(len(result.masks), height * width)
    ]
    return torch.cat([torch.zeros((len(labels), 0)), *parts], dim=1)


def _at(masks: Tensor, size_hw: tuple[int, int]) -> Tensor:
    if masks.shape[1:] == size_hw or not len(masks):
        return masks if len(masks) else masks.new_zeros((0, *size_hw))
    return interpolate(masks[None].float(), size=size_hw, mode="bilinear", align_corners=False)[0] > 0.5
