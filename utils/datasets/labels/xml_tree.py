"""XML without its dangers: no document types, so no entities to expand; every element knows its line."""

from __future__ import annotations

import xml.parsers.expat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_BYTES = 32 * 2**20
_MAX_DEPTH = 50
_MAX_ELEMENTS = 2_000_000


class XmlFault(Exception):  # noqa: N818 - as image faults are called
    """A file that gives no tree. The message is `file:line: why`."""


@dataclass
class Element:
    """One element with its text and children."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, tag: str) -> Element | None:
        """Return the first child of that name."""
        return next((one for one in self.children if one.tag == tag), None)

    def all(self, tag: str) -> Iterator[Element]:
        """Yield the children of that name."""
        return (one for one in self.children if one.tag == tag)

    def value(self, *path: str) -> str:
        """Return the text at the end of a path of names, "" if there is none."""
        here: Element | None = self
        for tag in path:
            here = here.child(tag) if here is not None else None
        return here.text.strip() if here is not None else ""


def read_xml(path: Path) -> Element:
    """Return the root element of the file. Raises XmlFault; a file that is not there raises FileNotFoundError."""
    try:
        if path.is_fifo():  # opening it would wait for ever
            raise XmlFault(f"{path}:1: a pipe, not an XML file")
        if path.stat().st_size > MAX_BYTES:
            raise XmlFault(f"{path}:1: larger than {MAX_BYTES} bytes, no annotation of one image")
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise XmlFault(f"{path}:1: cannot be read ({error.strerror or error})") from error
    return _Tree(path).parse(data)


class _Tree:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.open: list[Element] = [Element("", 0)]
        self.count = 0
        self.parser: Any = xml.parsers.expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype

    def parse(self, data: bytes) -> Element:
        try:
            self.parser.Parse(data, True)
        except xml.parsers.expat.ExpatError as error:
            reason = xml.parsers.expat.ErrorString(error.code)
            raise XmlFault(f"{self.path}:{error.lineno}: not valid XML ({reason})") from error
        except (ValueError, LookupError) as error:  # an encoding that nobody knows
            raise XmlFault(f"{self.path}:1: not valid XML ({str(error)[:80]})") from error
        return self.open[0].children[0]

    def _start(self, tag: str, _: dict[str, str]) -> None:
        self.count += 1
        if len(self.open) > _MAX_DEPTH or self.count > _MAX_ELEMENTS:
            raise XmlFault(f"{self.path}:{self.parser.CurrentLineNumber}: too deep or too many elements, refused")
        element = Element(tag, self.parser.CurrentLineNumber)
        self.open[-1].children.append(element)
        self.open.append(element)

    def _end(self, _: str) -> None:
        self.open.pop()

    def _text(self, text: str) -> None:
        self.open[-1].text += text

    def _doctype(self, *_: object) -> None:
        line = self.parser.CurrentLineNumber
        raise XmlFault(f"{self.path}:{line}: has a document type (DOCTYPE), refused; annotations need none, remove it")
