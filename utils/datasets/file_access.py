"""Access to the content of files, which may be members of tar shards: `train-000.tar/000123.jpg`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from utils.core.input_files import MAX_IMAGE_BYTES, read_input, require_regular

_MARK = f".tar{os.sep}"


def split_member(path: str | Path) -> tuple[str, str] | None:
    """Split the path of a member into the tar file and the name in it; None for the path of an ordinary file."""
    text = str(path)
    end = text.find(_MARK)
    while end >= 0:
        if os.path.isfile(text[: end + 4]):  # noqa: PTH113 - called for every image  # a folder may be called x.tar
            return text[: end + 4], text[end + 5 :].replace(os.sep, "/")
        end = text.find(_MARK, end + 1)
    return None


def open_binary(path: str | Path) -> IO[bytes]:
    """Open a file or a member of a shard for reading.

    Raises:
        OSError: it is missing or unreadable, or the shard was truncated.
    """
    found = split_member(path)
    if found is None:
        require_regular(Path(path))
        return Path(path).open("rb")
    from utils.datasets.shards.shard_files import open_member

    return open_member(*found)


def read_binary(path: str | Path, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """Read a file or a member of a shard.

    Raises:
        OSError: it is missing, unreadable, no regular file or larger than `max_bytes`, or the shard was truncated.
    """
    found = split_member(path)
    if found is None:
        return read_input(Path(path), max_bytes)
    from utils.datasets.shards.shard_files import read_member

    return read_member(*found, max_bytes)


def is_present(path: str | Path) -> bool:
    """Check whether a file or a member of a shard exists."""
    found = split_member(path)
    if found is None:
        return Path(path).is_file()
    from utils.datasets.shards.shard_files import has_member

    return has_member(*found)


def container_of(path: str | Path) -> Path:
    """Return the file that holds the content: the tar file of a member, otherwise the file itself."""
    found = split_member(path)
    return Path(path) if found is None else Path(found[0])
