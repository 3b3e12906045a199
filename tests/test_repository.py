"""Files for contributors and hosting: workflows run the documented checks, and versions agree."""

import re
from pathlib import Path

import cv2
import pytest
import yaml

from docs.draw_badges import FOLDER as BADGES
from docs.draw_badges import badges
from docs.draw_hero import HERO, draw_hero
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
    assert width > 2.5 * height  # three panels
    assert HERO.stat().st_size <= 300_000 and "docs/images/hero.jpg" in (ROOT / "README.md").read_text(encoding="utf-8")
