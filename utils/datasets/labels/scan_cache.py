"""What was found out about files, kept as arrays beside them and believed until a file changes."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from utils.core.errors import UserError
from utils.core.files import atomic_path, user_cache, write_text
from utils.core.log import LOGGER

Made = TypeVar("Made")


class Pool(ThreadPoolExecutor):
    """Threads that drop the work still in the queue when their block is left, so that Ctrl-C need not wait for it."""

    def __exit__(self, *exception: object) -> None:
        """Let running calls end, forget the others."""
        self.shutdown(wait=True, cancel_futures=True)


def files_key(header: bytes, images: list[str], labels: list[str]) -> str:
    """Return a hash of `header` and of the paths, sizes and times of images and labels."""
    paths = images + labels
    stamps = np.zeros((len(paths), 2), np.int64)
    for row, path in enumerate(paths):
        try:
            found = os.stat(path)  # noqa: PTH116 - a Path per file costs a second on a large set
        except OSError:
            continue
        stamps[row] = found.st_size, found.st_mtime_ns
    digest = hashlib.sha256(header)
    digest.update("\n".join(paths).encode("utf-8", "surrogateescape"))
    digest.update(stamps.tobytes())
    return digest.hexdigest()


def writable(folder: Path) -> bool:
    """Tell whether files may be put into a folder; one marked read-only is left alone even by root."""
    try:
        return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
    except OSError:
        return False


def cache_places(cache: Path) -> list[Path]:
    """Return where a cache file may lie, the preferred place first."""
    name = hashlib.sha256(str(cache.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    fallback = user_cache() / "index" / f"{name}.npz"
    return [cache, fallback] if writable(cache.parent) else [fallback]


def load_kept(
    places: list[Path], key: str, rebuild: Callable[[dict[str, np.ndarray]], Made]
) -> tuple[Made | None, list[str]]:
    """Return what `rebuild` makes of the arrays kept under `key`, and the report kept with them; (None, []) if none.

    `rebuild` raises ValueError or KeyError on arrays that do not fit together.
    """
    for place in places:
        if not place.is_file():
            continue
        try:
            with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                if str(stored["key"]) != key:
                    continue
                arrays = {name: stored[name] for name in stored.files if name not in ("key", "report")}
                report = stored["report"].tobytes().decode("utf-8", "replace").splitlines()
            return rebuild(arrays), report
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            LOGGER.warning(f"{place}: damaged cache ({str(error)[:80]}), made anew")
    return None, []


def keep(places: list[Path], key: str, arrays: dict[str, np.ndarray], report: list[str]) -> None:
    """Write arrays and report to the first place that takes them; the report as text beside them, too."""
    text = "\n".join(report)
    blob = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    for place in places:
        try:
            with atomic_path(place) as temporary:
                np.savez(temporary, key=np.array(key), report=blob, **arrays)  # type: ignore[arg-type]
            if report:
                write_text(place.with_suffix(".txt"), text + "\n")
                LOGGER.info(f"{place.with_suffix('.txt')}: full report of {len(report)} faults and oddities")
            return
        except UserError as error:
            LOGGER.warning(f"index not kept: {error}")
