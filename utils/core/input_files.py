"""Reading of input files: regular files of bounded size, and folders in which links may form a loop."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from utils.core.log import LOGGER

MAX_IMAGE_BYTES = 2**30  # the largest supported image has half of it without compression


def read_input(path: Path, max_bytes: int) -> bytes:
    """Read a file that must be a regular file, since a pipe or a device could block or never end.

    Args:
        path: The file.
        max_bytes: Largest accepted size.

    Raises:
        OSError: The file cannot be read, is not a regular file or is larger than `max_bytes`; `strerror` says why.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:  # noqa: PTH123 - a descriptor, so that the file that is checked is the one read
        state = os.fstat(handle)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(21, "a folder, not a file", str(path))
        if not stat.S_ISREG(state.st_mode):
            kind = "pipe" if stat.S_ISFIFO(state.st_mode) else "device or socket"
            raise OSError(22, f"a {kind}, not a regular file", str(path))
        data = file.read(max_bytes + 1)  # some files of /proc have more content than their size says
    if len(data) > max_bytes:
        raise OSError(27, f"{max(state.st_size, len(data))} bytes are too many, at most {max_bytes}", str(path))
    return data


def require_regular(path: Path) -> None:
    """Check that a file is a regular file, before a library opens it by its name.

    Raises:
        OSError: The file does not exist, or is a folder, pipe or device.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device or socket"
        raise OSError(22, f"a {kind}, not a regular file", str(path))


def walk_files(folder: Path | str) -> Iterator[tuple[str, list[str]]]:
    """Walk through a folder and everything below it, with linked folders, but every folder once.

    Linked folders follow after all others, so that files are found under their real paths. Linked folders that were
    visited before, as in a loop, and unreadable folders are reported by a warning.

    Yields:
        Folder and the names of its files, in no particular order.
    """
    pending, links = [os.fspath(folder)], list[str]()
    visited: set[tuple[int, int]] = set()
    skipped: list[str] = []
    while pending or links:
        is_link = not pending
        links.sort(reverse=True)
        current = links.pop() if is_link else pending.pop()
        try:
            state = os.stat(current)  # noqa: PTH116 - a Path per folder costs seconds on a large set
            if (state.st_dev, state.st_ino) in visited:
                skipped += [current] if is_link else []
                continue
            if state.st_dev in _pseudo_devices():
                raise OSError(22, "a folder of the kernel, not of files")
            visited.add((state.st_dev, state.st_ino))
            with os.scandir(current) as found:
                entries = list(found)
        except OSError as error:
            LOGGER.warning(f"{current}: cannot be read ({error.strerror or error}); skipped")
            continue
        names = []
        for entry in entries:
            if not _is_folder(entry):
                names.append(entry.name)
            else:
                (links if entry.is_symlink() else pending).append(entry.path)
        yield current, names
    if skipped:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        LOGGER.warning(f"{skipped[0]}{more}: link to a folder that is searched already; skipped")


@cache
def _pseudo_devices() -> frozenset[int]:
    """Return the devices of /proc and /sys, whose links lead through the whole system."""
    return frozenset(os.stat(path).st_dev for path in ("/proc", "/sys") if Path(path).is_mount())  # noqa: PTH116


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or one through an unreadable folder
        return False
