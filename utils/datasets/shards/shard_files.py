"""Reading of members of tar shards by offset; nothing is extracted."""

from __future__ import annotations

import errno
import io
import os
from functools import lru_cache
from typing import IO

from utils.core.errors import UserError
from utils.datasets.shards.shard_index import ShardIndex, load_index

_MAX_OPEN = 64  # tar files kept open per process
_BUFFER = 16 * 1024  # bytes; the header of an image
_shards: dict[str, Shard] = {}  # opened by this process or its parent, by path


class _Descriptor:
    """Open file descriptor that is closed with its last user, so that threads can share it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(_MAX_OPEN)
def _descriptor(path: str, size: int, mtime_ns: int) -> _Descriptor:
    """Open a tar file; another size or time opens it again."""
    opened = _Descriptor(path)
    state = os.fstat(opened.number)
    if (state.st_size, state.st_mtime_ns) != (size, mtime_ns):
        raise OSError(errno.ESTALE, "the shard was changed after it was indexed; start again")
    return opened


class Shard:
    """An indexed tar file.

    Args:
        path: the tar file.

    Attributes:
        index: its members.
        notes: warnings about what was left out.
        stamp: size in bytes and modification time in nanoseconds.

    Raises:
        UserError: the file cannot be read or is refused.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stamp = stamp_of(path)
        self.index: ShardIndex
        self.index, self.notes = load_index(path)

    def read(self, member: int, start: int = 0, count: int | None = None) -> bytes:
        """Read `count` bytes of a member from byte `start`, at most to its end.

        Raises:
            OSError: the tar file changed or is truncated.
        """
        size = int(self.index.sizes[member])
        count = max(0, size - start if count is None else min(count, size - start))
        descriptor, offset = _descriptor(self.path, *self.stamp), int(self.index.offsets[member]) + start
        data = os.pread(descriptor.number, count, offset)
        while len(data) < count:  # some network file systems return less at once
            more = os.pread(descriptor.number, count - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, "the shard was truncated after it was indexed")
            data += more
        return data


def stamp_of(path: str) -> tuple[int, int]:
    """Return size and modification time of a file, zeros if it does not exist."""
    try:
        state = os.stat(path)  # noqa: PTH116 - called for every shard
    except OSError:
        return 0, 0
    return state.st_size, state.st_mtime_ns


def open_shard(path: str, check: bool = True) -> Shard:
    """Open a tar file, once per process.

    Args:
        path: the tar file.
        check: open it again if its size or modification time changed.

    Raises:
        UserError: the file cannot be read or is refused.
    """
    shard = _shards.get(path)
    if shard is None or (check and shard.stamp != stamp_of(path)):
        shard = _shards[path] = Shard(path)
    return shard


class _MemberFile(io.RawIOBase):
    """Seekable stream of a member."""

    def __init__(self, shard: Shard, member: int) -> None:
        super().__init__()
        self.shard, self.member, self.position = shard, member, 0
        self.size = int(shard.index.sizes[member])

    def readable(self) -> bool:
        """Support reading."""
        return True

    def seekable(self) -> bool:
        """Support seeking."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError("negative seek position")
        self.position = base + offset
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed lacks a name for buffers
        """Read into a buffer and return the number of bytes."""
        data = self.shard.read(self.member, self.position, len(buffer))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


def _find(path: str, name: str) -> tuple[Shard, int]:
    try:
        shard = open_shard(path, check=False)
    except UserError as error:  # it was indexed before, so it changed while the program runs
        raise OSError(errno.EIO, str(error)) from error
    member = shard.index.find(name.encode("utf-8", "surrogateescape"))
    if member is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return shard, member


def open_member(path: str, name: str) -> IO[bytes]:
    """Open a member of a tar file as a seekable stream.

    Raises:
        OSError: there is no such member, or the tar file cannot be read.
    """
    return io.BufferedReader(_MemberFile(*_find(path, name)), _BUFFER)


def read_member(path: str, name: str, max_bytes: int) -> bytes:
    """Read a member of a tar file.

    Raises:
        OSError: there is no such member, it is larger than `max_bytes`, or the tar file cannot be read.
    """
    shard, member = _find(path, name)
    size = int(shard.index.sizes[member])
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"{size} bytes are too many, at most {max_bytes}")
    return shard.read(member)


def has_member(path: str, name: str) -> bool:
    """Check whether a tar file has a member."""
    try:
        _find(path, name)
    except OSError:
        return False
    return True
