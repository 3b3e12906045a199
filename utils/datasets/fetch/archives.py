"""Extraction of untrusted archives: no path leaves the folder, no links, no devices, bounded size.

Tar members pass `tarfile.data_filter` (PEP 706), which refuses paths outside of the folder. Links are refused
altogether, because no data set needs them, and the number of bytes is limited. `zipfile` has no such filter, so member
names are validated here as well.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from utils.core.errors import UserError
from utils.core.input_files import require_regular
from utils.core.log import progress

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_FILES = 5_000_000
MAX_RATIO = 100  # extracted bytes per byte of the archive, above the allowance
ALLOWANCE = 64 * 2**20  # bytes that any archive may extract to
_CHUNK = 1 << 20
_MAX_NAME = 1000
_MAX_READ = 1 << 24  # bytes of a tar at once
_SKIPPED_RATIO = 4  # decompressed bytes, headers and skipped members included, per byte that may be extracted
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """One regular file of an archive: its validated path and a stream of its content."""

    path: PurePosixPath
    content: IO[bytes]


def is_archive(name: str) -> bool:
    """Check by its suffix whether a file can be extracted."""
    return name.lower().endswith(SUFFIXES)


def extract(archive: Path, folder: Path, strip: int = 0) -> int:
    """Extract the files of `archive` into `folder`.

    Args:
        archive: A zip or tar file.
        folder: Destination. Files extracted before an error stay there, so give it a folder of its own.
        strip: Number of leading path components removed from each member, as in `tar --strip-components`.

    Returns:
        Number of files extracted.

    Raises:
        UserError: The archive is damaged, encrypted, larger than MAX_RATIO or the disk allow, or has a member that is
            a link or a device or would be written outside of `folder`.
    """
    try:
        require_regular(archive)
    except OSError as error:
        raise UserError(f"{archive}: cannot be extracted ({error.strerror or error})") from error
    limit = ALLOWANCE + MAX_RATIO * archive.stat().st_size
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    limit = min(limit, shutil.disk_usage(existing).free)
    members = _zip_members(archive) if archive.name.lower().endswith(".zip") else _tar_members(archive, folder)
    written = count = 0
    try:
        with progress(text=f"extracting {archive.name}", unit="file") as bar:
            for member in members:
                target = _target(member.path, folder, strip)
                if target is None:
                    continue
                count += 1
                if count > MAX_FILES:
                    raise UserError(f"{archive}: more than {MAX_FILES} files; refused")
                written = _write(member, target, archive, written, limit)
                bar.update()
    except _DAMAGE as error:
        raise UserError(f"{archive}: damaged archive ({str(error)[:120] or type(error).__name__})") from error
    except OSError as error:
        raise UserError(f"{archive}: cannot be extracted ({error.strerror or str(error)[:120]})") from error
    if not count:
        raise UserError(f"{archive}: contains no files")
    return count


def _write(member: Member, target: Path, archive: Path, written: int, limit: int) -> int:
    """Write a member and return the bytes written so far; sizes in headers are not trusted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while chunk := member.content.read(_CHUNK):
            written += len(chunk)
            if written > limit:
                raise UserError(f"{archive}: extracts to more than {limit} bytes; refused")
            file.write(chunk)
    return written


def _target(path: PurePosixPath, folder: Path, strip: int) -> Path | None:
    """Path to write a member to; None for macOS metadata and members without path components after stripping."""
    if path.parts[0] == "__MACOSX" or path.name.startswith("._") or path.name == ".DS_Store":
        return None
    parts = path.parts[strip:]
    return folder.joinpath(*parts) if parts else None


def _safe_path(name: str, archive: Path) -> PurePosixPath:
    """Validate a member's name, backslashes and drives included, which matter on Windows only."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = bool(path.parts) and ":" in path.parts[0]
    if path.is_absolute() or drive or ".." in path.parts or "\0" in name or not path.parts or len(name) > _MAX_NAME:
        raise UserError(f"{archive}: member {name[:80]!r} would be written outside of its folder; refused")
    return path


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            if info.is_dir():
                continue
            path = _safe_path(info.filename, archive)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise UserError(f"{archive}: member {info.filename[:80]!r} is a link or a device; refused")
            if info.flag_bits & 1:
                raise UserError(f"{archive}: encrypted; extract it yourself")
            with opened.open(info) as content:
                yield Member(path, content)


class _BoundedFile(io.RawIOBase):
    """Decompressed tar with limits on one read and on the position.

    A header may announce a name or a comment of gigabytes, which tarfile would read into memory at once, and skipped
    members cost decompression time as well.
    """

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit

    def readable(self) -> bool:
        """Support reading."""
        return True

    def seekable(self) -> bool:
        """Support seeking."""
        return True

    def tell(self) -> int:
        """Get the position."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, at most _MAX_READ."""
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        """Move to a position below the limit."""
        if position > self._limit:
            raise tarfile.ReadError(f"extracts to more than {self._limit} bytes")
        return self._file.seek(position, whence)


def _open_decompressed(archive: Path) -> IO[bytes]:
    """Open a tar, decompressed by its first bytes; the suffix may be wrong."""
    with archive.open("rb") as file:
        start = file.read(6)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((function for magic, function in openers.items() if start.startswith(magic)), open)
    opened: IO[bytes] = opener(archive, "rb")
    return opened


def _tar_members(archive: Path, folder: Path) -> Iterator[Member]:
    limit = _SKIPPED_RATIO * (ALLOWANCE + MAX_RATIO * archive.stat().st_size)
    with _open_decompressed(archive) as file, tarfile.open(fileobj=_BoundedFile(file, limit), mode="r:") as opened:
        for info in opened:
            if info.isdir():
                continue
            if not info.isreg():
                raise UserError(f"{archive}: member {info.name[:80]!r} is a link or a device; refused")
            try:
                filtered = tarfile.data_filter(info, str(folder))
            except tarfile.FilterError as error:
                message = f"member {info.name[:80]!r} would be written outside of its folder; refused"
                raise UserError(f"{archive}: {message}") from error
            path = _safe_path(filtered.name, archive)
            content = opened.extractfile(info)
            if content is not None:
                with content:
                    yield Member(path, content)
            opened.members = []  # type: ignore[attr-defined]  # otherwise every member's header stays in memory
