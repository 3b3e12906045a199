"""The items of a large JSON file's lists one after the other, in little memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from utils.core.errors import UserError

_CHUNK = 2**22  # characters
_SPACE = " \t\n\r"
_DECODER = json.JSONDecoder()


class _Window:
    """The part of the text that is being read."""

    def __init__(self, file: TextIO, read: Callable[[int], None]) -> None:
        self.file, self.read = file, read
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self.size = _CHUNK

    def more(self) -> None:
        """Let go of what was used and read on."""
        self.line += self.text.count("\n", 0, self.at)
        chunk = self.file.read(self.size)
        self.read(len(chunk))
        self.ended = not chunk
        self.text, self.at = self.text[self.at :] + chunk, 0

    def peek(self) -> str:
        """Return the next character that is no space, "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def take(self, wanted: str) -> str:
        """Return the next character, which must be one of `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise json.JSONDecodeError(f"one of {wanted} is expected", self.text, self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        """Return the next value; one that is cut off by the window is tried again with more text."""
        self.peek()
        self.size = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError:
                if self.ended:
                    raise
            else:
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            self.size *= 2
            self.more()


def stream_json(path: Path, lists: tuple[str, ...], read: Callable[[int], None]) -> Iterator[tuple[str, Any]]:
    """Yield (key, item) for every item of the lists `lists` of the object in `path`; other keys are passed over.

    `read` is told how many characters were read. What is no JSON object is a UserError with file and line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            window = _Window(file, read)
            try:
                yield from _members(window, lists)
            except json.JSONDecodeError as error:
                line = window.line + window.text.count("\n", 0, error.pos)
                raise UserError(f"{path}:{line}: not valid JSON ({error.msg}); is the file complete?") from error
            except (RecursionError, UnicodeDecodeError, ValueError) as error:
                raise UserError(f"{path}:{window.line}: not valid JSON ({str(error)[:120]})") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such JSON file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _members(window: _Window, lists: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    window.take("{")
    while window.peek() != "}":
        key = window.value()
        window.take(":")
        if key in lists and window.peek() == "[":
            for item in _items(window):
                yield key, item
        else:
            window.value()
        if window.peek() != "}":
            window.take(",")
    window.take("}")


def _items(window: _Window) -> Iterator[Any]:
    window.take("[")
    if window.peek() == "]":
        window.take("]")
        return
    while True:
        yield window.value()
        if window.take(",]") == "]":
            return
