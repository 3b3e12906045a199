"""Decoded images and semantic maps: recently used ones per process, or all of them in memory or on disk (--cache)."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from utils.core.contracts import IGNORED_PIXEL
from utils.core.distributed import main_first, world_size
from utils.core.errors import UserError
from utils.core.files import atomic_path, user_cache
from utils.core.log import LOGGER, progress
from utils.datasets.file_access import container_of
from utils.datasets.image_files import ImageFault, read_image
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.scan import ThreadPool
from utils.datasets.labels.scan_cache import is_writable
from utils.ops.letterbox import BORDER

_RESERVE = 1.1  # of the estimated size must be free
_MAX_DECODING_THREADS = 8
ReadMap = Callable[[int], tuple[np.ndarray, str]]  # (H, W) uint8 classes of an image, and the fault of its mask file


def resized_hw(original_hw: tuple[int, int], size: int) -> tuple[int, int]:
    """Compute the size of an image whose long side becomes `size` (0: unchanged); the short side is truncated."""
    if size == 0:
        return original_hw
    scale = size / max(original_hw)
    return max(1, int(original_hw[0] * scale)), max(1, int(original_hw[1] * scale))


def resize_longest(image: np.ndarray, size: int, training: bool) -> np.ndarray:
    """Resize an image to a long side of `size`, by area averaging if it shrinks in evaluation, otherwise bilinearly."""
    height, width = resized_hw(image.shape[:2], size)
    if max(image.shape[:2]) == size or image.shape[:2] == (height, width):
        return image
    shrinks = size < max(image.shape[:2])
    interpolation = cv2.INTER_AREA if shrinks and not training else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)


@dataclass(frozen=True)
class CachedImage:
    """A decoded, resized image; grey with a `fault` if its file is unreadable. Arrays must not be written to."""

    image: np.ndarray  # (h, w, 3) uint8 BGR, or (h, w, 4) for training
    original_hw: tuple[int, int]
    fault: str = ""
    semantic: np.ndarray | None = None  # (h, w) uint8 class of each pixel, if the split has semantic maps
    map_fault: str = ""  # why all pixels are unlabelled

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.image.nbytes + (0 if self.semantic is None else self.semantic.nbytes)


class ImageCache:
    """Images of a split, decoded on demand and resized to one long side.

    Args:
        index: images of the split.
        size: long side in pixels; 0: the original size.
        training: images will be warped, see `Sample.image`.
        limit_bytes: size of the recently used images that are kept; 0: none.
        read_map: reads the semantic map of an image; None: no maps.
    """

    def __init__(
        self, index: Index, size: int, training: bool, limit_bytes: int, read_map: ReadMap | None = None
    ) -> None:
        self.index, self.size, self.training, self.limit_bytes = index, size, training, limit_bytes
        self.read_map = read_map
        self.decoded = 0  # number of decoded files
        self.in_memory: list[CachedImage] | None = None  # --cache ram
        self.array_path: Callable[[str], Path] | None = None  # --cache disk: file with the pixels of an image
        self._recent: OrderedDict[int, CachedImage] = OrderedDict()
        self._bytes = 0

    def get(self, number: int) -> CachedImage:
        """Return an image and keep it for later; an unreadable image is grey and has its size in the index."""
        if self.in_memory is not None or self.limit_bytes == 0:
            return self._for_warping(self.read(number))
        found = self._recent.get(number)
        if found is not None:
            self._recent.move_to_end(number)
            return found
        image = self._for_warping(self.read(number))
        self._recent[number] = image
        self._bytes += image.nbytes
        while self._bytes > self.limit_bytes and len(self._recent) > 1:
            self._bytes -= self._recent.popitem(last=False)[1].nbytes
        return image

    def read(self, number: int) -> CachedImage:
        """Return an image without keeping it: from memory if it is cached there, otherwise from its file."""
        return self.in_memory[number] if self.in_memory is not None else self._decode(number)

    def forget(self) -> None:
        """Drop the recently used images."""
        self._recent.clear()
        self._bytes = 0

    def cache_all(self, where: str) -> None:
        """Decode all images now, to memory ("ram") or to files ("disk"), if there is enough space.

        Raises:
            UserError: `where` is neither.
        """
        if where == "ram":
            self._cache_in_memory()
        elif where == "disk":
            with main_first():
                self._cache_on_disk()
        else:
            raise UserError(f"--cache expects ram or disk, got {where}")

    # ------------------------------------------------------------------------------------------------------------------

    def _for_warping(self, image: CachedImage) -> CachedImage:
        if not self.training:
            return image
        return replace(image, image=cv2.cvtColor(image.image, cv2.COLOR_BGR2BGRA))

    def _decode(self, number: int) -> CachedImage:
        self.decoded += 1
        try:
            pixels = self._read_pixels(self.index.path(number))
        except ImageFault as fault:
            height, width = (int(side) for side in self.index.shapes_hw[number])
            grey = np.full((*resized_hw((height, width), self.size), 3), BORDER, np.uint8)
            semantic = None if self.read_map is None else np.full(grey.shape[:2], IGNORED_PIXEL, np.uint8)
            return CachedImage(grey, (height, width), str(fault), semantic)
        image = resize_longest(pixels, self.size, self.training)
        if self.read_map is None:
            return CachedImage(image, (pixels.shape[0], pixels.shape[1]))
        semantic, map_fault = self.read_map(number)
        if self.size and semantic.shape != image.shape[:2]:
            semantic = cv2.resize(semantic, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return CachedImage(image, (pixels.shape[0], pixels.shape[1]), semantic=semantic, map_fault=map_fault)

    def _read_pixels(self, path: str) -> np.ndarray:
        cached = None if self.array_path is None else _load_array(self.array_path(path), path)
        return read_image(Path(path)) if cached is None else cached

    def _cache_in_memory(self) -> None:
        sizes = [resized_hw((int(h), int(w)), self.size) for h, w in self.index.shapes_hw]
        channels = 3 if self.read_map is None else 4
        need = _RESERVE * channels * sum(height * width for height, width in sizes) * world_size()
        if not _fits("ram", need, available_memory()):
            return
        with _decoding_pool() as pool:
            images = pool.map(self._decode, range(len(self.index)))
            self.in_memory = list(progress(images, len(self.index), f"caching {need / 1e9:.1f} GB in memory", "image"))

    def _cache_on_disk(self) -> None:
        paths = [self.index.path(number) for number in range(len(self.index))]
        missing = [n for n, path in enumerate(paths) if not _is_fresh(_array_path(path), path)]
        if missing:
            need = _RESERVE * 3 * int(self.index.shapes_hw[missing].astype(np.int64).prod(1).sum())
            folder = _array_path(paths[missing[0]]).parent
            folder.mkdir(parents=True, exist_ok=True)
            if not _fits("disk", need, shutil.disk_usage(folder).free):
                return
            with _decoding_pool() as pool:
                written = pool.map(_write_array, [paths[n] for n in missing])
                faults = [f for f in progress(written, len(missing), "caching images on disk", "image") if f]
            if faults:
                LOGGER.warning(f"--cache disk: {len(faults)} images not cached; the first: {faults[0]}")
        self.array_path = _array_path


def _fits(where: str, need: float, free: int) -> bool:
    if need > free:
        LOGGER.warning(f"--cache {where}: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; images not cached")
    return need <= free


def _decoding_pool() -> ThreadPool:
    return ThreadPool(max(1, min(_MAX_DECODING_THREADS, os.cpu_count() or 1)))


def _array_path(path: str) -> Path:
    """Return the cache file of an image: beside it, or in the user's cache if that is read-only or a shard."""
    image = Path(path)
    name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    fallback = user_cache() / "images" / f"{name}.npy"
    if container_of(path) != image:
        return fallback
    beside = image.with_name(image.name + ".npy")
    if beside.exists() or is_writable(image.parent):
        return beside
    return fallback


def _is_fresh(array: Path, path: str) -> bool:
    try:
        return array.stat().st_mtime_ns >= container_of(path).stat().st_mtime_ns
    except OSError:
        return False


def _load_array(array: Path, path: str) -> np.ndarray | None:
    if not _is_fresh(array, path):
        return None
    try:
        with array.open("rb") as file:
            pixels = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8 else None


def _write_array(path: str) -> str:
    """Cache the pixels of one image; return the fault, "" if there is none."""
    try:
        pixels = read_image(Path(path))
        with atomic_path(_array_path(path)) as temporary:
            np.save(temporary, pixels, allow_pickle=False)
    except (ImageFault, UserError) as error:
        return str(error)
    return ""


def available_memory() -> int:
    """Return the free memory in bytes, 0 if the system does not report it (then nothing is cached)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
    try:  # the limit of a container may be lower
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, limit - used))
