"""Scan of a data-set split: check all files in parallel, report faults, cache the result.

`label_scan` and `semantic_scan` define what is checked per image; everything else is shared here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from utils.core.distributed import main_first
from utils.core.errors import UserError
from utils.core.log import LOGGER, progress
from utils.datasets.image_files import ImageFault, probe_image
from utils.datasets.labels.scan_cache import cache_paths, load_scan, save_scan

MIN_SIDE_PX = 10  # smaller images are rejected, as in YOLOv5
MAX_FAULT_FRACTION = 0.01  # of label files, masks or objects, unless --allow-label-faults is given
_MAX_LOGGED = 10  # report lines on the console; the rest is in the report file
_MAX_THREADS = 16


class ThreadPool(ThreadPoolExecutor):
    """Thread pool that cancels queued work when its `with` block is left, so that Ctrl-C takes effect at once."""

    def __exit__(self, *exception: object) -> None:
        """Wait for running calls and cancel all others."""
        self.shutdown(wait=True, cancel_futures=True)


class ScanResult(Protocol):
    """Result of a scan that can be cached as arrays."""

    def __len__(self) -> int:
        """Count the usable images."""

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name."""


Labels = TypeVar("Labels")
Result = TypeVar("Result", bound=ScanResult)


@dataclass(slots=True)
class CheckedImage(Generic[Labels]):
    """Outcome of checking one image and its labels; `labels` and `shape_hw` are None if it cannot be used."""

    labels: Labels | None = None
    shape_hw: tuple[int, int] | None = None
    image_fault: str = ""
    label_faults: Sequence[str] = ()
    notes: Sequence[str] = ()  # warnings
    in_split: bool = True  # False: not listed in the annotations, neither used nor reported


@dataclass(frozen=True)
class SplitScan(Generic[Labels, Result]):
    """Description of a scan: what to check per image, and how to collect and cache the results."""

    num_images: int
    check: Callable[[int], CheckedImage[Labels]]  # thread-safe
    collect: Callable[[Iterator[CheckedImage[Labels]]], Result]  # receives the outcome of every image, in order
    restore: Callable[[dict[str, np.ndarray]], Result]  # raises ValueError or KeyError for inconsistent arrays
    cache: Path
    key: str  # see `files_key`
    text: str  # progress-bar label
    prepare: Callable[[], list[str]] | None = None  # called before the first check, returns warnings
    images_per_task: int = 1  # images that a thread checks in a row

    def run(self) -> tuple[Result, list[str]]:
        """Load the cached result or check every image.

        Returns:
            The result and the report: one line per fault or warning, label faults first, then image faults.
        """
        with main_first():
            paths = cache_paths(self.cache)
            result, report = load_scan(paths, self.key, self.restore)
            if result is None:
                result, report = self._check_all()
                if len(result):  # an empty result ends the program, so there is nothing to cache
                    save_scan(paths, self.key, result.arrays(), report)
        return result, report

    def _check_all(self) -> tuple[Result, list[str]]:
        notes = self.prepare() if self.prepare is not None else []
        label_faults: list[str] = []
        image_faults: list[str] = []

        def reported() -> Iterator[CheckedImage[Labels]]:
            for checked in self._checked():
                label_faults.extend(checked.label_faults)
                image_faults.extend([checked.image_fault] if checked.image_fault else [])
                notes.extend(checked.notes)
                yield checked

        return self.collect(reported()), label_faults + image_faults + notes

    def _checked(self) -> Iterator[CheckedImage[Labels]]:
        step = self.images_per_task
        groups = [range(start, min(start + step, self.num_images)) for start in range(0, self.num_images, step)]
        with ThreadPool(min(_MAX_THREADS, 4 * (os.cpu_count() or 1))) as pool:
            results = pool.map(lambda group: [self.check(image) for image in group], groups)
            yield from progress((one for group in results for one in group), self.num_images, self.text, "image")


def check_image(path: str, notes: list[str]) -> tuple[int, int]:
    """Check that an image file is readable and large enough.

    Args:
        path: image file; only its header is read.
        notes: receives warnings.

    Returns:
        The (height, width) of the image.

    Raises:
        ImageFault: the file is unreadable or a side is shorter than `MIN_SIDE_PX`.
    """
    height, width = probe_image(Path(path), notes)
    if min(height, width) < MIN_SIDE_PX:
        raise ImageFault(f"{path}: {width} x {height} pixels, smaller than {MIN_SIDE_PX}")
    return height, width


def log_summary(text: str, report: list[str], split: str) -> None:
    """Log the summary of a scan and the first lines of its report."""
    LOGGER.info(text)
    for line in report[:_MAX_LOGGED]:
        LOGGER.warning(line)
    if len(report) > _MAX_LOGGED:
        LOGGER.warning(f"{split}: {len(report) - _MAX_LOGGED} more, all in the report file beside the cache")


def require_few_faults(faulty: int, total: int, kind: str, first: str, source: str) -> None:
    """Reject a split with too many faulty files.

    Args:
        faulty: number of faulty files.
        total: number of files.
        kind: name of the files in the message, such as "label files".
        first: first fault.
        source: data YAML and key of the split.

    Raises:
        UserError: more than `MAX_FAULT_FRACTION` of the files are faulty.
    """
    if faulty > MAX_FAULT_FRACTION * total:
        raise UserError(
            f"{source} has {faulty} faulty {kind} among {total}, the first: {first}; correct them or pass "
            "--allow-label-faults to skip their images"
        )


def require_images(usable: int, total: int, first: str, source: str) -> None:
    """Reject a split without a usable image.

    Raises:
        UserError: `usable` is 0; the message has the number of images and the first fault.
    """
    if usable == 0:
        raise UserError(f"{source}: none of {total} images can be used, the first: {first}")
