"""Decoded images near at hand: a small one in every worker, and on request all of them in memory or on disk."""

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
from utils.datasets.image_files import ImageFault, read_image
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.scan_cache import Pool, writable
from utils.ops.letterbox import BORDER

RESERVE = 1.1  # of the estimated need, has to fit
ReadClasses = Callable[[int], tuple[np.ndarray, str]]


def resized_hw(original_hw: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the size of an image whose longer side becomes `size`, truncated (behaviour.md 4.3); 0 changes nothing."""
    if size == 0:
        return original_hw
    scale = size / max(original_hw)
    return max(1, int(original_hw[0] * scale)), max(1, int(original_hw[1] * scale))


def resize_longest(image: np.ndarray, size: int, training: bool) -> np.ndarray:
    """Return the image with its longer side `size`; area averaging when shrinking for evaluation."""
    height, width = resized_hw(image.shape[:2], size)
    if max(image.shape[:2]) == size or image.shape[:2] == (height, width):
        return image
    shrinks = size < max(image.shape[:2])
    interpolation = cv2.INTER_AREA if shrinks and not training else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation)


@dataclass(frozen=True)
class Picture:
    """A decoded, resized image. `fault` says why it is a grey area instead."""

    image: np.ndarray  # (h, w, 3) uint8 BGR, or (h, w, 4) for training; not to be written to
    original_hw: tuple[int, int]
    fault: str = ""
    semantic: np.ndarray | None = None  # (h, w) uint8 class of each pixel, where the split has them
    map_fault: str = ""  # why none of its pixels has a label

    @property
    def nbytes(self) -> int:
        """Return how much memory it takes."""
        return self.image.nbytes + (0 if self.semantic is None else self.semantic.nbytes)


class Pictures:
    """The images of a split at one size (0: their own), by number.

    Holds at most `limit_bytes`, the least recently used go first. `classes(number)`, where given, returns the class of
    each pixel of an image and what is wrong with its mask.
    """

    def __init__(
        self, index: Index, size: int, training: bool, limit_bytes: int, classes: ReadClasses | None = None
    ) -> None:
        self.index, self.size, self.training, self.limit_bytes = index, size, training, limit_bytes
        self.classes = classes
        self.decoded = 0  # how often pixels were read, for measuring
        self.all: list[Picture] | None = None  # --cache ram
        self.arrays: Callable[[str], Path] | None = None  # --cache disk: where the pixels of a file lie
        self._recent: OrderedDict[int, Picture] = OrderedDict()
        self._bytes = 0

    def get(self, number: int) -> Picture:
        """Return an image; one that cannot be read is grey, of the size it had when it was indexed."""
        if self.all is not None:
            return self._widened(self.all[number])
        found = self._recent.get(number)
        if found is not None:
            self._recent.move_to_end(number)
            return found
        picture = self._widened(self.read(number))
        self._recent[number] = picture
        self._bytes += picture.nbytes
        while self._bytes > self.limit_bytes and len(self._recent) > 1:
            self._bytes -= self._recent.popitem(last=False)[1].nbytes
        return picture

    def _widened(self, picture: Picture) -> Picture:
        """Return the picture with the fourth channel that makes warping it twice as fast, if it will be warped."""
        if not self.training:
            return picture
        return replace(picture, image=cv2.cvtColor(picture.image, cv2.COLOR_BGR2BGRA))

    def forget(self) -> None:
        """Drop the images that were kept."""
        self._recent.clear()
        self._bytes = 0

    def read(self, number: int) -> Picture:
        """Return an image from its file."""
        self.decoded += 1
        path = self.index.path(number)
        try:
            image = self._pixels(path)
        except ImageFault as fault:
            height, width = (int(side) for side in self.index.shapes_hw[number])
            grey = np.full((*resized_hw((height, width), self.size), 3), BORDER, np.uint8)
            semantic = None if self.classes is None else np.full(grey.shape[:2], IGNORED_PIXEL, np.uint8)
            return Picture(grey, (height, width), str(fault), semantic)
        picture = Picture(resize_longest(image, self.size, self.training), (image.shape[0], image.shape[1]))
        if self.classes is None:
            return picture
        semantic, map_fault = self.classes(number)
        if semantic.shape != picture.image.shape[:2]:
            semantic = cv2.resize(semantic, picture.image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return replace(picture, semantic=semantic, map_fault=map_fault)

    def _pixels(self, path: str) -> np.ndarray:
        if self.arrays is not None:
            kept = _load_array(self.arrays(path), path)
            if kept is not None:
                return kept
        return read_image(Path(path))

    # ------------------------------------------------------------------------------------------------------------------

    def keep_all(self, where: str) -> None:
        """Decode everything now, into memory ("ram") or into files ("disk"), if there is room for it."""
        if where == "ram":
            self._keep_in_memory()
        elif where == "disk":
            with main_first():
                self._keep_on_disk()
        else:
            raise UserError(f"--cache {where}: ram or disk is expected")

    def _keep_in_memory(self) -> None:
        sizes = [resized_hw((int(h), int(w)), self.size) for h, w in self.index.shapes_hw]
        depth = 3 if self.classes is None else 4
        need = RESERVE * depth * sum(height * width for height, width in sizes) * world_size()
        free = available_memory()
        if need > free:
            LOGGER.warning(f"--cache ram: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; images are not kept")
            return
        with decoding_pool() as pool:
            read = pool.map(self.read, range(len(self.index)))
            self.all = list(progress(read, len(self.index), f"caching {need / 1e9:.1f} GB in memory", "image"))

    def _keep_on_disk(self) -> None:
        paths = [self.index.path(number) for number in range(len(self.index))]
        self.arrays = _array_path
        missing = [n for n, path in enumerate(paths) if not _fresh(_array_path(path), path)]
        if not missing:
            return
        need = RESERVE * 3 * int(self.index.shapes_hw[missing].astype(np.int64).prod(1).sum())
        folder = _array_path(paths[missing[0]]).parent
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if need > free:
            LOGGER.warning(
                f"--cache disk: needs {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; images are not kept"
            )
            self.arrays = None
            return
        with decoding_pool() as pool:
            written = pool.map(_write_array, [paths[n] for n in missing])
            faults = [f for f in progress(written, len(missing), "caching images on disk", "image") if f]
        if faults:
            LOGGER.warning(f"--cache disk: {len(faults)} images not kept; the first: {faults[0]}")


def decoding_pool() -> Pool:
    """Return threads that decode images: as many as processors, up to eight."""
    return Pool(max(1, min(8, os.cpu_count() or 1)))


def _array_path(path: str) -> Path:
    """Return where the pixels of an image file are kept: beside it, or in the user's cache if that is read-only."""
    image = Path(path)
    beside = image.with_name(image.name + ".npy")
    if beside.exists() or writable(image.parent):
        return beside
    name = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return user_cache() / "images" / f"{name}.npy"


def _fresh(array: Path, path: str) -> bool:
    try:
        return array.stat().st_mtime_ns >= Path(path).stat().st_mtime_ns
    except OSError:
        return False


def _load_array(array: Path, path: str) -> np.ndarray | None:
    if not _fresh(array, path):
        return None
    try:
        with array.open("rb") as file:
            pixels = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return pixels if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8 else None


def _write_array(path: str) -> str:
    """Keep the pixels of one image; return what went wrong, if anything."""
    try:
        pixels = read_image(Path(path))
        with atomic_path(_array_path(path)) as temporary:
            np.save(temporary, pixels, allow_pickle=False)
    except (ImageFault, UserError) as error:
        return str(error)
    return ""


def available_memory() -> int:
    """Return the bytes of memory that are free; 0 where the system does not say (then nothing is kept)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
    try:  # a container may have less than the machine
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, limit - used))
