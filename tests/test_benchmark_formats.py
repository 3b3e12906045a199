"""benchmark.py: a row per format, also for those that fail."""

import json

import pytest
import torch

import benchmark
from models.builder import build_network, read_architecture
from models.checkpoint import save_checkpoint
from utils.core.errors import UserError
from utils.programs.benchmark import Row, format_table
from utils.programs.export import export_backends


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "tiny.pt", build_network(read_architecture("yolov5n"), 2, ("a", "b")), {"imgsz": 64})
    return tmp_path / "tiny.pt"


def test_one_row_per_format_and_failure(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.backends.exported_runner.is_installed", lambda package: package != "coremltools")
    chosen = {"weights": [str(checkpoint)], "include": ["torchscript", "coreml"], "runs": 2, "project": str(tmp_path)}
    rows = benchmark.run(**chosen, speed_only=True, name="run")
    assert [row["format"] for row in rows] == ["PyTorch", "torchscript", "coreml"]
    assert all(row["megabytes"] > 3 and row["milliseconds"] >= row["fastest"] > 0 for row in rows[:2])
    assert rows[2]["milliseconds"] is None and "needs the package coremltools" in rows[2]["reason"]
    written = json.loads((tmp_path / "run" / "benchmark.json").read_text())
    assert written["formats"] == rows and written["imgsz"] == 64
    assert (tmp_path / "run" / "benchmark.png").stat().st_size > 5000
    hard = {**chosen, "include": ["coreml"], "test": True, "hard_fail": 0.0}
    benchmark.run(**hard, name="not-installed")  # a package that is missing is no failure
    monkeypatch.setattr("utils.backends.exported_runner.is_installed", lambda package: True)
    backend = export_backends()["coreml"]
    monkeypatch.setattr(backend, "write", lambda *_: (_ for _ in ()).throw(UserError("no")))
    with pytest.raises(UserError, match="failed: coreml"):
        benchmark.run(**hard, name="hard")


def test_table_columns():
    rows = [Row("PyTorch", 4.06, {"detect/map50_95": 0.365}, 40.0, 39.0), Row("coreml", reason="no package")]
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["format", "MB", "detect/map50_95", "ms/image", "fastest"]
    assert lines[1].split() == ["PyTorch", "4.1", "0.365", "40.0", "39.0"]
    assert lines[2].split() == ["coreml", "-", "-", "-", "-", "no", "package"]


@pytest.mark.parametrize("options", [{"runs": 0}, {"batch_size": 0}])
def test_values_below_one_are_refused(options):
    with pytest.raises(UserError, match="at least 1"):
        benchmark.run(**options)
