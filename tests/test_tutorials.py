"""The tutorials run: every command and Python block, at a small size, in a copy of the project."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tutorial_worker import blocks_of, run_python, shrink

from utils.core.yaml_file import read_yaml, write_yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "tutorials"
FIRST = FOLDER / "quick-start.md"  # trains the network that the others use
PAGES = [FIRST, *(path for path in sorted(FOLDER.glob("*.md")) if path.name not in (FIRST.name, "README.md"))]
NOTEBOOK = ROOT / "docs" / "notebooks" / "quick_start.ipynb"
COPIED = ("models", "utils", "tools", "polyolo", "data", "segment", "classify")
NEEDED = {"export-and-deployment": ("onnx", "onnxruntime", "onnxscript")}  # packages, which are optional


def small_clone(folder):
    """Copy the programs, with a small version of the generated data set."""
    clone = folder / "clone"
    clone.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, clone)
    for name in COPIED:
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    data = read_yaml(clone / "data" / "shapes.yaml")
    data["generate"] |= {"train": 24, "val": 8, "size": 96}
    data["defaults"] |= {"epochs": 1, "imgsz": 64}
    write_yaml(clone / "data" / "shapes.yaml", data)
    return clone


def missing_packages(page):
    return [name for name in NEEDED.get(page.stem, ()) if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run all pages in one process and return the number of blocks and the faults of each."""
    folder = tmp_path_factory.mktemp("tutorials")
    pages = [str(page) for page in PAGES if not missing_packages(page)]
    line = [sys.executable, str(ROOT / "tests" / "tutorial_worker.py"), str(folder / "results.json"), *pages]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "POLYOLO_CACHE": str(folder)}
    done = subprocess.run(
        line, cwd=small_clone(folder), env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial_runs(page, results):
    if missing := missing_packages(page):
        pytest.skip(f"packages are not installed: {', '.join(missing)}")
    count, faults = results[page.name]
    assert not faults, "\n".join(faults)
    assert count >= 3


def test_notebook_runs_from_top_to_bottom(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    assert not any(cell.get("outputs") for cell in cells), "the notebook is committed without outputs"
    clone = small_clone(tmp_path)
    (clone / "notebook.py").write_text(code, encoding="utf-8")
    small = {"EPOCHS": "1", "SIZE": "64", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=clone, env=os.environ | small, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "8 validation images" in done.stdout and "best.torchscript" in done.stdout


def test_there_are_twelve_tutorials_with_images():
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed[-12:]) == sorted(page.name for page in PAGES) and len(PAGES) == 12
    shown = {name for page in PAGES for name in re.findall(r"images/tutorials/(\S+)\)", page.read_text("utf-8"))}
    assert shown == {path.name for path in (ROOT / "docs" / "images" / "tutorials").iterdir()}


def test_gallery_shows_what_its_script_makes():
    from docs.draw_gallery import FOLDER as GALLERY
    from docs.draw_gallery import LABELS, PLOTS

    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    made = {"scenes.jpg", LABELS, *(name for name, _ in PLOTS.values())}
    assert set(re.findall(r"images/gallery/(\S+)\)", text)) == made == {path.name for path in GALLERY.iterdir()}


def test_images_of_the_documentation_are_small():
    images = [path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in images) <= 1_000_000


def test_wrong_blocks_are_faults(tmp_path):
    names = {"known": 2}
    code = "print(known)\nother = known + 1\n# → 2\n# → 3\n"
    assert run_python(code, names, tmp_path) == ["3"] and names["other"] == 3
    text = "a\n<!-- status 1 -->\n```bash\npython x.py\n```\n```text\nno\n```\n"
    assert blocks_of(text) == [("status 1", "bash", "python x.py\n", 2)]
    words = ["python", "train.py", "--img", "640", "480", "--epochs", "100", "--cfg", "a"]
    expected = ["python", "train.py", "--img", "64", "64", "--epochs", "1", "--cfg", "a", "--workers", "0", "--noplots"]
    assert shrink(words) == expected


def test_figures_are_drawn(tmp_path):
    from docs.draw_pictures import FIGURES

    for draw in FIGURES:
        draw(tmp_path)
    committed = ROOT / "docs" / "images" / "tutorials"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in committed.iterdir()}
