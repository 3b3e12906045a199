"""Fingerprints for duplicate detection: hash of the file, difference hash and thumbnail of the pixels.

The difference hash (N. Krawetz, "Kind of like that", 2013) states for each cell of a coarse grid whether it is brighter
than its right neighbour. Small changes of size, quality and brightness change few of its 64 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from utils.core.log import progress

SIDE = 32  # of thumbnails
MIN_CONTRAST = 3.0  # standard deviation of grey levels below which images cannot be compared
MAX_BITS = 12  # Hamming distance of near-duplicates, of 64 bits
MIN_CORRELATION = 0.97  # of the thumbnails of near-duplicates
_BLOCK = 512  # images compared with all others at a time


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of one image."""

    digest: bytes  # of the file
    difference_hash: int  # 64 bits
    thumbnail: np.ndarray  # (SIDE, SIDE) uint8 grey
    aspect: float  # width / height
    levels: int  # range of grey levels in the thumbnail

    @property
    def is_flat(self) -> bool:
        """Whether the image has too little contrast to be compared."""
        return float(self.thumbnail.std()) < MIN_CONTRAST


def compute_fingerprint(data: bytes, grey: np.ndarray, size_hw: tuple[int, int]) -> Fingerprint:
    """Compute the fingerprint of an image.

    Args:
        data: Content of the file.
        grey: (H, W) uint8 grey pixels, possibly at a reduced size.
        size_hw: Size of the image.
    """
    cells = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = np.packbits((cells[:, 1:] > cells[:, :-1]).ravel())
    thumbnail = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return Fingerprint(
        hashlib.blake2b(data, digest_size=16).digest(),
        int.from_bytes(bits.tobytes(), "big"),
        thumbnail,
        size_hw[1] / size_hw[0],
        int(thumbnail.max()) - int(thumbnail.min()),
    )


def _count_bits(numbers: np.ndarray) -> np.ndarray:
    """Count the bits set in each uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(numbers)
    as_bytes = np.ascontiguousarray(numbers).view(np.uint8).reshape(*numbers.shape, 8)
    return np.unpackbits(as_bytes, axis=-1).sum(-1)


def is_near_duplicate(first: Fingerprint, second: Fingerprint) -> bool:
    """Check that two images with similar hashes agree in aspect ratio and thumbnail."""
    if not 0.9 < first.aspect / second.aspect < 1.1:
        return False
    a, b = (one.thumbnail.astype(np.float64) - one.thumbnail.mean() for one in (first, second))
    return float((a * b).sum()) >= MIN_CORRELATION * float(np.sqrt((a * a).sum() * (b * b).sum()))


def near_duplicate_pairs(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Find all pairs of near-duplicates, identical files included.

    Every pair is compared: 10 000 images take a second or two, 100 000 a few minutes.

    Args:
        fingerprints: Fingerprints of the images.

    Yields:
        Indices i < j of each pair.
    """
    all_hashes = np.array([one.difference_hash for one in fingerprints], np.uint64)
    flat = np.array([one.is_flat for one in fingerprints], bool)
    usable = np.flatnonzero(~flat)
    hashes = all_hashes[usable]
    starts = range(0, len(usable), _BLOCK)
    bar = progress(starts, len(starts), "comparing images", "block") if len(usable) > 4 * _BLOCK else starts
    for start in bar:
        rows = hashes[start : start + _BLOCK]
        near = _count_bits(rows[:, None] ^ hashes[None, start:]) <= MAX_BITS
        for row, column in np.argwhere(near):
            i, j = int(usable[start + row]), int(usable[start + column])
            if i < j and is_near_duplicate(fingerprints[i], fingerprints[j]):
                yield i, j


def connected_groups(count: int, pairs: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Group numbers below `count` that are connected by pairs; groups of one are omitted."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        a, b = root(i), root(j)
        parent[max(a, b)] = min(a, b)
    found: dict[int, list[int]] = {}
    for i in range(count):
        found.setdefault(root(i), []).append(i)
    return [members for members in found.values() if len(members) > 1]
