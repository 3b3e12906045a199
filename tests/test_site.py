"""The documentation site: it builds without a warning and works from files, without any external resource."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers_browser import chromium

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs", reason="the package mkdocs is not installed")
pytest.importorskip("material", reason="the package mkdocs-material is not installed")
pytest.importorskip("mkdocstrings_handlers.python", reason="the package mkdocstrings-python is not installed")
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}  # without a click


class Page(HTMLParser):
    """Collects the targets, the loaded resources and the anchors of an HTML page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.resources, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)
                if (tag, name) in LOADED and ("rel", "canonical") not in attrs:
                    self.resources.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return {path.relative_to(folder).as_posix(): Page(path) for path in folder.rglob("*.html")}, folder


def test_every_documentation_page_is_on_the_site(site):
    pages, _ = site
    sources = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    names = {str(path).replace("README", "index") for path in sources}
    assert names <= pages.keys() and {"index.html", "changes.html", "contributing.html", "licence.html"} <= pages.keys()


def test_links_and_anchors_of_the_site_resolve(site):
    pages, folder = site
    broken = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link) or (name == "404.html" and link.startswith("/")):
                continue
            target, _, anchor = unquote(link).partition("#")
            path = (folder / name).parent / target if target else folder / name
            key = os.path.relpath(path, folder)
            if not path.exists() or (anchor and key in pages and anchor not in pages[key].anchors | {"__top"}):
                broken.append(f"{name}: {link}")
    assert not broken


def test_plots_of_reports_are_on_the_site(site):
    pages, folder = site
    plots = sorted((ROOT / "benchmarks" / "results").glob("*.png"))
    assert plots
    for plot in plots:
        assert (folder / "benchmarks" / plot.name).read_bytes() == plot.read_bytes()
        assert plot.name in pages[f"benchmarks/{plot.stem}.html"].resources


def test_nothing_is_loaded_from_elsewhere(site):
    pages, folder = site
    loaded = {f"{name}: {link}" for name, page in pages.items() for link in page.resources if "//" in link}
    styles = [path for path in folder.rglob("*.css") if re.search(r"url\(\s*['\"]?https?:", path.read_text("utf-8"))]
    assert not loaded and not styles


@pytest.mark.skipif(chromium() is None, reason="needs Chromium")
@pytest.mark.parametrize("page", ["index.html", "tutorials/map.html"])
def test_search_works_from_files(site, page, tmp_path):
    address = (site[1] / page).as_uri() + "?q=letterbox"
    line = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    line += ["--virtual-time-budget=8000", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", address]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert re.search(r"[1-9]\d* matching documents", done.stdout)


def test_reference_is_written_from_docstrings(site):
    text = (site[1] / "reference" / "api.html").read_text(encoding="utf-8")
    for words in ("polyolo.api.YOLO.predict", "Confidence threshold.", "utils.core.contracts.Evaluator"):
        assert words in text


def test_links_between_repository_and_site_are_translated():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from site_hooks import translate
    finally:
        sys.path.remove(str(ROOT / "docs"))
    text = "[a](../README.md#status) [b](../train.py) ![c](images/x.jpg) [d](https://a.b/c)\n```\n[e](../train.py)\n```"
    expected = "[a](index.md#status) b ![c](images/x.jpg) [d](https://a.b/c)\n```\n[e](../train.py)\n```"
    assert translate(text, "docs/notes.md", "notes.md") == expected
    badges = "[![a](docs/images/a.svg)](LICENSE) [![b](docs/images/b.svg)](train.py)"
    assert translate(badges, "README.md", "index.md") == "[![a](images/a.svg)](licence.md) ![b](images/b.svg)"
    assert translate("[a](docs/export.md)", "README.md", "index.md") == "[a](export.md)"
    assert translate("[a](../docs/export.md)", "benchmarks/README.md", "benchmarks/index.md") == "[a](../export.md)"
