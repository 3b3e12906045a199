"""What makes an image recognisable: the hash of its bytes, a hash of its looks, a thumbnail to be sure.

The hash of the looks is the difference hash (N. Krawetz, "Kind of like that", 2013): whether each cell of a coarse grid
is brighter than its neighbour to the right. Small changes of size, quality and brightness change few of its 64 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from utils.core.log import progress

SIDE = 32  # of thumbnails
FLAT = 3.0  # standard deviation of grey levels below which nothing can be recognised
MAX_BITS = 12  # of 64 that may differ
ALIKE = 0.97  # least correlation of thumbnails
_ROWS = 512  # of images compared with all others at a time


@dataclass(frozen=True)
class Fingerprint:
    """Of one image."""

    digest: bytes  # of the file
    looks: int  # 64 bits
    thumbnail: np.ndarray  # (SIDE, SIDE) uint8 grey
    aspect: float  # width by height
    levels: int  # of grey between the darkest and the brightest pixel of the thumbnail

    @property
    def is_flat(self) -> bool:
        """Tell whether there is too little to see for a comparison of looks."""
        return float(self.thumbnail.std()) < FLAT


def fingerprint(data: bytes, grey: np.ndarray, size_hw: tuple[int, int]) -> Fingerprint:
    """Return the fingerprint of a file: its bytes and its (H, W) uint8 grey pixels, which may be shrunk."""
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


def _ones(numbers: np.ndarray) -> np.ndarray:
    """Return how many bits are set in each uint64."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(numbers)
    as_bytes = np.ascontiguousarray(numbers).view(np.uint8).reshape(*numbers.shape, 8)
    return np.unpackbits(as_bytes, axis=-1).sum(-1)


def alike(first: Fingerprint, second: Fingerprint) -> bool:
    """Tell whether two images with similar hashes show the same: shape and thumbnails agree."""
    if not 0.9 < first.aspect / second.aspect < 1.1:
        return False
    a, b = (one.thumbnail.astype(np.float64) - one.thumbnail.mean() for one in (first, second))
    return float((a * b).sum()) >= ALIKE * float(np.sqrt((a * a).sum() * (b * b).sum()))


def near_pairs(prints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Yield i < j for all images that look nearly the same, files with equal bytes among them.

    Every pair is compared: 10 000 images take a second or two, 100 000 a few minutes.
    """
    looks = np.array([one.looks for one in prints], np.uint64)
    flat = np.array([one.is_flat for one in prints], bool)
    usable = np.flatnonzero(~flat)
    hashes = looks[usable]
    starts = range(0, len(usable), _ROWS)
    bar = progress(starts, len(starts), "comparing images", "block") if len(usable) > 4 * _ROWS else starts
    for start in bar:
        rows = hashes[start : start + _ROWS]
        near = _ones(rows[:, None] ^ hashes[None, start:]) <= MAX_BITS
        for row, column in np.argwhere(near):
            i, j = int(usable[start + row]), int(usable[start + column])
            if i < j and alike(prints[i], prints[j]):
                yield i, j


def groups(count: int, pairs: Iterator[tuple[int, int]]) -> list[list[int]]:
    """Return the sets of at least two numbers below `count` that pairs connect, sorted."""
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
