"""Parser of tar headers: names, offsets and sizes of the regular files of an untrusted tar file.

The formats are ustar (POSIX.1-1988), pax (POSIX.1-2001) and GNU long names. Nothing is extracted, and no link is
followed: members that are not plain files are left out. What cannot be read safely is refused.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from utils.core.errors import UserError

BLOCK = 512
MAX_EXTENDED_BYTES = 2**20  # of a pax header or a long name
MAX_NAME_BYTES = 4096  # PATH_MAX of Linux
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_REGULAR, _FOLDER, _PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK = (b"0", b"\0"), b"5", b"x", b"g", b"L", b"K"
_ZEROS = bytes(BLOCK)


class Member(NamedTuple):
    """A regular file of a tar file."""

    name: bytes
    offset: int  # of its content in the tar file
    size: int


@dataclass
class _Extended:
    """Values of extended headers for the next member."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


class TarParser:
    """Iterator over the regular files of a tar file.

    Args:
        path: the tar file, for messages.
        descriptor: open file descriptor; it is read by offset, so its position does not matter.

    Attributes:
        skipped: number of members left out, by reason.
        has_end: the end-of-archive marker was found; without it the file may have been cut between two members.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"{path}: not a regular file; a shard must be a tar file on disk")
        self.length = state.st_size
        self.skipped: Counter[str] = Counter()
        self.has_end = False

    def __iter__(self) -> Iterator[Member]:
        """Yield the members in the order of the file.

        Raises:
            UserError: the file is no tar file, compressed, damaged or truncated, or a header is too large.
        """
        position, extended = 0, _Extended()
        while position < self.length:
            header = os.pread(self.descriptor, BLOCK, position)
            if header == _ZEROS:
                self.has_end = True
                return
            kind, size = self._checked(header, position)
            if kind in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
                content = self._extended_content(position + BLOCK, size)
                self._apply(kind, content, extended, position)
                position += BLOCK + _padded(size)
                continue
            size = size if extended.size is None else extended.size
            start = position + BLOCK
            name = extended.name if extended.name is not None else _header_name(header)
            if kind not in _REGULAR and kind != _FOLDER:
                size = size if kind in (b"7", b"S") or b"A" <= kind <= b"Z" else 0  # links and devices have no content
            if start + size > self.length:
                raise UserError(
                    f"{self.path}: truncated: member {_shown(name)} ends at byte {start + size}, the file at "
                    f"{self.length}; copy the file again"
                )
            position = start + _padded(size)
            if reason := _unusable(kind, name, extended):
                self.skipped[reason] += 1
            elif kind != _FOLDER and not name.endswith(b"/"):
                yield Member(_normalised(name), start, size)
            extended = _Extended()

    def _checked(self, header: bytes, position: int) -> tuple[bytes, int]:
        """Return the type and size of a header whose checksum is right."""
        if len(header) < BLOCK:
            raise UserError(f"{self.path}: truncated in the header at byte {position}; copy the file again")
        stated = _number(header[148:156])
        if stated is None or stated != sum(header) - sum(header[148:156]) + 8 * 32:
            if position:
                raise UserError(f"{self.path}: damaged header at byte {position}; copy the file again")
            for magic, name in _COMPRESSED.items():
                if header.startswith(magic):
                    raise UserError(f"{self.path}: compressed with {name}; shards must be plain tar files, unpack it")
            raise UserError(f"{self.path}: not a tar file")
        size = _number(header[124:136])
        if size is None:
            raise UserError(f"{self.path}: damaged size in the header at byte {position}; copy the file again")
        return header[156:157], size

    def _extended_content(self, start: int, size: int) -> bytes:
        if size > MAX_EXTENDED_BYTES:
            raise UserError(
                f"{self.path}: extended header of {size} bytes at byte {start}, at most {MAX_EXTENDED_BYTES} are "
                "read; write the file again without extended attributes"
            )
        content = os.pread(self.descriptor, size, start)
        if len(content) < size:
            raise UserError(f"{self.path}: truncated in the extended header at byte {start}; copy the file again")
        return content

    def _apply(self, kind: bytes, content: bytes, extended: _Extended, position: int) -> None:
        if kind == _GNU_NAME:
            extended.name = content.split(b"\0", 1)[0]
        if kind not in (_PAX, _PAX_GLOBAL):
            return
        values = _pax_records(content)
        if values is None:
            raise UserError(f"{self.path}: damaged extended header at byte {position}; copy the file again")
        special = [key for key in values if key in (b"path", b"size") or key.startswith(b"GNU.sparse")]
        if kind == _PAX_GLOBAL:
            if special:
                raise UserError(f"{self.path}: global header with {_shown(special[0])}; write it again without")
            return
        extended.name = values.get(b"path", extended.name)
        extended.sparse = extended.sparse or any(key.startswith(b"GNU.sparse") for key in values)
        if b"size" in values:
            extended.size = int(values[b"size"]) if values[b"size"].isdigit() and len(values[b"size"]) < 20 else None
            if extended.size is None:
                raise UserError(f"{self.path}: damaged size in the header at byte {position}; copy the file again")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int | None:
    """Read a number of a header, octal or (GNU) base 256; None if it is malformed or negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if not digits:
        return 0
    return int(digits, 8) if all(byte in b"01234567" for byte in digits) else None


def _header_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _pax_records(content: bytes) -> dict[bytes, bytes] | None:
    """Parse `length key=value` records; None if they are malformed."""
    values: dict[bytes, bytes] = {}
    while content.strip(b"\0"):
        digits, space, _ = content[:20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = content[len(digits) + 1 : max(length - 1, 0)].partition(b"=")
        if not space or not equals or length > len(content) or content[length - 1 : length] != b"\n":
            return None
        values[key] = value
        content = content[length:]
    return values


def _unusable(kind: bytes, name: bytes, extended: _Extended) -> str:
    """Explain why a member is left out; empty if it is a folder or a plain file with a safe name."""
    if kind == b"S" or extended.sparse:
        return "sparse files"
    if kind not in _REGULAR and kind != _FOLDER:
        return "links, devices or other special files"
    parts = name.split(b"/")
    if name.startswith(b"/") or b".." in parts or b"\\" in name or (kind != _FOLDER and not name):
        return "files with a path that leads out of the shard"
    if len(name) > MAX_NAME_BYTES or b"\n" in name or b"\0" in name or b"\r" in name:
        return "files with a name that is too long or has a line break"
    return ""


def _normalised(name: bytes) -> bytes:
    """Normalise a safe name like a path on disk: without `./`, `/./` and `//`."""
    return posixpath.normpath(name)


def _shown(name: bytes) -> str:
    return repr(name[:80].decode("utf-8", "replace"))
