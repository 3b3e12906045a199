"""Evaluator of the `classify` head: top-1 and top-5 accuracy, and the confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from utils.core.contracts import Batch, EvalSettings, HeadSpec, Results, Scores
from utils.core.distributed import gather
from utils.metrics import EVALUATORS
from utils.metrics.confusion import MAX_CLASSES

COLUMNS = ("Images", "top1_acc", "top5_acc")
TOP = 5


@dataclass(frozen=True)
class ClassifyDetails:
    """Data for plots."""

    confusion: np.ndarray  # (C, C) int64, [predicted, true]


@EVALUATORS.register("classify")
class ClassifyEvaluator:
    """Evaluator of image classes; of several classes with equal probability the first ranks higher.

    Args:
        spec: Description of the head.
        settings: Class names.
    """

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.num_classes = spec.num_classes
        self.names = settings.names or tuple(str(i) for i in range(spec.num_classes))
        self._predictions: dict[int, tuple[int, int, int]] = {}  # image -> true class, its rank from 0, predicted class

    def update(self, results: list[Results], batch: Batch) -> None:
        """Add the predictions for the labelled images of a batch.

        Args:
            results: Post-processed results, one per image.
            batch: The batch they were computed from.

        Raises:
            ValueError: If the batch has no classes or a result has no probabilities.
        """
        if batch.classes is None:
            raise ValueError("the batch has no image classes; load a classification data set")
        labels = batch.classes.tolist()
        if len(labels) != len(results):
            raise ValueError(f"expected one result per image, got {len(labels)} images and {len(results)} results")
        labelled = [(result, label) for result, label in zip(results, labels, strict=True) if label >= 0]
        probabilities = []
        for result, _ in labelled:
            if result.probabilities is None:
                raise ValueError(f"{result.info.path}: no probabilities to evaluate; run post-processing first")
            probabilities.append(result.probabilities)
        if not labelled:
            return
        orders = torch.argsort(torch.stack(probabilities).cpu(), dim=1, descending=True, stable=True)  # (n, C)
        truth = torch.tensor([label for _, label in labelled])
        ranks = (orders == truth[:, None]).int().argmax(dim=1).tolist()
        for (result, label), rank, best in zip(labelled, ranks, orders[:, 0].tolist(), strict=True):
            self._predictions[result.info.index] = (label, rank, best)

    def compute(self) -> Scores:
        """Compute the metrics over the images of all ranks, NaN without any; every rank returns the same."""
        merged = {index: entry for part in gather(self._predictions) for index, entry in part.items()}
        table = np.array([merged[index] for index in sorted(merged)], np.int64).reshape(-1, 3)
        labels, ranks, predicted = table.T
        side = self.num_classes if self.num_classes <= MAX_CLASSES else 0
        confusion = np.zeros((side, side), np.int64)
        if side:
            np.add.at(confusion, (predicted, labels), 1)
        rows = [("all", _table_row(ranks))]
        per_class = {}
        for label in np.unique(labels).tolist():
            row = _table_row(ranks[labels == label])
            rows.append((self.names[label], row))
            per_class[label] = row["top1_acc"]
        means = rows[0][1]
        return Scores(
            metrics={"top1": means["top1_acc"], "top5": means["top5_acc"]},
            columns=COLUMNS,
            rows=rows,
            per_class=per_class,
            details=ClassifyDetails(confusion),
        )


def _table_row(ranks: np.ndarray) -> dict[str, float]:
    """Build the table row of images from the ranks of their true classes."""
    count = len(ranks)
    accuracies = (float((ranks < top).mean()) if count else float("nan") for top in (1, TOP))
    return dict(zip(COLUMNS, (count, *accuracies), strict=True))
