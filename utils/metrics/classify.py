"""The scores of the `classify` head: how often the right class is the surest, or among the five (behaviour.md 6.7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from utils.core.contracts import Batch, EvalSettings, HeadSpec, Results, Scores
from utils.core.distributed import gather
from utils.metrics import EVALUATORS

COLUMNS = ("Images", "top1_acc", "top5_acc")
TOP = 5


@dataclass(frozen=True)
class ClassifyDetails:
    """What the plots draw."""

    confusion: np.ndarray  # (C, C) int64 [predicted class, true class]


@EVALUATORS.register("classify")
class ClassifyEvaluator:
    """Counts the images whose class is the surest (top 1) and among the five surest (top 5); of equals, the first."""

    def __init__(self, spec: HeadSpec, settings: EvalSettings) -> None:
        self.num_classes = spec.num_classes
        self.names = settings.names or tuple(str(i) for i in range(spec.num_classes))
        self._found: dict[int, tuple[int, int, int]] = {}  # image -> true class, its rank from 0, predicted class

    def update(self, results: list[Results], batch: Batch) -> None:
        """Keep what was found in each image of `batch` that has a class."""
        if batch.classes is None:
            raise ValueError("the batch has no classes of whole images")
        for result, label in zip(results, batch.classes.tolist(), strict=True):
            if label < 0:
                continue
            if result.probabilities is None:
                raise ValueError(f"{result.info.path}: no probabilities to evaluate; did post-processing run?")
            order = torch.argsort(result.probabilities.cpu(), descending=True, stable=True)
            rank = int((order == label).nonzero()[0, 0])
            self._found[result.info.index] = (label, rank, int(order[0]))

    def compute(self) -> Scores:
        """Return the scores over all ranks' images; every rank gets the same. Without any image they are NaN."""
        joined = {index: entry for part in gather(self._found) for index, entry in part.items()}
        found = np.array([joined[index] for index in sorted(joined)], np.int64).reshape(-1, 3)
        labels, ranks, predicted = found.T
        confusion = np.zeros((self.num_classes, self.num_classes), np.int64)
        np.add.at(confusion, (predicted, labels), 1)
        rows = [("all", _row(ranks))]
        per_class = {}
        for label in np.unique(labels).tolist():
            row = _row(ranks[labels == label])
            rows.append((self.names[label], row))
            per_class[label] = row["top1_acc"]
        overall = rows[0][1]
        return Scores(
            metrics={"top1": overall["top1_acc"], "top5": overall["top5_acc"]},
            columns=COLUMNS,
            rows=rows,
            per_class=per_class,
            details=ClassifyDetails(confusion),
        )


def _row(ranks: np.ndarray) -> dict[str, float]:
    """Return the table's row of images whose true class has these ranks."""
    count = len(ranks)
    shares = (float((ranks < top).mean()) if count else float("nan") for top in (1, TOP))
    return dict(zip(COLUMNS, (count, *shares), strict=True))
