"""Reader of `torch.save` files, in zip and legacy format, that executes nothing in them."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from models.unpickle import STORAGE_TYPES, Name, PickleError, Storage, Unpickler
from utils.core.errors import UserError
from utils.core.input_files import require_regular

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DAMAGE = (
    ArithmeticError, AttributeError, PickleError, EOFError, LookupError, MemoryError, NotImplementedError, RuntimeError,
    TypeError, ValueError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_archive(path: Path) -> Any:
    """Read a file of `torch.save`: dictionaries, lists, tensors, and a `Record` for any other object.

    Raises:
        UserError: The file is missing, damaged, or of another kind, which the text names.
    """
    start = _first_bytes(path)
    try:
        if start.startswith(_ZIP):
            return _read_zip(path)
        if start.startswith(_PICKLE):
            return _read_legacy(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged or cut short; get the file again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    raise UserError(f"{path}: {_identify(start)}")


def _first_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a checkpoint file")
        require_regular(path)
        with path.open("rb") as stream:
            start = stream.read(512)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not start:
        raise UserError(f"{path}: the file is empty; get it again")
    return start


def _identify(start: bytes) -> str:
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not a checkpoint; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not a checkpoint; run `git lfs pull`"
    if start[257:262] == b"ustar":
        return "is a tar archive, not a checkpoint; unpack it first"
    return "is not a checkpoint (neither a zip archive nor a pickle of torch.save)"


def _to_storage(raw: bytearray, dtype: torch.dtype, count: int) -> Storage:
    """Interpret bytes as elements; the tensor keeps them alive."""
    if len(raw) < count * dtype.itemsize:
        raise EOFError("a storage is too short")
    if count == 0:
        return Storage(torch.empty(0, dtype=dtype))
    return Storage(torch.frombuffer(raw, dtype=dtype, count=count))


def _storage_id(identity: Any) -> tuple[torch.dtype, str, int]:
    """Parse a storage's persistent id into type, key and number of elements."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise PickleError("unknown persistent id")
    kind, key, count = identity[1], identity[2], identity[4]
    if not isinstance(kind, Name) or kind.name not in STORAGE_TYPES or not isinstance(key, str):
        raise PickleError("a storage of unknown type")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise PickleError("a storage of negative size")
    return STORAGE_TYPES[kind.name], key, count


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise UserError("is a TorchScript file, which cannot be trained; rename it to *.torchscript to run it")
        pickled = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
        if len(pickled) != 1:
            raise UserError("is a zip archive without a checkpoint")
        folder = pickled[0][: -len("data.pkl")]
        if folder + "byteorder" in names and _member(archive, folder + "byteorder", path).strip() != b"little":
            raise UserError("was written on a big-endian machine, which is not supported")
        storages: dict[str, tuple[torch.dtype, Storage]] = {}
        remaining = path.stat().st_size  # overlapping members could add up to more than the file

        def storage(identity: Any) -> Storage:
            nonlocal remaining
            dtype, key, count = _storage_id(identity)
            if key not in storages:
                remaining -= archive.getinfo(f"{folder}data/{key}").file_size
                if remaining < 0:
                    raise PickleError("storages are larger than the file")
                storages[key] = (dtype, _to_storage(_member(archive, f"{folder}data/{key}", path), dtype, count))
            known, values = storages[key]
            if known != dtype:
                raise PickleError("a storage of two types")
            return values

        return Unpickler(storage).load(io.BytesIO(_member(archive, pickled[0], path)))


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> bytearray:
    """Read a member and verify its checksum; compressed ones, which could expand without bound, are refused."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
        raise PickleError("a compressed member")
    content = bytearray(info.file_size)
    view, filled = memoryview(content), 0
    with archive.open(info) as stream:
        while piece := stream.read(1 << 22):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
    if filled != info.file_size:
        raise EOFError("a member is cut short")
    return content


class _LegacyStorages:
    """Storages of the format before torch 1.6: their elements follow the pickle at the end of the file."""

    def __init__(self, limit_bytes: int) -> None:
        self._remaining = limit_bytes
        self._buffers: dict[str, tuple[torch.dtype, int, bytearray]] = {}

    def __call__(self, identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]  # the rest is the source text of the class
        dtype, key, count = _storage_id(identity)
        if key not in self._buffers:
            size = count * dtype.itemsize
            self._remaining -= size
            if self._remaining < 0:
                raise EOFError("storages are larger than the file")
            self._buffers[key] = (dtype, count, bytearray(size))
        known, total, buffer = self._buffers[key]
        values = _to_storage(buffer, known, total).values
        view = identity[5] if len(identity) > 5 else None
        if known != dtype:
            raise PickleError("a storage of two types")
        if view is not None:
            _, offset, length = view
            values = torch.as_strided(values, (length,), (1,), offset)
        return Storage(values)

    def fill(self, keys: list[Any], stream: IO[bytes]) -> None:
        """Read the elements of each storage, which follow their count."""
        if sorted(keys) != sorted(self._buffers):
            raise PickleError("storages do not match")
        for key in keys:
            dtype, count, buffer = self._buffers[key]
            if struct.unpack("<q", stream.read(8))[0] != count:
                raise PickleError("a storage of another length")
            content = stream.read(math.prod((count, dtype.itemsize)))
            if len(content) != len(buffer):
                raise EOFError("cut short")
            buffer[:] = content


def _read_legacy(path: Path) -> Any:
    with path.open("rb") as stream:
        storages = _LegacyStorages(path.stat().st_size)
        machine = Unpickler(storages)
        if machine.load(stream) != _LEGACY_MAGIC:
            raise UserError("is a pickle that torch.save did not write")
        machine.load(stream)  # protocol version
        system = machine.load(stream)
        if not (isinstance(system, dict) and system.get("little_endian", True)):
            raise UserError("was written on a big-endian machine, which is not supported")
        value = machine.load(stream)
        storages.fill(machine.load(stream), stream)
        return value
