"""Reader for the top-level lists of a large JSON file, one decoded item at a time.

The file is mapped into memory and its lists are split into undecoded items by msgspec, so that only the references to
the items and one decoded item are held.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from utils.core.errors import UserError
from utils.core.input_files import require_regular

_BOM = b"\xef\xbb\xbf"
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_ITEM = msgspec.json.Decoder()


def stream_json(path: Path, lists: tuple[str, ...], on_read: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """Iterate over the items of lists in a JSON object.

    NaN and infinite numbers are read as Python's `json` reads them; a file that has any is decoded as a whole.

    Args:
        path: JSON file whose root is an object.
        lists: keys of the lists; other keys are skipped.
        on_read: called with the number of bytes of every item.

    Yields:
        (key, item) in the order of the file.

    Raises:
        UserError: the file is unreadable or not a JSON object; the message has the file and the line or item.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            for key, items in _lists_of(file, path):
                if key in lists:
                    yield from _decoded(key, items, path, on_read)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such JSON file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _lists_of(file: BinaryIO, path: Path) -> Iterator[tuple[str, list[Any]]]:
    head = file.read(len(_BOM))
    # an empty file cannot be mapped; the map is released with the last item that refers to it
    view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if head else b"")
    view = view[len(_BOM) :] if head == _BOM else view
    try:
        for key, value in _OBJECT.decode(view).items():
            if value and memoryview(value)[0] == ord("["):
                yield key, _LIST.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        found = re.search(r"byte (\d+)", str(error))
        at = int(found[1]) if found else len(view)
        if bytes(view[at : at + 3]) not in (b"NaN", b"Inf"):
            if isinstance(error, msgspec.ValidationError):
                at = 0
            line = bytes(view[:at]).count(b"\n") + 1
            raise UserError(f"{path}:{line}: not valid JSON ({str(error)[:120]}); is the file complete?") from error
        yield from _lenient(view, path)


def _lenient(view: memoryview, path: Path) -> Iterator[tuple[str, list[Any]]]:
    try:
        root = json.loads(bytes(view))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{getattr(error, 'lineno', 1)}: not valid JSON ({str(error)[:120]})") from error
    yield from ((key, value) for key, value in root.items() if isinstance(value, list))


def _decoded(key: str, items: list[Any], path: Path, on_read: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    for number, item in enumerate(items, 1):
        if not isinstance(item, msgspec.Raw):
            yield key, item
            continue
        on_read(len(memoryview(item)))
        try:
            yield key, _ITEM.decode(item)
        except (msgspec.DecodeError, RecursionError):
            try:
                value = json.loads(bytes(item))  # such as 1e999, which is infinite
            except (ValueError, RecursionError) as error:
                where = f"{path}: item {number} of `{key}`"
                raise UserError(f"{where}: not valid JSON ({str(error)[:120]})") from error
            yield key, value
