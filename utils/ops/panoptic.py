"""Panoptic maps: the merge of instance masks and a semantic map into one segment per pixel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from utils.core.contracts import HeadSpec, Results
from utils.core.errors import UserError
from utils.core.segment_types import VOID, MergeSettings, PanopticMap, Segment


def merge_panoptic(
    scores: Sequence[float],
    things: Sequence[int],
    mask_of: Callable[[int], np.ndarray],
    semantic: np.ndarray,
    is_stuff: np.ndarray,
    settings: MergeSettings | None = None,
) -> PanopticMap:
    """Merge the instances and the semantic map of one image (Panoptic FPN, section 4).

    Instances are pasted in descending order of score on pixels that are still free, and the stuff classes of the
    semantic map fill the rest. Pixels of a thing class without an instance, and small segments of stuff, become void.

    Args:
        scores: Scores of n instances, in descending order.
        things: Category of each instance.
        mask_of: Computes the (H, W) bool mask of an instance; called only for those with a sufficient score.
        semantic: (H, W) uint8 category of each pixel.
        is_stuff: (C,) bool; True for categories that are stuff. Other values of `semantic` are void.
        settings: Constants of the merge.

    Returns:
        The map at the size of `semantic`.
    """
    settings = settings or MergeSettings()
    ids = np.zeros(semantic.shape, np.int32)
    segments: list[Segment] = []
    for row, (score, category) in enumerate(zip(scores, things, strict=True)):
        if score < settings.confidence:
            break
        mask = mask_of(row)
        window = bounding_window(mask)
        mask = mask[window]
        area = int(np.count_nonzero(mask))
        free = mask & (ids[window] == VOID)
        new_area = int(np.count_nonzero(free))
        if new_area == 0 or (area - new_area) > settings.overlap * area:
            continue
        number = len(segments) + 1
        ids[window][free] = number
        segments.append(Segment(number, int(category), True, new_area, float(score)))
    free = ids == VOID
    areas = np.bincount(semantic[free], minlength=256)
    number_of = np.zeros(256, np.int32)
    for category in np.flatnonzero(is_stuff).tolist():
        if areas[category] >= max(settings.min_stuff_area, 1):
            segments.append(Segment(len(segments) + 1, category, False, int(areas[category])))
            number_of[category] = segments[-1].id
    np.copyto(ids, number_of[semantic], where=free)
    return PanopticMap(ids, tuple(segments))


class PanopticMerger:
    """Merge of the results of a network with instance masks and semantic maps.

    The classes of the semantic head are the categories. Those that the mask head has, too, by name, are things, all
    others stuff.

    Args:
        mask_names: Class names of the mask head.
        semantic_names: Class names of the semantic head.
        settings: Constants of the merge.

    Raises:
        UserError: If the semantic head lacks a class of the mask head.
    """

    def __init__(
        self, mask_names: Sequence[str], semantic_names: Sequence[str], settings: MergeSettings | None = None
    ) -> None:
        number_of = {name: number for number, name in enumerate(semantic_names)}
        if missing := [name for name in mask_names if name not in number_of]:
            raise UserError(
                f"panoptic maps: the semantic head has no class {missing[0]!r}; both heads must name things alike"
            )
        self.names, self.settings = tuple(semantic_names), settings or MergeSettings()
        self.category_of = [number_of[name] for name in mask_names]
        self.is_thing = np.isin(np.arange(len(semantic_names)), self.category_of)

    def __call__(self, results: Results) -> PanopticMap:
        """Merge the results of one image, which must be on the CPU.

        Raises:
            ValueError: If the results lack masks or a semantic map.
        """
        masks, semantic = results.fine_masks, results.semantic
        if masks is None or semantic is None or results.scores is None or results.classes is None:
            raise ValueError(f"{results.info.path}: panoptic maps need instance masks and a semantic map")
        things = [self.category_of[index] for index in results.classes.tolist()]
        return merge_panoptic(
            results.scores.tolist(), things, masks.original, semantic.numpy(), ~self.is_thing, self.settings
        )


def panoptic_spec(specs: Mapping[str, HeadSpec]) -> HeadSpec | None:
    """Describe the panoptic maps of a network, None if it has no mask head or no semantic head."""
    masks = next((spec for spec in specs.values() if spec.num_masks), None)
    semantic = specs.get("semantic")
    if masks is None or semantic is None:
        return None
    return HeadSpec("panoptic", semantic.num_classes, names=semantic.names, things=masks.names)


def bounding_window(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the bounding box of an (H, W) bool mask; empty slices for an empty mask."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    vertical = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[vertical].any(axis=0))
    return vertical, slice(int(columns[0]), int(columns[-1]) + 1)


def measure_segment(ids: np.ndarray, key: int) -> tuple[int, list[int]]:
    """Measure the area and the box (x, y, width, height) of a segment in pixels; zeros for one without pixels."""
    mask = ids == key
    rows, columns = bounding_window(mask)
    return int(np.count_nonzero(mask)), [
        columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
    ]  # fmt: skip


def encode_png(ids: np.ndarray) -> bytes:
    """Encode (H, W) segment ids as a panoptic PNG."""
    done, content = cv2.imencode(".png", encode_ids(ids))
    assert done, "OpenCV could not encode a PNG"
    return content.tobytes()


def encode_ids(ids: np.ndarray) -> np.ndarray:
    """Encode segment ids as colours of COCO's panoptic PNG files: id = R + 256 G + 65536 B.

    Args:
        ids: (H, W) integers from 0 to 2^24 - 1.

    Returns:
        (H, W, 3) uint8 in OpenCV's order B, G, R.
    """
    wide = ids.astype(np.uint32)
    return np.stack([(wide >> shift & 255).astype(np.uint8) for shift in (16, 8, 0)], axis=2)


def decode_ids(image: np.ndarray) -> np.ndarray:
    """Decode a panoptic PNG in OpenCV's order B, G, R, (H, W, 3) uint8, to (H, W) int32 segment ids."""
    blue, green, red = (image[..., channel].astype(np.int32) for channel in range(3))
    return red + (green << 8) + (blue << 16)
