"""Terminology of code, help and documentation: the field's terms instead of retired ones, and no missing documents."""

import argparse
import functools
import re
import subprocess
from pathlib import Path

import pytest

from docs.write_options import PROGRAMS, commands_of, parser_of

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".html", ".toml", ".yaml"}
RETIRED = {  # pattern: what to write instead
    r"(?<!non-maximum )(?<!`)\bsuppression\b": "NMS or non-maximum suppression",
    r"(?<![-_.`'])\bpictures?\b(?![-_\":`])": "image, plot or figure",  # options and keys may be called so
    r"\bfilms?\b": "video",
    r"\bclass(?:es)? (?:of|per) pixels?\b": "semantic map or semantic classes",
    r"\bheads? for pixels\b|\bpixel labels\b": "semantic head, semantic labels",
    r"(?<![-\w])(?:behaviour|cli|decisions)\.md\b": "the reason, a paper, or a page of docs/reference",
    r"\bcrew\b": "worker pool",
    r"\bwish(?:es)?\b": "options or request",
    r"\breckon\w*": "compute",
    r"\btold\b(?! (?:apart|from))|\b_tell\b": "notified, logged or passed",
    r"\b(?:a|the|its|their) shares? of\b": "fraction or ratio",
    r"\blesser box\b": "lower-scoring box",
    r"\boccurs? nowhere\b": "absent from the data set",
    r"\bpasses over the training\b": "training epochs",
    r"\bturn about\b": "alternately",
    r"\bwho(?:m)?ever\b|\bnobody\b": "the process, user or client that is meant",
    r"\banew\b|\bafresh\b": "again",
    r"\bspoil\w*": "corrupt or damage",
    r"\bstands? twice\b": "duplicate",
    r"\bh[au]ng up\b": "close the connection",
    r"\b(?:checkpoint|model|hyp file|data YAML)'s own\b": "(default: from the checkpoint)",
    r'"""(?:Return (?:what|whether|how)|Tell whether|What|Of) ': "an imperative summary that names the object",
}
EXEMPT = {  # the terms themselves, a class called Picture/Frame, a key of export format 1
    "tests/test_style.py", "CONTRIBUTING.md", "data/Objects365.yaml", "utils/backends/export_metadata.py",
}  # fmt: skip


def texts():
    """Return the text of each tracked file; without a repository, that of all files."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    names = listed.splitlines() or [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    chosen = [name for name in names if Path(name).suffix in SUFFIXES and (ROOT / name).is_file()]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in chosen if "benchmarks/results/" not in name}


TEXTS = texts()
CHECKED = {name: text for name, text in TEXTS.items() if name not in EXEMPT}


@functools.cache
def joined(text):
    """Return a text without line breaks and comment marks, and the line number of each of its characters."""
    content, numbers = [], []
    for number, line in enumerate(text.splitlines(), 1):
        content.append(re.sub(r"^\s*(?:#\s*)?", "", line).rstrip() + " ")
        numbers += [number] * len(content[-1])
    return "".join(content), numbers


def found(pattern, text):
    """Return the lines on which a retired term begins; a term may continue on the next line."""
    content, numbers = joined(text)
    return [numbers[match.start()] for match in re.finditer(pattern, content, re.IGNORECASE)]


@pytest.mark.parametrize("pattern", RETIRED)
def test_no_retired_terms(pattern):
    places = [f"{name}:{line}" for name, text in CHECKED.items() for line in found(pattern, text)]
    assert not places, f"write {RETIRED[pattern]} at {', '.join(places[:20])} ({len(places)} in all)"


def test_retired_terms_are_found_across_lines():
    text = "# non-maximum\n# suppression, then\n# a class per\n# pixel"
    assert found(next(iter(RETIRED)), text.replace("non-maximum", "the")) == [2]
    assert found(r"\bclass(?:es)? (?:of|per) pixels?\b", text) == [3]


def test_documents_named_in_code_exist():
    missing = []
    for name, text in TEXTS.items():
        if name.endswith(".py") and not name.startswith("tests/"):
            documents = re.findall(r"(?<![\w./<>{}*-])(?:docs|benchmarks)/[\w./-]+\.md\b", text)
            missing += [f"{name}: {document}" for document in documents if not (ROOT / document).is_file()]
    assert not missing


def test_files_are_listed():
    assert {"train.py", "README.md", "utils/core/cli.py"} <= CHECKED.keys()


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_texts_are_noun_phrases(program):
    for parser in commands_of(parser_of(program)).values():
        for action in parser._actions:
            text = "" if action.help in (None, argparse.SUPPRESS) else action.help
            assert not re.search(r"\b(?:empty|none): |\.$", text), (
                f"{action.option_strings}: write (default: …), no period"
            )
