"""Draw the badges of the README from pyproject.toml and the workflow: `python docs/draw_badges.py`.

They state facts of the repository, are files of it, and are loaded from nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "images" / "badges"
_CHARACTER_PX, _MARGIN_PX = 6.6, 14


def badge(label: str, value: str, colour: str) -> str:
    """Return an SVG with a label on grey and a value on a colour."""
    left, right = (round(len(text) * _CHARACTER_PX) + _MARGIN_PX for text in (label, value))
    style = 'font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" fill="#fff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{escape(label)}: {escape(value)}">'
        f'<clipPath id="r"><rect width="{left + right}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{left}" height="20" fill="#444"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/></g>'
        f'<g {style}><text x="{left / 2:g}" y="14">{escape(label)}</text>'
        f'<text x="{left + right / 2:g}" y="14">{escape(value)}</text></g></svg>\n'
    )


def badges() -> dict[str, str]:
    """Return the SVG of every badge by file name."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8")
    matrix = re.search(r"python: \[(.*)\]", workflow)
    licence = re.search(r'^license = "(.+)"', project, re.MULTILINE)
    jobs = re.findall(r"^  (\w+):\n    runs-on:", workflow, re.MULTILINE)
    if matrix is None or licence is None:
        raise ValueError("pyproject.toml or checks.yml: no licence or no Python versions; correct docs/draw_badges.py")
    return {
        "licence.svg": badge("licence", licence[1], "#2e7d32"),
        "python.svg": badge("tests on Python", matrix[1].replace('"', ""), "#1565c0"),
        "checks.svg": badge("checks", ", ".join(jobs), "#5e35b1"),
    }


def main() -> None:
    """Write the badges."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in badges().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
