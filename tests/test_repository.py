"""Files for contributors and hosting: workflows run the documented checks, and versions agree."""

import re
from pathlib import Path

import cv2
import pytest
import yaml

from docs.draw_badges import FOLDER as BADGES
from docs.draw_badges import badges
from docs.draw_hero import HERO, draw_hero, place_label
from utils.core.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
YAML_FILES = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_files_are_valid_yaml(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_workflow_runs_the_documented_checks():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text(encoding="utf-8"))["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for command in ("ruff check .", "ruff format --check .", "mypy"):
        assert command in lines
    assert any(line.startswith("python -m pytest tests") for line in lines)
    assert len(jobs["tests"]["strategy"]["matrix"]["python"]) >= 3


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version, licence = (re.search(rf'^{key} = "(.+)"', PROJECT, re.MULTILINE)[1] for key in ("version", "license"))
    assert (citation["version"], citation["license"]) == (version, licence)
    assert version == VERSION


def test_badges_state_what_the_files_say():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, svg in badges().items():
        assert (BADGES / name).read_text(encoding="utf-8") == svg, "run python docs/draw_badges.py"
        label = re.search(r'aria-label="([^"]+)"', svg)[1].replace("Python:", "Python")
        assert f"[![{label}](docs/images/badges/{name})]" in text


def test_hero_image_is_drawn_from_generated_shapes(tmp_path):
    path = draw_hero(tmp_path / "hero.jpg", side=160)
    height, width = cv2.imread(str(path)).shape[:2]
    assert 280 < width < 340 and 200 < height < 400  # four panels, two in a row
    assert HERO.stat().st_size <= 300_000 and "docs/images/hero.jpg" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_labels_of_the_hero_image_do_not_overlap():
    taken = []
    for left in (0, 2, 4, 6):  # boxes at the left border, almost in the same place
        place_label(taken, (left, 30 + left, 90, 80), (50, 20), 200)
    overlaps = [
        (a, b)
        for i, a in enumerate(taken)
        for b in taken[:i]
        if a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]
    ]
    assert len(taken) == 4 and not overlaps and all(x >= 0 and y >= 0 for x, y, _, _ in taken)
