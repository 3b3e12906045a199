"""What is known about a data set before any judgement: one record per image, in the order of its split."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tools.dataset_check.findings import Finding
from tools.dataset_check.image_hash import Fingerprint
from utils.core.data_config import DataConfig
from utils.datasets.labels.yolo_lines import ImageLabels


@dataclass
class Picture:
    """One image file."""

    path: str
    size_hw: tuple[int, int] | None = None  # as it is meant to be seen; None: unreadable
    fault: str = ""  # why it cannot be read
    cut: str = ""  # what shows that it is cut short
    flat_end: float = 0.0  # of the height of a JPEG, one grey from side to side at its end
    orientation: int = 1  # EXIF's
    format: str = ""  # as its bytes say: JPEG, PNG, …
    print: Fingerprint | None = None  # of its pixels; None: not looked at, or unreadable


@dataclass
class Labelled:
    """One image of a split with its objects."""

    picture: Picture
    labels: ImageLabels
    label_file: str  # "" where there is none, a COCO JSON is the same for all


@dataclass
class Mapped:
    """One image of a split with its class for every pixel."""

    picture: Picture
    mask: str  # path
    table: np.ndarray  # (256,) class of each value
    fault: str = ""
    counts: np.ndarray | None = None  # (C,) pixels of each class
    unseen: list[int] = field(default_factory=list)  # rows of the image's boxes of whose class the map shows nothing
    unboxed: list[tuple[int, tuple[float, float, float, float]]] = field(default_factory=list)  # class, region


@dataclass
class Gathered:
    """Everything that the checks look at."""

    data: DataConfig
    imgsz: int
    splits: dict[str, list[Labelled]] = field(default_factory=dict)
    maps: dict[str, list[Mapped]] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)  # of labels, by split
    met: list[Finding] = field(default_factory=list)  # what came up while reading

    def pictures(self, split: str) -> dict[str, Picture]:
        """Return the images of a split by their paths, those with boxes and those with class maps."""
        found = {one.picture.path: one.picture for one in self.splits.get(split, ())}
        for mapped in self.maps.get(split, ()):
            found.setdefault(mapped.picture.path, mapped.picture)
        return found

    @property
    def split_names(self) -> list[str]:
        """Return the names of all splits that were read."""
        return list(dict.fromkeys([*self.splits, *self.maps]))
