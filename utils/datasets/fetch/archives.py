"""Archives to files, trusting nothing: no path leaves the folder, no links, no devices, no bombs."""

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
from utils.core.log import progress

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_FILES = 5_000_000
MAX_RATIO = 100  # unpacked bytes for one of the archive, above the allowance
ALLOWANCE = 64 * 2**20  # bytes that any archive may unpack to
_CHUNK = 1 << 20
_MAX_NAME = 1000
_LONGEST_READ = 1 << 24  # bytes of a tar at once
_PASSED_OVER = 4  # times what may be unpacked, with headers and what is left out
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """One file of an archive, its path checked, and how to read it."""

    path: PurePosixPath
    content: IO[bytes]


def is_archive(name: str) -> bool:
    """Tell whether a file of that name can be unpacked."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path, strip: int = 0) -> int:
    """Unpack the files of `archive` into `folder`, without their first `strip` folders; return how many there are.

    UserError: damaged, encrypted, larger than such archives are, more than the disk holds, or with a member that is a
    link, a device or would lie outside of `folder`. What was written until then stays: unpack into a folder of its own.
    """
    limit = ALLOWANCE + MAX_RATIO * archive.stat().st_size
    room = shutil.disk_usage(_existing(folder)).free
    written = count = 0
    try:
        with progress(text=f"unpacking {archive.name}", unit="file") as bar:
            for member in _zip_members(archive) if _is_zip(archive) else _tar_members(archive):
                target = _target(member.path, folder, strip)
                if target is None:
                    continue
                count += 1
                if count > MAX_FILES:
                    raise UserError(f"{archive}: more than {MAX_FILES} files; refused")
                written = _write(member, target, archive, written, min(limit, room))
                bar.update()
    except _DAMAGE as error:
        raise UserError(f"{archive}: damaged archive ({str(error)[:120] or type(error).__name__})") from error
    except OSError as error:
        raise UserError(f"{archive}: cannot be unpacked ({error.strerror or str(error)[:120]})") from error
    if not count:
        raise UserError(f"{archive}: no files in it")
    return count


def _existing(folder: Path) -> Path:
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _is_zip(archive: Path) -> bool:
    return archive.name.lower().endswith(".zip")


def _write(member: Member, target: Path, archive: Path, written: int, limit: int) -> int:
    """Write a member; return how many bytes have been written in all. What headers say about sizes is not believed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while chunk := member.content.read(_CHUNK):
            written += len(chunk)
            if written > limit:
                raise UserError(f"{archive}: unpacks to more than {limit} bytes; refused")
            file.write(chunk)
    return written


def _target(path: PurePosixPath, folder: Path, strip: int) -> Path | None:
    """Return where a member goes; None for those that are left out."""
    if path.parts[0] == "__MACOSX" or path.name.startswith("._") or path.name == ".DS_Store":
        return None
    parts = path.parts[strip:]
    return folder.joinpath(*parts) if parts else None


def _checked(name: str, archive: Path) -> PurePosixPath:
    """Return the path of a member; one that could lead elsewhere is a UserError."""
    path = PurePosixPath(name.replace("\\", "/"))
    drive = bool(path.parts) and ":" in path.parts[0]
    if path.is_absolute() or drive or ".." in path.parts or "\0" in name or not path.parts or len(name) > _MAX_NAME:
        raise UserError(f"{archive}: {name[:80]!r} would be written outside of its folder; refused")
    return path


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if info.is_dir():
                continue
            path = _checked(info.filename, archive)
            if kind not in (0, stat.S_IFREG):
                raise UserError(f"{archive}: {info.filename[:80]!r} is a link or a device; refused")
            if info.flag_bits & 1:
                raise UserError(f"{archive}: is encrypted")
            with opened.open(info) as content:
                yield Member(path, content)


class _Measured(io.RawIOBase):
    """A decompressed tar that is read in pieces and ends somewhere.

    A header may say that a name or a comment has gigabytes, which tarfile would take into memory at once, and what is
    passed over costs time as well.
    """

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be moved in."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        if not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, position: int, whence: int = 0) -> int:
        """Move."""
        if position > self._limit:
            raise tarfile.ReadError(f"unpacks to more than {self._limit} bytes")
        return self._file.seek(position, whence)


def _decompressed(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        start = file.read(6)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((one for magic, one in openers.items() if start.startswith(magic)), open)
    opened: IO[bytes] = opener(archive, "rb")
    return opened


def _tar_members(archive: Path) -> Iterator[Member]:
    limit = _PASSED_OVER * (ALLOWANCE + MAX_RATIO * archive.stat().st_size)
    with _decompressed(archive) as file, tarfile.open(fileobj=_Measured(file, limit), mode="r:") as opened:
        for info in opened:
            if info.isdir():
                continue
            path = _checked(info.name, archive)
            if not info.isreg():
                raise UserError(f"{archive}: {info.name[:80]!r} is a link or a device; refused")
            content = opened.extractfile(info)
            if content is not None:
                with content:
                    yield Member(path, content)
            opened.members = []  # type: ignore[attr-defined]  # else a record of every file stays in memory
