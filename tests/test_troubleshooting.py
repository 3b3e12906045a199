"""The troubleshooting page quotes messages that the programs really have."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [text for _, text in re.findall(r"^### (``?)(.*…[^`].*|.*…|--.*)\1$", PAGE, re.MULTILINE)]
FROM_THE_SYSTEM = {"No space left on device"}  # text in a message that is not the project's


@cache
def messages():
    """Return all texts of the source code, with a gap for each value that is filled in."""
    folders = ("models", "utils", "tools", "polyolo")
    files = [*ROOT.glob("*.py"), *(path for name in folders for path in (ROOT / name).rglob("*.py"))]
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def matches(quoted, message):
    """Compare a heading with a message: its parts between the gaps occur in it in this order."""
    for text in FROM_THE_SYSTEM:
        quoted = quoted.replace(text, "…")
    position = 0
    for part in filter(None, (part.strip(" :`\\") for part in quoted.split("…"))):
        position = message.find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_messages_exist(quoted):
    assert any(matches(quoted, message) for message in messages()), quoted


def test_wrong_quotations_are_found():
    assert len(QUOTED) >= 12
    assert matches("…: no such file, and … here", "x: no such file, and y is here")
    assert not matches("…: no such folder", "…: no such file")
