"""Panoptic quality (Kirillov et al. 2019, arXiv 1801.00868, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.core.distributed import gather
from utils.core.segment_types import VOID, PanopticMap

MATCH_IOU = 0.5  # a match needs more; at most one pair of segments can then match
MAX_IGNORED = 0.5  # an unmatched prediction is no false positive if more of it is void or crowd


@dataclass(frozen=True)
class TrueSegment:
    """A labelled segment."""

    id: int
    category: int
    is_crowd: bool = False


@dataclass(frozen=True)
class ImageCounts:
    """Matches and errors of one image; integers only, so that sums are exact in any order."""

    matches: tuple[tuple[int, int, int], ...]  # category, intersection, union
    missed: tuple[int, ...]  # categories of false negatives
    false: tuple[int, ...]  # categories of false positives


@dataclass(frozen=True)
class Quality:
    """Panoptic, segmentation and recognition quality; NaN for a group without any segment."""

    pq: float
    sq: float
    rq: float
    categories: int  # that occur in labels or predictions


def compare(truth: np.ndarray, labelled: Sequence[TrueSegment], predicted: PanopticMap) -> ImageCounts:
    """Match the predicted segments of one image to the labelled ones.

    Args:
        truth: (H, W) integer ids of the labelled segments, 0 = void.
        labelled: The labelled segments.
        predicted: The prediction, of the same size.

    Raises:
        ValueError: If the sizes differ, or `truth` contains an id that is not in `labelled`.
    """
    if truth.shape != predicted.ids.shape:
        raise ValueError(f"expected a panoptic map of {truth.shape} pixels, got {predicted.ids.shape}")
    known = [VOID, *(segment.id for segment in labelled)]
    order = np.argsort(known)
    ordered = np.asarray(known)[order]
    position = np.searchsorted(ordered, truth).clip(max=len(known) - 1)
    if not (ordered[position] == truth).all():
        unknown = int(truth[ordered[position] != truth][0])
        raise ValueError(f"the map contains segment {unknown}, which is not listed")
    columns = max((segment.id for segment in predicted.segments), default=0) + 1
    pairs = order[position] * columns + predicted.ids
    table = np.bincount(pairs.ravel(), minlength=len(known) * columns).reshape(len(known), columns)
    true_areas, predicted_areas = table.sum(axis=1), table.sum(axis=0)

    matches, matched = [], set()
    missed = []
    for row, segment in enumerate(labelled, 1):
        if segment.is_crowd:
            continue
        for other in predicted.segments:
            inside = int(table[row, other.id])
            union = int(true_areas[row] + predicted_areas[other.id] - inside - table[0, other.id])
            if other.category == segment.category and inside > MATCH_IOU * union:
                matches.append((segment.category, inside, union))
                matched.add(other.id)
                break
        else:
            missed.append(segment.category)
    crowd_of = {segment.category: row for row, segment in enumerate(labelled, 1) if segment.is_crowd}  # the last counts
    false = []
    for other in predicted.segments:
        if other.id in matched:
            continue
        ignored = int(table[0, other.id])
        if other.category in crowd_of:
            ignored += int(table[crowd_of[other.category], other.id])
        if ignored <= MAX_IGNORED * predicted_areas[other.id]:
            false.append(other.category)
    return ImageCounts(tuple(matches), tuple(missed), tuple(false))


class PanopticQuality:
    """Accumulator of panoptic quality over images and ranks; an image that is added twice counts once.

    Args:
        is_thing: (C,) bool, whether each category is a thing.
    """

    def __init__(self, is_thing: Sequence[bool]) -> None:
        self.is_thing = np.asarray(is_thing, dtype=bool)
        self._images: dict[int, ImageCounts] = {}

    def add(self, index: int, counts: ImageCounts) -> None:
        """Add the counts of the image with number `index` in the data set."""
        self._images[index] = counts

    def compute(self) -> tuple[dict[str, Quality], dict[int, Quality]]:
        """Compute the quality over the images of all ranks; every rank returns the same.

        Returns:
            Averages by group (`all`, `things`, `stuff`), and the quality of each category that occurs.
        """
        merged: Mapping[int, ImageCounts] = {
            index: counts for part in gather(self._images) for index, counts in part.items()
        }
        count = len(self.is_thing)
        ious: list[list[float]] = [[] for _ in range(count)]
        missed, false = np.zeros(count, np.int64), np.zeros(count, np.int64)
        for index in sorted(merged):
            for category, inside, union in merged[index].matches:
                ious[category].append(inside / union)
            np.add.at(missed, list(merged[index].missed), 1)
            np.add.at(false, list(merged[index].false), 1)
        by_category = {}
        for category in range(count):
            true_positives, total = len(ious[category]), math.fsum(ious[category])
            denominator = true_positives + (missed[category] + false[category]) / 2
            if denominator > 0:
                by_category[category] = Quality(
                    pq=float(total / denominator),
                    sq=total / true_positives if true_positives else 0.0,
                    rq=float(true_positives / denominator),
                    categories=1,
                )
        groups = {
            "all": list(by_category.values()),
            "things": [quality for category, quality in by_category.items() if self.is_thing[category]],
            "stuff": [quality for category, quality in by_category.items() if not self.is_thing[category]],
        }
        return {name: _average(members) for name, members in groups.items()}, by_category


def _average(members: Sequence[Quality]) -> Quality:
    if not members:
        return Quality(math.nan, math.nan, math.nan, 0)
    return Quality(
        pq=math.fsum(member.pq for member in members) / len(members),
        sq=math.fsum(member.sq for member in members) / len(members),
        rq=math.fsum(member.rq for member in members) / len(members),
        categories=len(members),
    )
