"""Hooks of the documentation site: pages from files outside docs/, and links to files of the repository.

The Markdown files are written for reading in the repository, where `../README.md` leads to the project page. The site
contains some of these files as pages of its own; links to files that it does not contain become plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
BORROWED = {  # file of the repository: page of the site, without suffix
    "README.md": "index",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changes",
    "LICENSE": "licence",
    "benchmarks/README.md": "benchmarks/index",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_LINKED_IMAGE = re.compile(r"\[(!\[[^\]]*\]\([^)\s]+\))\]\(([^)\s]+)\)")
_SHORT_CODE = re.compile(r"<code>([^<\n]{1,28})</code>")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)


def _pages() -> dict[str, str]:
    """Map every repository file that is on the site to its page, or the plots of reports to their place."""
    reports = {f"benchmarks/results/{path.name}": f"benchmarks/{path.name}" for path in _reports()}
    return {source: f"{page}.md" for source, page in BORROWED.items()} | reports


def _reports() -> list[Path]:
    return sorted(path for path in (ROOT / "benchmarks" / "results").iterdir() if path.suffix in (".md", ".png"))


def site_link(link: str, source: str, page: str) -> str | None:
    """Translate a relative link of a repository file to one between pages of the site.

    Args:
        link: Target as written, with or without an anchor.
        source: Repository path of the file that contains it.
        page: Path of its page on the site.

    Returns:
        The new target; None if the site does not contain the file.
    """
    target, _, anchor = link.partition("#")
    if "://" in link or not target:
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    inside = _pages().get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
    if inside is None:
        return None
    moved = posixpath.relpath(inside, posixpath.dirname(page) or ".")
    return f"{moved}#{anchor}" if anchor else moved


def translate(text: str, source: str, page: str) -> str:
    """Translate all links of a Markdown text outside its code blocks; links that lead nowhere become their text."""

    def replace(match: re.Match[str]) -> str:
        mark, words, link = match.groups()
        moved = site_link(link, source, page)
        return words if moved is None else f"{mark}[{words}]({moved})"

    def replace_outer(match: re.Match[str]) -> str:
        image, link = match.groups()
        moved = site_link(link, source, page)
        return image if moved is None else f"[{image}]({moved})"

    parts = _FENCE.split(text)
    return "".join(
        part if part.startswith("```") else _LINK.sub(replace, _LINKED_IMAGE.sub(replace_outer, part)) for part in parts
    )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for source, page in _pages().items():
        if source.endswith(".png"):
            files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
            continue
        text = (ROOT / source).read_text(encoding="utf-8")
        if source == "LICENSE":
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=translate(text, source, page)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Translate the links of pages in docs/."""
    if page.file.generated_by:
        return markdown
    return translate(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mark short inline code, which should not be broken after the dashes of an option."""
    return _SHORT_CODE.sub(r'<code class="short">\1</code>', html)
