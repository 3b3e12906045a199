"""Terminology of code, help and documentation: the field's terms instead of retired ones, and no missing documents."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".html", ".toml", ".yaml"}
RETIRED = {  # pattern: what to write instead
    r"(?<!non-maximum )\bsuppress(?:ion|ed|es|ing)\b": "NMS or non-maximum suppression",
    r"(?<![-_])\bpictures?\b(?![-_])": "image, plot or figure",
    r"\bfilms?\b": "video",
    r"\bclass(?:es)? (?:of|per|for (?:each|every)) pixels?\b": "semantic map or semantic classes",
    r"\bheads? for pixels\b|\bpixel labels\b": "semantic head, semantic labels",
    r"\b(?:behaviour|cli|decisions)\.md\b": "the reason, a paper, or a page of docs/reference",
    r"\bcrew\b": "worker pool",
    r"\bwish(?:es)?\b": "options or request",
    r"\breckon\w*": "compute",
    r"\btold\b|\b_tell\b": "notified, logged or passed",
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
    r"\b(?:checkpoint|model|hyp file|data YAML)'s own\b|\b(?:none|empty): (?:the|no)\b": "(default: from the …)",
    r'"""(?:Return (?:what|whether|how)|Tell whether|What|Of) ': "an imperative summary that names the object",
}
ALLOWED = {  # (file, pattern): why
    ("tests/test_style.py", "*"): "lists the retired terms",
}


def texts():
    """Return the tracked files with their text, line breaks and indentation replaced by single spaces."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    names = listed if any(listed) else [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    chosen = [name for name in names if Path(name).suffix in SUFFIXES and (ROOT / name).is_file()]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in chosen if "benchmarks/results/" not in name}


TEXTS = texts()


def found(pattern, text):
    """Return the lines on which a retired term begins; terms may continue on the next line."""
    joined = re.sub(r"\s*\n[ \t]*(?:#[ \t]*)?", lambda gap: " " * len(gap[0]), text)
    spaced = re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)
    return [text.count("\n", 0, match.start()) + 1 for match in spaced.finditer(joined)]


@pytest.mark.parametrize("pattern", RETIRED)
def test_no_retired_terms(pattern):
    exempt = {file for file, exempted in ALLOWED if exempted in ("*", pattern)}
    places = [f"{name}:{line}" for name, text in TEXTS.items() if name not in exempt for line in found(pattern, text)]
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
