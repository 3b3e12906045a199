"""AutoAnchor on request: anchors fitted to a data set, compared with those of the YOLOv5 models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tools.dataset_check.dataset_statistics import usable_images
from tools.dataset_check.records import DatasetRecords
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.seed import generator
from utils.core.yaml_file import read_yaml
from utils.ops.anchors import AnchorFit, anchor_fit, fit_anchors, label_sizes_px

PER_LEVEL = 3
_REFERENCE = {3: "yolov5", 4: "yolov5-p6"}  # number of levels -> model YAML whose anchors are compared


@dataclass(frozen=True)
class FittedAnchors:
    """Fitted anchors and their fit, compared with a reference model's."""

    anchors: np.ndarray  # (L, 3, 2) pixels, finest level first
    fit: AnchorFit
    labels: int
    reference: str = ""  # model YAML they are compared with, empty if none has as many levels
    reference_fit: AnchorFit | None = None

    @property
    def advice(self) -> str:
        """Sentence that recommends the fitted or the reference anchors."""
        if self.reference_fit is None:
            return "No YOLOv5 model has this number of levels to compare with."
        better = (self.fit.recall, self.fit.fitness) > (self.reference_fit.recall, self.reference_fit.fitness)
        return f"The fitted anchors fit {'better' if better else 'no better'} than those of {self.reference}."

    def to_yaml(self) -> str:
        """Format the anchors as lines of a model YAML."""
        rows = (", ".join(f"{value:.4g}" for value in level.ravel()) for level in self.anchors)
        return "\n".join(["anchors:", *(f"  - [{row}]" for row in rows)])

    def to_dict(self) -> dict[str, Any]:
        """Convert to values for JSON."""
        reference = None if self.reference_fit is None else {"model": self.reference, **asdict(self.reference_fit)}
        return {
            "anchors": self.anchors.round(2).tolist(),
            "labels": self.labels,
            **asdict(self.fit),
            "usual": reference,
        }


def fit_dataset_anchors(records: DatasetRecords, count: int, threshold: float) -> FittedAnchors:
    """Fit anchors to the training labels at image size `records.imgsz`.

    Args:
        records: The data set.
        count: Number of anchors, a multiple of PER_LEVEL.
        threshold: Largest ratio of sides at which an anchor matches a label.

    Returns:
        The anchors and their fit.

    Raises:
        UserError: The number is invalid, or the data set has no boxes.
    """
    if count < PER_LEVEL or count % PER_LEVEL:
        raise UserError(f"--anchors expects a multiple of {PER_LEVEL}, 9 for three levels, got {count}")
    split = "train" if "train" in records.splits else next(iter(records.splits), "")
    images = usable_images(records, split) if not records.classification else []
    shapes = np.array([one.image.size_hw for one in images]).reshape(-1, 2)
    sizes = label_sizes_px([one.labels.boxes for one in images], shapes, records.imgsz)
    sizes = sizes[(sizes > 0).all(1)]
    if not len(sizes):
        raise UserError(f"{records.data.source}: --anchors requires boxes, but the data set has none")
    levels = count // PER_LEVEL
    fitted = fit_anchors(sizes, count, records.imgsz, threshold, generator(0, 0, 0)).reshape(levels, PER_LEVEL, 2)
    reference = _REFERENCE.get(levels, "")
    reference_fit = None
    if reference:
        rows = read_yaml(ROOT / "models" / "configs" / f"{reference}.yaml")["anchors"]
        reference_fit = anchor_fit(sizes, np.array(rows, np.float64).reshape(-1, 2), threshold)
    return FittedAnchors(fitted, anchor_fit(sizes, fitted, threshold), len(sizes), reference, reference_fit)
