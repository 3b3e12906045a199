"""PNG files of COCO's panoptic format: the colour of a pixel is the id of its segment."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.core.input_files import MAX_PIXELS
from utils.core.segment_types import VOID
from utils.datasets.image_files import TAIL_BYTES, ImageFault, open_header, read_content
from utils.ops.panoptic import decode_ids, encode_png, measure_segment

__all__ = ["NumberedMap", "encode_png", "measure_segment", "number_segments", "read_id_map"]


@dataclass(frozen=True)
class NumberedMap:
    """Segments of an image, numbered in the order of a list of ids."""

    numbers: np.ndarray  # (H, W) uint8 or int32: position of the segment in the list plus 1, 0 = void
    areas: np.ndarray  # (k + 1,) int64 pixels of each number
    unlisted: int = VOID  # an id that is not in the list; its pixels are void
    unlisted_px: int = 0  # number of pixels whose id is not in the list


def read_id_map(path: Path) -> np.ndarray:
    """Read the segment ids of a panoptic PNG.

    Args:
        path: PNG file with 8 bits per channel in colour.

    Returns:
        (H, W) int32, 0 = void.

    Raises:
        ImageFault: the file is missing, damaged or no colour PNG.
    """
    data = read_content(path, "panoptic map")
    with open_header(io.BytesIO(data), path, data[:32], MAX_PIXELS) as header:
        if header.format != "PNG" or header.mode not in ("RGB", "RGBA"):
            raise ImageFault(
                f"{path}: {header.format} in mode {header.mode}; a panoptic map is a PNG whose colours are segment ids"
            )
        if b"IEND" not in data[-TAIL_BYTES:]:
            raise ImageFault(f"{path}: truncated PNG (no IEND)")
        size_hw = header.size[::-1]
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[:2] != size_hw:
        raise ImageFault(f"{path}: damaged PNG")
    return decode_ids(pixels)


def number_segments(ids: np.ndarray, listed: np.ndarray) -> NumberedMap:
    """Replace segment ids by their positions in a list.

    Neighbouring pixels usually share a segment, so that runs of equal ids are looked up instead of pixels.

    Args:
        ids: (H, W) integers.
        listed: (k,) distinct ids above 0.
    """
    flat = ids.ravel()
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    values, lengths = flat[starts], np.diff(np.append(starts, flat.size))
    order = np.argsort(listed)
    ordered = np.append(listed[order], np.iinfo(np.int64).max)
    at = np.searchsorted(ordered, values)
    known = ordered[at] == values
    numbers = np.where(known, np.append(order, 0)[at] + 1, VOID)
    areas = np.bincount(numbers, lengths, len(listed) + 1).astype(np.int64)
    foreign = ~known & (values != VOID)
    kind = np.uint8 if len(listed) < 256 else np.int32
    return NumberedMap(
        numbers=np.repeat(numbers.astype(kind), lengths).reshape(ids.shape),
        areas=areas,
        unlisted=int(values[foreign][0]) if foreign.any() else VOID,
        unlisted_px=int(lengths[foreign].sum()),
    )
