"""Cache of scan results: arrays in an .npz file beside the labels, valid until a file of the split changes."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from utils.core.errors import UserError
from utils.core.files import atomic_path, user_cache, write_text
from utils.core.log import LOGGER

CACHE_SUFFIX = ".polyolo-cache.npz"
Restored = TypeVar("Restored")
_DAMAGE = (  # LookupError: wrong counts, and names of members in a character set that cannot be loaded
    OSError, ValueError, LookupError, TypeError, EOFError, AttributeError, ArithmeticError, MemoryError, RuntimeError,
    zipfile.BadZipFile,
)  # fmt: skip


def files_key(header: bytes, paths: list[str]) -> str:
    """Hash `header` and the paths, sizes and modification times of files.

    Args:
        header: format version and everything else that the scan result depends on.
        paths: image and label files, or the shards that hold them; "" and missing files count as empty.

    Returns:
        The SHA-256 digest in hexadecimal.
    """
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


def short_hash(parts: list[str]) -> str:
    """Hash strings to eight hexadecimal digits, to tell cache files in one folder apart."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def is_writable(folder: Path) -> bool:
    """Check whether files may be written to a folder; read-only permissions bind root as well."""
    try:
        return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
    except OSError:
        return False


def cache_paths(cache: Path) -> list[Path]:
    """List the candidate paths of a cache file: beside the labels if writable, then in the user's cache folder."""
    name = hashlib.sha256(str(cache.absolute()).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    fallback = user_cache() / "index" / f"{name}.npz"
    return [cache, fallback] if is_writable(cache.parent) else [fallback]


def load_scan(
    paths: list[Path], key: str, restore: Callable[[dict[str, np.ndarray]], Restored]
) -> tuple[Restored | None, list[str]]:
    """Load a cached scan result.

    Args:
        paths: candidate cache files, see `cache_paths`.
        key: expected key, see `files_key`; a file with another key is ignored.
        restore: builds the result from its arrays; raises ValueError or KeyError if they are inconsistent.

    Returns:
        The result and its report, or (None, []) without a valid cache. A damaged file is logged.
    """
    for path in paths:
        if not path.is_file():
            continue
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                _require_plain(stored.zip, path)
                if str(stored["key"]) != key:
                    continue
                arrays = {name: stored[name] for name in stored.files if name not in ("key", "report")}
                report = stored["report"].tobytes().decode("utf-8", "replace").splitlines()
            return restore(arrays), report
        except _DAMAGE as error:
            LOGGER.warning(f"{path}: damaged cache, rebuilding it ({str(error)[:80]})")
    return None, []


def _require_plain(archive: zipfile.ZipFile | None, path: Path) -> None:
    """Check that the members of a cache are stored as they are, so that none can be larger than the file."""
    members = archive.infolist() if archive is not None else []
    if any(one.compress_type != zipfile.ZIP_STORED for one in members) or (
        sum(one.file_size for one in members) > path.stat().st_size
    ):
        raise ValueError("compressed or damaged members")


def save_scan(paths: list[Path], key: str, arrays: dict[str, np.ndarray], report: list[str]) -> None:
    """Write a scan result to the first candidate path that is writable, and its report beside it as a text file."""
    text = "\n".join(report)
    blob = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    for path in paths:
        try:
            with atomic_path(path) as temporary:
                np.savez(temporary, key=np.array(key), report=blob, **arrays)  # type: ignore[arg-type]
            if report:
                write_text(path.with_suffix(".txt"), text + "\n")
                LOGGER.info(f"{path.with_suffix('.txt')}: full report of {len(report)} faults and warnings")
            return
        except UserError as error:
            LOGGER.warning(f"scan result not cached: {error}")
