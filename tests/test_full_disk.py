"""Full disks, quotas and limits on files: one line, a status, the files of before, and a run that can be resumed."""

import importlib
import json
import resource
import subprocess

import cv2
import numpy as np
import pytest
import torch
from helpers_run import ROOT, command, environment

from utils.core.errors import UserError
from utils.core.files import write_text
from utils.plots.video_writer import VideoWriter


def limited(folder, max_bytes, script, *options, status=2):
    """Run a program that may not write files beyond a size; return its output."""

    def restrict():
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

    done = subprocess.run(
        command(str(ROOT / script), *options), cwd=folder, env=environment(), capture_output=True, text=True,
        timeout=300, check=False, preexec_fn=restrict,
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert done.returncode == status and "Traceback" not in text, f"{done.returncode}: {text[-3000:]}"
    assert sum(line.startswith("error: ") and "cannot be written" in line for line in text.splitlines()) == 1, text
    return text


@pytest.mark.parametrize("form", ["torchscript", "onnx", "pt2"])
def test_export_beyond_a_file_limit(network_file, tmp_path, form):
    """TorchScript ended the process by SIGABRT."""
    options = (
        "--weights",
        network_file,
        "--include",
        form,
        "--img",
        64,
        "--output",
        tmp_path / "out",
        "--device",
        "cpu",
    )
    text = limited(tmp_path, 500_000, "export.py", *options)
    assert "cannot be written" in text and f"two.{form}" in text
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_export_of_torchscript_from_memory(network_file, tmp_path):
    """The file written from memory has all that the file written by torch had."""
    export = importlib.import_module("export")
    export.run(weights=[str(network_file)], include=["torchscript"], imgsz=[64], output=str(tmp_path), device="cpu")
    extra = {"config.txt": ""}
    module = torch.jit.load(str(tmp_path / "two.torchscript"), _extra_files=extra)
    assert json.loads(extra["config.txt"])["names"] == {"0": "a", "1": "b"}
    assert module(torch.zeros(1, 3, 64, 64)) is not None


def test_prediction_beyond_a_file_limit(network_file, tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "a.png"), np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8))
    options = ("--weights", network_file, "--source", tmp_path / "in", "--img", 64, "--project", tmp_path / "p")
    text = limited(tmp_path, 20_000, "detect.py", *options, "--device", "cpu")
    assert "a.png: cannot be written" in text and not (tmp_path / "p" / "exp").exists()


def test_video_beyond_a_file_limit(tmp_path):
    """OpenCV does not report write errors: the frames are counted when the video is complete."""
    writer = VideoWriter(tmp_path / "a.mp4", (64, 64), 30.0)
    for _ in range(30):
        writer.write(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"a\.mp4: cannot write all 30 frames"):
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_write_beyond_a_file_limit(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(UserError, match=r"a\.txt: cannot be written \(File too large\)"):
            write_text(tmp_path / "a.txt", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "a.txt").read_text() == "before" and len(list(tmp_path.iterdir())) == 1
