"""Evaluator of the `semantic` head: IoU and accuracy per class, mean IoU and pixel accuracy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.core.contracts import IGNORED_PIXEL, Batch, EvalSettings, HeadSpec, Results, Scores
from utils.core.distributed import gather
from utils.core.errors import UserError
from utils.metrics import EVALUATORS

_GPU_PIXELS = 2**26  # pixels counted at a time on a GPU: 256 MB of pairs
COLUMNS = ("Images", "Pixels", "IoU", "Accuracy")


@dataclass(frozen=True)
class SemanticDetails:
    """Data for plots."""

    names: tuple[str, ...]  # of all C classes
    confusion: np.ndarray  # (C, C) int64 numbers of pixels, [predicted, true]
    iou: np.ndarray  # (C,) IoU of each class, NaN if it occurs neither in labels nor in predictions


@dataclass(frozen=True)
class PixelCounts:
    """Sparse confusion matrix of one image with k non-zero entries."""

    pairs: np.ndarray  # (k,) true class * C + predicted class
    pixels: np.ndarray  # (k,) number of pixels


@EVALUATORS.register("semantic")
class SemanticEvaluator:
    """Evaluator of semantic maps that counts pixels by true and predicted class.

    Counts are integers, so metrics do not depend on the order of images or ranks. An image that occurs twice counts
    once. Unlabelled pixels and batches without semantic maps are ignored.

    Metrics, all 0 without any labelled pixel:

    - `miou`: mean IoU over the classes that occur in labels or predictions; equals `miou_absent_zero` with
      `settings.absent_as_zero`.
    - `miou_absent_zero`: mean IoU over all classes, absent ones counted as 0, as in multiyolov5.
    - `pixel_accuracy`: fraction of labelled pixels that are predicted correctly.
    - `fw_iou`: frequency-weighted IoU, the mean of the classes' IoU weighted by their labelled pixels.
    - `iou/<name>`: IoU of each class that occurs.

    Args:
        spec: Description of the head.
        settings: Class names and the treatment of absent classes.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.settings, self.num_classes = settings, spec.num_classes
        named = (spec.names or settings.names)[: spec.num_classes]
        self.names = tuple(named) + tuple(str(index) for index in range(len(named), spec.num_classes))
        self._counts: dict[int, PixelCounts] = {}

    def update(self, results: list[Results], batch: Batch) -> None:
        """Count the pixels of a batch.

        Args:
            results: Post-processed results, one per image.
            batch: The batch they were computed from.

        Raises:
            ValueError: If a result has no semantic map, or one of another size than the labels.
            UserError: If labels contain a class that the head does not have.
        """
        labels: Sequence[Tensor] | Tensor = ()
        if batch.panoptic is not None:
            labels = [torch.from_numpy(one.semantic(IGNORED_PIXEL)) for one in batch.panoptic]
        elif batch.semantic is not None:
            labels = batch.semantic
        if not len(labels):
            return
        predicted: list[Tensor] = []
        for label, result in zip(labels, results, strict=True):
            if result.semantic is None:
                raise ValueError(f"{result.info.path}: no semantic map to evaluate; run post-processing first")
            if result.semantic.shape != label.shape:
                raise ValueError(
                    f"{result.info.path}: expected a semantic map of {tuple(label.shape)} pixels, got "
                    f"{tuple(result.semantic.shape)}"
                )
            predicted.append(result.semantic)
        for table, result in zip(self._tables(labels, predicted), results, strict=True):
            if (counts := self._count(table, result.info.path)) is not None:
                self._counts[result.info.index] = counts

    def _tables(self, labels: Sequence[Tensor] | Tensor, predicted: list[Tensor]) -> Iterator[np.ndarray]:
        """Count the pixels of each image with each pair of labelled and predicted value."""
        if isinstance(labels, Tensor) and labels.is_cuda and all(one.is_cuda for one in predicted):
            step = max(1, _GPU_PIXELS // max(1, labels[:1].numel()))
            for start in range(0, len(predicted), step):
                part = slice(start, start + step)
                yield from joint_histograms(labels[part], torch.stack(predicted[part]), self.num_classes)
            return
        for label, one in zip(labels, predicted, strict=True):
            yield joint_histogram(label.cpu().numpy(), one.cpu().numpy())

    def _count(self, table: np.ndarray, path: str) -> PixelCounts | None:
        """Build the counts of one image from its table, which is changed; None if no pixel is labelled."""
        table[IGNORED_PIXEL] = 0
        present = np.flatnonzero(table.any(axis=1))
        if len(present) and (highest := int(present[-1])) >= self.num_classes:
            raise UserError(
                f"{path}: its semantic map contains class {highest}; expected classes 0 to {self.num_classes - 1}, or "
                f"{IGNORED_PIXEL} for unlabelled pixels"
            )
        counts = table[: self.num_classes, : self.num_classes].ravel()
        pairs = np.flatnonzero(counts)
        return PixelCounts(pairs.astype(np.int32), counts[pairs]) if len(pairs) else None

    def compute(self) -> Scores:
        """Compute the metrics over the images of all ranks; every rank returns the same."""
        merged = {index: counts for part in gather(self._counts) for index, counts in part.items()}
        confusion = np.zeros(self.num_classes**2, np.int64)  # [true, predicted]
        image_counts = np.zeros(self.num_classes, np.int64)
        for counts in merged.values():
            confusion[counts.pairs] += counts.pixels
            image_counts[np.unique(counts.pairs // self.num_classes)] += 1
        return self.score(confusion.reshape(self.num_classes, -1), image_counts, len(merged))

    def score(self, confusion: np.ndarray, image_counts: np.ndarray, images: int) -> Scores:
        """Compute the metrics from pixel counts.

        Args:
            confusion: (C, C) numbers of pixels, [true, predicted].
            image_counts: (C,) numbers of images whose labels contain each class.
            images: Number of images.
        """
        correct, labelled, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        union = labelled + predicted - correct
        iou = np.where(union > 0, correct / np.maximum(union, 1), np.nan)
        known = ~np.isnan(iou)
        mean_iou = float(iou[known].mean()) if known.any() else 0.0
        metrics = {
            "miou": mean_iou,
            "miou_absent_zero": float(iou[known].sum() / self.num_classes),
            "pixel_accuracy": float(correct.sum() / max(labelled.sum(), 1)),
            "fw_iou": float((iou[known] * labelled[known]).sum() / max(labelled.sum(), 1)),
        }
        if self.settings.absent_as_zero:
            metrics["miou"] = metrics["miou_absent_zero"]
        metrics |= {f"iou/{self.names[index]}": float(iou[index]) for index in np.flatnonzero(known)}
        rows = [("all", _table_row(images, int(labelled.sum()), metrics["miou"], metrics["pixel_accuracy"]))]
        for index in np.flatnonzero(labelled):
            accuracy = float(correct[index] / labelled[index])
            row = _table_row(int(image_counts[index]), int(labelled[index]), float(iou[index]), accuracy)
            rows.append((self.names[index], row))
        return Scores(
            metrics=metrics,
            columns=COLUMNS,
            rows=rows,
            per_class={int(index): float(iou[index]) for index in np.flatnonzero(labelled)},
            note=(
                f"mean IoU {mean_iou:.4f}, {metrics['miou_absent_zero']:.4f} with absent classes counted as 0; "
                f"frequency-weighted IoU {metrics['fw_iou']:.4f}"
            ),
            details=SemanticDetails(self.names, np.ascontiguousarray(confusion.T), iou),
        )


def _table_row(images: int, pixels: int, iou: float, accuracy: float) -> dict[str, float]:
    return dict(zip(COLUMNS, (images, pixels, iou, accuracy), strict=True))


def joint_histogram(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Count the pixels with each pair of values in two uint8 maps of equal shape.

    Returns:
        (256, 256) int64, indexed by [first, second].
    """
    pairs = first.astype(np.uint16)
    pairs <<= 8
    pairs |= second
    return np.bincount(pairs.ravel(), minlength=2**16).astype(np.int64).reshape(256, 256)


def joint_histograms(labels: Tensor, predicted: Tensor, num_classes: int) -> np.ndarray:
    """Count the pixels of every image of a batch on its device, which sends no more than the counts.

    Args:
        labels: (B, H, W) uint8.
        predicted: (B, H, W) uint8, below `num_classes`.
        num_classes: C.

    Returns:
        (B, 256, C) int64, indexed by image, label and prediction.
    """
    images = torch.arange(len(labels), dtype=torch.int32, device=labels.device)[:, None, None]
    pairs = (images * 256 + labels) * num_classes + predicted
    counts = torch.bincount(pairs.flatten(), minlength=len(labels) * 256 * num_classes)
    return counts.view(-1, 256, num_classes).cpu().numpy()
