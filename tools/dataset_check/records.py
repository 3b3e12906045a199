"""Records of a data set, the input of all checks: one per image, in the order of its split."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tools.dataset_check.findings import Finding
from tools.dataset_check.image_hash import Fingerprint
from utils.core.data_config import DataConfig
from utils.datasets.labels.yolo_lines import ImageLabels


@dataclass
class ImageRecord:
    """One image file."""

    path: str
    size_hw: tuple[int, int] | None = None  # with EXIF orientation applied; None: unreadable
    fault: str = ""  # why it cannot be read
    truncation: str = ""  # evidence that the file is truncated
    flat_end: float = 0.0  # fraction of a JPEG's height at its lower end that has a single grey level
    orientation: int = 1  # EXIF orientation
    format: str = ""  # from the content: JPEG, PNG, …
    fingerprint: Fingerprint | None = None  # of its pixels; None: not computed, or unreadable


@dataclass
class LabelRecord:
    """One image of a split with its objects."""

    image: ImageRecord
    labels: ImageLabels
    label_file: str  # empty if there is none; the same for all images of a COCO JSON file


@dataclass
class SemanticRecord:
    """One image of a split with its semantic map."""

    image: ImageRecord
    mask: str  # path
    table: np.ndarray  # (256,) class of each value
    fault: str = ""
    counts: np.ndarray | None = None  # (C,) pixels per class
    absent_boxes: list[int] = field(default_factory=list)  # rows of boxes whose class has no pixel inside the box
    unboxed_regions: list[tuple[int, tuple[float, float, float, float]]] = field(default_factory=list)
    # regions without a box: class, (cx, cy, w, h) normalised


@dataclass
class DatasetRecords:
    """All records of a data set."""

    data: DataConfig
    imgsz: int
    splits: dict[str, list[LabelRecord]] = field(default_factory=dict)
    maps: dict[str, list[SemanticRecord]] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)  # label format by split
    findings: list[Finding] = field(default_factory=list)  # made while reading
    classification: bool = False  # labels are classes of whole images, so there are no boxes to check

    def images(self, split: str) -> dict[str, ImageRecord]:
        """Get the images of a split by path, those with boxes and those with semantic maps."""
        found = {one.image.path: one.image for one in self.splits.get(split, ())}
        for mapped in self.maps.get(split, ()):
            found.setdefault(mapped.image.path, mapped.image)
        return found

    @property
    def split_names(self) -> list[str]:
        """Names of all splits that were read."""
        return list(dict.fromkeys([*self.splits, *self.maps]))
