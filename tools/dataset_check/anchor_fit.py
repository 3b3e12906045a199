"""AutoAnchor on its own: how well the usual anchors fit a data set, and which would fit better (behaviour.md 3.12)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tools.dataset_check.dataset_statistics import usable
from tools.dataset_check.records import Gathered
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.seed import generator
from utils.core.yaml_file import read_yaml
from utils.ops.anchors import AnchorFit, anchor_fit, fit_anchors, label_sizes_px

PER_LEVEL = 3
_USUAL = {3: "yolov5", 4: "yolov5-p6"}  # by the number of levels: the model YAML whose anchors are compared


@dataclass(frozen=True)
class FittedAnchors:
    """What was fitted, beside what is usual."""

    anchors: np.ndarray  # (L, 3, 2) pixels, finest level first
    fit: AnchorFit
    labels: int
    usual: str = ""  # the model YAML they are compared with, "" if there is none with so many
    usual_fit: AnchorFit | None = None

    @property
    def advice(self) -> str:
        """Say which to take."""
        if self.usual_fit is None:
            return "There are no usual ones with so many levels to compare with."
        better = (self.fit.recall, self.fit.fitness) > (self.usual_fit.recall, self.usual_fit.fitness)
        return f"The fitted ones fit {'better' if better else 'no better'} than those of {self.usual}."

    def yaml(self) -> str:
        """Return the lines for a model YAML."""
        rows = (", ".join(f"{value:.4g}" for value in level.ravel()) for level in self.anchors)
        return "\n".join(["anchors:", *(f"  - [{row}]" for row in rows)])

    def values(self) -> dict[str, Any]:
        """Return the same for JSON."""
        usual = None if self.usual_fit is None else {"model": self.usual, **asdict(self.usual_fit)}
        return {"anchors": self.anchors.round(2).tolist(), "labels": self.labels, **asdict(self.fit), "usual": usual}


def fit_to(gathered: Gathered, count: int, threshold: float) -> FittedAnchors:
    """Return `count` anchors for the training labels at the size that `gathered` has; UserError: there are no boxes."""
    if count < PER_LEVEL or count % PER_LEVEL:
        raise UserError(f"--anchors {count}: {PER_LEVEL} for each level, so 9 for three levels, 12 for four")
    split = "train" if "train" in gathered.splits else next(iter(gathered.splits), "")
    images = usable(gathered, split) if gathered.data.format != "folders" else []
    shapes = np.array([one.picture.size_hw for one in images]).reshape(-1, 2)
    sizes = label_sizes_px([one.labels.boxes for one in images], shapes, gathered.imgsz)
    sizes = sizes[(sizes > 0).all(1)]
    if not len(sizes):
        raise UserError(f"{gathered.data.source}: --anchors needs boxes, and there are none")
    levels = count // PER_LEVEL
    fitted = fit_anchors(sizes, count, gathered.imgsz, threshold, generator(0, 0, 0)).reshape(levels, PER_LEVEL, 2)
    usual = _USUAL.get(levels, "")
    usual_fit = None
    if usual:
        rows = read_yaml(ROOT / "models" / "configs" / f"{usual}.yaml")["anchors"]
        usual_fit = anchor_fit(sizes, np.array(rows, np.float64).reshape(-1, 2), threshold)
    return FittedAnchors(fitted, anchor_fit(sizes, fitted, threshold), len(sizes), usual, usual_fit)
