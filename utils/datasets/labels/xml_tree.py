"""Safe XML parser: rejects document types and thus entity expansion; elements have line numbers."""

from __future__ import annotations

import xml.parsers.expat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.core.input_files import read_input

MAX_BYTES = 32 * 2**20
_MAX_DEPTH = 50
_MAX_ELEMENTS = 2_000_000


class XmlFault(Exception):  # noqa: N818 - consistent with the image faults
    """Invalid XML file; the message is `file:line: fault`."""


@dataclass
class Element:
    """XML element with its text, line and children."""

    tag: str
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def child(self, tag: str) -> Element | None:
        """Return the first child with a tag, None if there is none."""
        return next((one for one in self.children if one.tag == tag), None)

    def all(self, tag: str) -> Iterator[Element]:
        """Iterate over the children with a tag."""
        return (one for one in self.children if one.tag == tag)

    def value(self, *path: str) -> str:
        """Return the text at a path of tags, "" if there is no such element."""
        element: Element | None = self
        for tag in path:
            element = element.child(tag) if element is not None else None
        return element.text.strip() if element is not None else ""


def read_xml(path: Path) -> Element:
    """Parse an XML file and return its root element.

    Raises:
        FileNotFoundError: the file does not exist.
        XmlFault: the file is unreadable, invalid or too large.
    """
    try:
        data = read_input(path, MAX_BYTES)
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
        except (ValueError, LookupError) as error:  # an unknown encoding
            raise XmlFault(f"{self.path}:1: not valid XML ({str(error)[:80]})") from error
        return self.open[0].children[0]

    def _start(self, tag: str, _: dict[str, str]) -> None:
        self.count += 1
        if len(self.open) > _MAX_DEPTH or self.count > _MAX_ELEMENTS:
            raise XmlFault(f"{self.path}:{self.parser.CurrentLineNumber}: nested too deeply or too many elements")
        element = Element(tag, self.parser.CurrentLineNumber)
        self.open[-1].children.append(element)
        self.open.append(element)

    def _end(self, _: str) -> None:
        self.open.pop()

    def _text(self, text: str) -> None:
        self.open[-1].text += text

    def _doctype(self, *_: object) -> None:
        line = self.parser.CurrentLineNumber
        raise XmlFault(f"{self.path}:{line}: has a document type (DOCTYPE), which is not allowed; remove it")
