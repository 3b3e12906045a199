"""Predictions of one image as `boxes`, `masks` and `probs`, which programs for newer YOLO libraries read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.core.segment_types import FineMasks
from utils.ops.boxes import xyxy_to_cxcywh
from utils.ops.masks import largest_contour
from utils.plots.draw import class_name


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Attributes:
        data: (n, 6) corners in pixels, confidence, class; in descending order of confidence.
        orig_shape: Height and width of the image.
    """

    data: Tensor
    orig_shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Boxes:
        return Boxes(self.data[index].reshape(-1, self.data.shape[1]), self.orig_shape)

    def __iter__(self) -> Iterator[Boxes]:
        return (self[index] for index in range(len(self)))

    @property
    def xyxy(self) -> Tensor:
        """(n, 4) corners in pixels."""
        return self.data[:, :4]

    @property
    def xywh(self) -> Tensor:
        """(n, 4) centre, width and height in pixels."""
        return xyxy_to_cxcywh(self.xyxy)

    @property
    def xyxyn(self) -> Tensor:
        """(n, 4) corners divided by width and height of the image."""
        return self.xyxy / self._size_xyxy

    @property
    def xywhn(self) -> Tensor:
        """(n, 4) centre, width and height divided by those of the image."""
        return self.xywh / self._size_xyxy

    @property
    def _size_xyxy(self) -> Tensor:
        return self.data.new_tensor([self.orig_shape[1], self.orig_shape[0]] * 2)

    @property
    def conf(self) -> Tensor:
        """(n,) confidences."""
        return self.data[:, 4]

    @property
    def cls(self) -> Tensor:
        """(n,) classes, as floats."""
        return self.data[:, 5]


@dataclass(frozen=True)
class Masks:
    """Instance masks of one image, in the order of its boxes; computed when they are read."""

    masks: FineMasks
    orig_shape: tuple[int, int]

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def data(self) -> Tensor:
        """(n, H, W) bool at the size of the image."""
        arrays = [self.masks.original(row) for row in range(len(self))]
        return torch.from_numpy(np.stack(arrays)) if arrays else torch.zeros((0, *self.orig_shape), dtype=torch.bool)

    @property
    def xy(self) -> list[np.ndarray]:
        """Largest outline of each mask, (points, 2) in pixels; empty for an empty mask."""
        outlines = [largest_contour(self.masks.original(row)) for row in range(len(self))]
        return [np.asarray(outline, np.float32).reshape(-1, 2) for outline in outlines]

    @property
    def xyn(self) -> list[np.ndarray]:
        """The outlines divided by width and height of the image."""
        return [outline / np.array(self.orig_shape[::-1], np.float32) for outline in self.xy]


@dataclass(frozen=True)
class Probs:
    """Class probabilities of one image.

    Attributes:
        data: (C,).
    """

    data: Tensor

    @property
    def top5(self) -> list[int]:
        """Most probable classes, at most five."""
        indices: list[int] = self.data.topk(min(5, len(self.data))).indices.tolist()
        return indices

    @property
    def top1(self) -> int:
        """Most probable class."""
        return self.top5[0]

    @property
    def top5conf(self) -> Tensor:
        """Probabilities of `top5`."""
        return self.data[self.top5]

    @property
    def top1conf(self) -> Tensor:
        """Probability of `top1`."""
        return self.data[self.top1]


def summarize_image(
    views: tuple[Boxes | None, Masks | None, Probs | None], names: Sequence[str], normalize: bool, decimals: int
) -> list[dict[str, Any]]:
    """Convert one image's views to plain values.

    Args:
        views: Boxes, masks and probabilities.
        names: Class names.
        normalize: Divide coordinates by width and height of the image.
        decimals: To which numbers are rounded.

    Returns:
        A record per box: name, class, confidence, box (x1, y1, x2, y2) and, with masks, segments (lists x and y); for
        classifiers one record of the most probable class.
    """
    boxes, masks, probs = views
    if probs is not None:
        score = round(float(probs.top1conf), decimals)
        return [{"name": class_name(names, probs.top1), "class": probs.top1, "confidence": score}]
    if boxes is None:
        return []
    corners = (boxes.xyxyn if normalize else boxes.xyxy).tolist()
    outlines = [] if masks is None else masks.xyn if normalize else masks.xy
    rows = []
    for index, (box, score, number) in enumerate(
        zip(corners, boxes.conf.tolist(), boxes.cls.int().tolist(), strict=True)
    ):
        row: dict[str, Any] = {
            "name": class_name(names, number),
            "class": number,
            "confidence": round(score, decimals),
            "box": {key: round(side, decimals) for key, side in zip(("x1", "y1", "x2", "y2"), box, strict=True)},
        }
        if outlines:
            x, y = outlines[index].round(decimals).T.tolist()
            row["segments"] = {"x": x, "y": y}
        rows.append(row)
    return rows
