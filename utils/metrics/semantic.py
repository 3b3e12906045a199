"""The scores of the `semantic` head: overlap of every class with its labels, and the share of right pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.core.contracts import IGNORED_PIXEL, Batch, EvalSettings, HeadSpec, Results, Scores
from utils.core.distributed import gather
from utils.core.errors import UserError
from utils.metrics import EVALUATORS

COLUMNS = ("Images", "Pixels", "IoU", "Accuracy")


@dataclass(frozen=True)
class SemanticDetails:
    """What the plots draw."""

    names: tuple[str, ...]  # of all C classes
    confusion: np.ndarray  # (C, C) int64 pixels, [predicted, true]
    iou: np.ndarray  # (C,) of each class, NaN for one that neither occurs nor was predicted


@dataclass(frozen=True)
class PixelCounts:
    """Which pairs of classes one image has: (k,) true * C + predicted, and (k,) how many pixels."""

    pairs: np.ndarray
    pixels: np.ndarray


@EVALUATORS.register("semantic")
class SemanticEvaluator:
    """Counts pixels by true and predicted class, in integers: no order of images or ranks changes a number.

    An image seen twice counts once. Unlabelled pixels count nowhere, and neither do batches without pixel labels.
    Numbers: `miou` is the mean over classes that occur in labels or predictions, `miou_absent_zero` counts the others
    as 0 as multiyolov5 does (behaviour.md 12.7), `pixel_accuracy` is the share of labelled pixels that are right,
    `fw_iou` weighs classes by their labelled pixels, and `iou/<name>` is one class's, if it occurs. With
    `settings.absent_as_zero`, `miou` is `miou_absent_zero`. Without any labelled pixel all are 0.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.settings, self.num_classes = settings, spec.num_classes
        named = (spec.names or settings.names)[: spec.num_classes]
        self.names = tuple(named) + tuple(str(index) for index in range(len(named), spec.num_classes))
        self._counts: dict[int, PixelCounts] = {}

    def update(self, results: list[Results], batch: Batch) -> None:
        """Count the pixels of each image of `batch`."""
        if batch.semantic is None:
            return
        labels = batch.semantic.cpu().numpy()
        for label, result in zip(labels, results, strict=True):
            if result.semantic is None:
                raise ValueError(f"{result.info.path}: no classes of pixels to evaluate; did post-processing run?")
            found = result.semantic.cpu().numpy()
            if found.shape != label.shape:
                raise ValueError(f"{result.info.path}: a map of {found.shape} pixels, labels of {label.shape}")
            if (counts := self._count(label, found, result.info.path)) is not None:
                self._counts[result.info.index] = counts

    def _count(self, label: np.ndarray, found: np.ndarray, path: str) -> PixelCounts | None:
        """Return the pairs of one image, None if nobody labelled a pixel."""
        table = joint_histogram(label, found)
        table[IGNORED_PIXEL] = 0
        seen = np.flatnonzero(table.any(axis=1))
        if len(seen) and (wrong := int(seen[-1])) >= self.num_classes:
            raise UserError(
                f"{path}: its map of classes has pixels of class {wrong}, but there are {self.num_classes} classes "
                f"(0 to {self.num_classes - 1}; {IGNORED_PIXEL}: no label)"
            )
        kept = table[: self.num_classes, : self.num_classes].ravel()
        pairs = np.flatnonzero(kept)
        return PixelCounts(pairs.astype(np.int32), kept[pairs]) if len(pairs) else None

    def compute(self) -> Scores:
        """Return the scores over all ranks' images; every rank gets the same."""
        merged = {index: counts for part in gather(self._counts) for index, counts in part.items()}
        confusion = np.zeros(self.num_classes**2, np.int64)  # [true, predicted]
        showing = np.zeros(self.num_classes, np.int64)  # images whose labels show a class
        for counts in merged.values():
            confusion[counts.pairs] += counts.pixels
            showing[np.unique(counts.pairs // self.num_classes)] += 1
        return self.score(confusion.reshape(self.num_classes, -1), showing, len(merged))

    def score(self, confusion: np.ndarray, showing: np.ndarray, images: int) -> Scores:
        """Return the scores of a (C, C) matrix [true, predicted] of pixels."""
        right, labels, found = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        union = labels + found - right
        iou = np.where(union > 0, right / np.maximum(union, 1), np.nan)
        known = ~np.isnan(iou)
        numbers = {
            "miou": float(iou[known].mean()) if known.any() else 0.0,
            # what the peer adds to the union, 2e-16, is nothing beside one pixel
            "miou_absent_zero": float(iou[known].sum() / self.num_classes),
            "pixel_accuracy": float(right.sum() / max(labels.sum(), 1)),
            "fw_iou": float((iou[known] * labels[known]).sum() / max(labels.sum(), 1)),
        }
        if self.settings.absent_as_zero:
            numbers["miou"] = numbers["miou_absent_zero"]
        numbers |= {f"iou/{self.names[index]}": float(iou[index]) for index in np.flatnonzero(known)}
        rows = [("all", self._row(images, int(labels.sum()), numbers["miou"], numbers["pixel_accuracy"]))]
        for index in np.flatnonzero(labels):
            share = float(right[index] / labels[index])
            row = self._row(int(showing[index]), int(labels[index]), float(iou[index]), share)
            rows.append((self.names[index], row))
        return Scores(
            metrics=numbers,
            columns=COLUMNS,
            rows=rows,
            per_class={int(index): float(iou[index]) for index in np.flatnonzero(labels)},
            note=_remark(numbers, float(iou[known].mean()) if known.any() else 0.0),
            details=SemanticDetails(self.names, np.ascontiguousarray(confusion.T), iou),
        )

    @staticmethod
    def _row(images: int, pixels: int, iou: float, accuracy: float) -> dict[str, float]:
        return dict(zip(COLUMNS, (images, pixels, iou, accuracy), strict=True))


def _remark(numbers: dict[str, float], without_absent: float) -> str:
    """Return the line below the table: both ways to average, and what the table has no column for."""
    absent_zero, weighted = numbers["miou_absent_zero"], numbers["fw_iou"]
    return (
        f"mean IoU {without_absent:.4f}, with classes that occur nowhere as 0 {absent_zero:.4f}; "
        f"weighted by pixels {weighted:.4f}"
    )


def joint_histogram(label: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return (256, 256) int64: how many pixels of two uint8 maps have each pair of values, [first, second]."""
    pairs = label.astype(np.uint16)
    pairs <<= 8
    pairs |= found
    return np.bincount(pairs.ravel(), minlength=2**16).astype(np.int64).reshape(256, 256)
