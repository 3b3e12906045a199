"""The tutorials and guides run: commands and Python blocks, at a small size, in a copy of the project."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_labels import labelme_file, voc_file, write_image
from tutorial_worker import blocks_of, is_left_out, run_python, shrink

from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from utils.core.yaml_file import read_yaml, write_yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "tutorials"
FIRST = FOLDER / "quick-start.md"  # trains the network that the others use
PAGES = [FIRST, *(path for path in sorted(FOLDER.glob("*.md")) if path.name not in (FIRST.name, "README.md"))]
GUIDES = [ROOT / "docs" / "own-data.md", ROOT / "docs" / "python.md", ROOT / "docs" / "hub.md", ROOT / "README.md"]
NOTEBOOK = ROOT / "docs" / "notebooks" / "quick_start.ipynb"
NOTEBOOK_PAGE = NOTEBOOK.with_suffix(".md").name  # the cells as a page
COPIED = ("models", "utils", "tools", "polyolo", "data", "segment", "classify")
ONNX = ("onnx", "onnxruntime", "onnxscript")
NEEDED = {  # packages, which are optional
    "export-and-deployment": ONNX,
    "own-data": (*ONNX, "fastapi", "uvicorn", "python_multipart", "prometheus_client"),
    "python": (*ONNX, "pandas", "supervision"),
    "README": (*ONNX, "pandas"),
}


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


def write_own_data(clone):
    """Write what readers of the guides have: images, labelled ones in two formats, and official weights (untrained)."""
    for i in range(12):
        name = ("cat", "dog")[i % 2]
        write_image(clone / "cells" / "JPEGImages" / f"BloodImage_{i:05}.jpg", i)
        voc_file(clone / "cells" / "Annotations" / f"BloodImage_{i:05}.xml", [(name, 9, 9, 40, 40, 0)])
        write_image(clone / "parts" / f"shapes_{i:06}.jpg", i)
        shape = {"label": name, "shape_type": "polygon", "points": [[9, 9], [40, 9], [30, 50]]}
        labelme_file(clone / "parts" / f"shapes_{i:06}.json", [shape])
    for name in ("photo", "bus", "zidane", "large"):
        write_image(clone / f"{name}.jpg")
    for name in ("yolov5n", "yolov5n-seg", "yolov5s"):
        network = build_network(read_architecture(name), 80, tuple(map(str, range(80))))
        save_checkpoint(clone / f"{name}.pt", network, meta={"imgsz": 64})
    shutil.copy(clone / "data" / "shapes.yaml", clone / "data" / "coco128.yaml")  # as small, and it is there
    (clone / "path" / "to").mkdir(parents=True)
    (clone / "path" / "to" / "polyolo").symlink_to(clone)


def write_notebook_page(path):
    """Write the cells of the notebook as the only block of a page, with checks of what they computed."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "code")
    checks = "assert len(images) == 8 and file.name == 'best.torchscript' and len(scores) == EPOCHS == 1\n"
    path.write_text(f"```python\n{code}\n{checks}```\n", encoding="utf-8")
    return path


def missing_packages(page):
    if page.stem == "own-data" and shutil.which("curl") is None:
        return ["curl"]
    return [name for name in NEEDED.get(page.stem, ()) if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run all pages and the notebook in one process and return the number of blocks and the faults of each."""
    folder = tmp_path_factory.mktemp("tutorials")
    pages = [str(page) for page in (*PAGES, *GUIDES) if not missing_packages(page)]
    pages.append(str(write_notebook_page(folder / NOTEBOOK_PAGE)))
    clone = small_clone(folder)
    write_own_data(clone)
    line = [sys.executable, str(ROOT / "tests" / "tutorial_worker.py"), str(folder / "results.json"), *pages]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "POLYOLO_CACHE": str(folder)}
    environment |= {"EPOCHS": "1", "SIZE": "64", "MPLBACKEND": "agg"}  # of the notebook
    done = subprocess.run(line, cwd=clone, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [*PAGES, *GUIDES], ids=lambda page: page.stem)
def test_blocks_of_page_run(page, results):
    if missing := missing_packages(page):
        pytest.skip(f"packages are not installed: {', '.join(missing)}")
    count, faults = results[page.name]
    assert not faults, "\n".join(faults)
    assert count >= (1 if page.name == "README.md" else 2)


def test_notebook_runs_from_top_to_bottom(results):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "the notebook is committed without outputs"
    count, faults = results[NOTEBOOK_PAGE]
    assert not faults, "\n".join(faults)
    assert count == 1


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
    assert run_python("print('epochs=70', 'size=640')\n# → epochs=1 size=64\n", {}, tmp_path) == []
    left_out = [is_left_out(*case, "hub.md") for case in (("shown only: x", "python"), ("needs no_such", "python"))]
    assert left_out == [True, True] and is_left_out("", "bash", "hub.md") and not is_left_out("needs re", "python", "a")
    words = ["python", "train.py", "--img", "640", "480", "--epochs", "100", "--cfg", "a"]
    expected = ["python", "train.py", "--img", "64", "64", "--epochs", "1", "--cfg", "a", "--workers", "0", "--noplots"]
    assert shrink(words) == expected


def test_figures_are_drawn(tmp_path):
    from docs.draw_pictures import FIGURES

    for draw in FIGURES:
        draw(tmp_path)
    committed = ROOT / "docs" / "images" / "tutorials"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in committed.iterdir()}
