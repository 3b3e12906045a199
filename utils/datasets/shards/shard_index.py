"""`ShardIndex`: the members of one tar file in flat arrays, and its cache beside the tar file."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from utils.core.errors import UserError
from utils.datasets.image_suffixes import IMAGE_SUFFIXES
from utils.datasets.labels.scan_cache import cache_paths, load_scan, save_scan
from utils.datasets.shards.tar_index import Member, TarParser

FORMAT_VERSION = 1  # of the cache; a change rebuilds all caches
CACHE_SUFFIX = ".polyolo-index.npz"
OTHER, IMAGE, MASK, TEXT, CLASS = range(5)  # kinds of members
MASK_ENDINGS = (".mask.png", ".seg.png")
_LABEL_KINDS = {b".txt": TEXT, b".cls": CLASS}
_IMAGE_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)
_LOSSY = (b".jpg", b".jpeg")  # a PNG with the stem of such an image is its mask
_NO_MASK = -1


@dataclass(frozen=True)
class ShardIndex:
    """Names, places and kinds of n members of a tar file, in its order."""

    name_bytes: np.ndarray  # uint8, concatenated names
    name_starts: np.ndarray  # (n + 1,) int64
    offsets: np.ndarray  # (n,) int64, bytes
    sizes: np.ndarray  # (n,) int64, bytes
    kinds: np.ndarray  # (n,) uint8
    masks: np.ndarray  # (n,) int32: the mask of an image, -1 for none and for other members
    by_name: np.ndarray  # (n,) int32: members in the order of their names

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, member: int) -> bytes:
        """Return the name of a member."""
        start, end = self.name_starts[member : member + 2]
        return self.name_bytes[start:end].tobytes()

    def find(self, name: bytes) -> int | None:
        """Find a member by its name."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.name(int(self.by_name[middle])) < name:
                low = middle + 1
            else:
                high = middle
        member = int(self.by_name[low]) if low < len(self) else -1
        return member if member >= 0 and self.name(member) == name else None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name, for the cache."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def build(cls, members: list[Member]) -> ShardIndex:
        """Build the index of members with distinct names."""
        names = [member.name for member in members]
        kinds, masks = _classify(names)
        lengths = np.array([len(name) for name in names], np.int64)
        return cls(
            name_bytes=np.frombuffer(b"".join(names), np.uint8),
            name_starts=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
            offsets=np.array([member.offset for member in members], np.int64),
            sizes=np.array([member.size for member in members], np.int64),
            kinds=kinds,
            masks=masks,
            by_name=np.array(sorted(range(len(names)), key=names.__getitem__), np.int32),
        )


def load_index(path: str) -> tuple[ShardIndex, list[str]]:
    """Load the index of a tar file from its cache, or parse the headers and write the cache.

    The cache is valid while size and modification time of the tar file are unchanged.

    Args:
        path: the tar file.

    Returns:
        The index and warnings about what was left out.

    Raises:
        UserError: the file cannot be read or is refused, see `TarParser`.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would block
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        state = os.fstat(descriptor)
        key = f"polyolo shard {FORMAT_VERSION} {state.st_size} {state.st_mtime_ns}"
        caches = cache_paths(Path(path + CACHE_SUFFIX))
        index, notes = load_scan(caches, key, _restored)
        if index is None:
            index, notes = _parse(path, TarParser(path, descriptor))
            save_scan(caches, key, index.arrays(), notes)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    finally:
        os.close(descriptor)
    return index, notes


def _parse(path: str, parser: TarParser) -> tuple[ShardIndex, list[str]]:
    found: dict[bytes, Member] = {}
    repeated = 0
    for member in parser:
        repeated += found.pop(member.name, None) is not None  # the last one counts, as in an extracted tar file
        found[member.name] = member
    skipped = [f"{count} {reason} left out" for reason, count in parser.skipped.items()]
    skipped += [f"{repeated} repeated names, the last file of each is used"] if repeated else []
    skipped += [] if parser.has_end else ["no end marker, so files may be missing; compare it with the original"]
    return ShardIndex.build(list(found.values())), [f"{path}: {'; '.join(skipped)}"] if skipped else []


def _classify(names: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Determine the kind of each member and the mask of each image."""
    kinds, masks = np.zeros(len(names), np.uint8), np.full(len(names), _NO_MASK, np.int32)
    mask_endings = tuple(ending.encode() for ending in MASK_ENDINGS)
    images: list[tuple[int, bytes, bytes]] = []
    mask_of: dict[bytes, int] = {}  # by stem
    lossy: set[bytes] = set()
    for member, name in enumerate(names):
        stem, suffix = os.path.splitext(name)  # noqa: PTH122 - names are bytes
        suffix = suffix.lower()
        if os.path.basename(name).startswith(b"._"):  # noqa: PTH119  # macOS resource forks
            continue
        if name.endswith(mask_endings):
            kinds[member], mask_of[os.path.splitext(stem)[0]] = MASK, member  # noqa: PTH122
        elif suffix in _IMAGE_SUFFIXES:
            images.append((member, stem, suffix))
            lossy |= {stem} if suffix in _LOSSY else set()
        else:
            kinds[member] = _LABEL_KINDS.get(suffix, OTHER)
    for member, stem, suffix in images:
        is_mask = suffix == b".png" and stem in lossy
        kinds[member] = MASK if is_mask else IMAGE
        if is_mask:
            mask_of.setdefault(stem, member)
    for member, stem, _ in images:
        if kinds[member] == IMAGE:
            masks[member] = mask_of.get(stem, _NO_MASK)
    return kinds, masks


def _restored(arrays: dict[str, np.ndarray]) -> ShardIndex:
    """Rebuild the index from cached arrays; raises ValueError if they are inconsistent."""
    index = ShardIndex(**arrays)
    if any(array.dtype.kind not in "iu" or array.ndim != 1 for array in arrays.values()):
        raise ValueError("wrong type of an array")
    count, starts = len(index), index.name_starts
    if any(len(values) != count for values in (index.sizes, index.kinds, index.masks, index.by_name)):
        raise ValueError("inconsistent array lengths")
    if len(starts) != count + 1 or starts[0] != 0 or starts[-1] != len(index.name_bytes) or (np.diff(starts) < 0).any():
        raise ValueError("inconsistent names")
    lowest = (index.offsets.min(), index.sizes.min(), index.masks.min() - _NO_MASK) if count else (0,)
    if min(lowest) < 0 or (count and index.masks.max() >= count):
        raise ValueError("values out of range")
    if not np.array_equal(np.sort(index.by_name), np.arange(count)):
        raise ValueError("inconsistent order of names")
    return index
