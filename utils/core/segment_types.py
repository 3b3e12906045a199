"""Masks and segments of one image: instance masks on demand, panoptic maps, panoptic labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # keeps --help fast
    import numpy as np
    from torch import Tensor

VOID = 0  # id of pixels without a segment


class FineMasks(Protocol):
    """Masks of one image's n objects at full resolution, computed on demand to limit memory."""

    def __len__(self) -> int: ...
    def cpu(self) -> FineMasks:
        """Copy the masks to the CPU."""

    def network(self, rows: slice) -> Tensor:
        """Compute the (k, H, W) bool masks of some objects at the network input size."""

    def original(self, row: int) -> np.ndarray:
        """Compute the (H, W) bool mask of one object at the original image size."""


@dataclass(frozen=True)
class MergeSettings:
    """Constants of the merge, by default those of Panoptic FPN (Kirillov et al. 2019, arXiv 1901.02446) on COCO."""

    confidence: float = 0.5  # minimum score of an instance
    overlap: float = 0.5  # an instance is dropped if more than this fraction of its mask is taken by better ones
    min_stuff_area: int = 4096  # pixels; smaller segments of stuff become void


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map."""

    id: int  # value of its pixels, from 1
    category: int  # index of its class
    is_thing: bool
    area: int  # in pixels
    score: float | None = None  # of things


@dataclass(frozen=True)
class PanopticMap:
    """Segment of every pixel: instances of things first, in descending order of score, then one segment per stuff."""

    ids: np.ndarray  # (H, W) int32, `VOID` or the id of a segment
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class PanopticLabels:
    """Labelled segments of one image at its original size."""

    numbers: np.ndarray  # (H, W) uint8 or int32, position of the segment in `classes` plus 1, 0 = void
    classes: tuple[int, ...]  # class of each segment, things before stuff
    crowd: tuple[bool, ...]  # whether each segment is a group that is not separated into instances
    image_id: int | str = 0  # in the annotations
    map_name: str = ""  # file with the labels, in the folder of the annotations
    category_ids: tuple[int, ...] = ()  # in the annotations, by class

    def semantic(self, void: int) -> np.ndarray:
        """Compute the (H, W) uint8 class of each pixel; `void` without a segment."""
        import numpy as np

        return np.array([void, *self.classes], np.uint8)[self.numbers]
