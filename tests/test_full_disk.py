"""Full disks, quotas and limits on files: one line, a status, the files of before, and a run that can be resumed."""

import errno
import importlib
import json
import os
import resource
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers_bad import image_set
from helpers_run import ROOT, command, environment, same, tiny_data, weights

import convert
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.files import write_text
from utils.datasets.generators.prepare import ensure_generated
from utils.datasets.labels.label_scan import build_index
from utils.plots.video_writer import VideoWriter

TRAIN = {"cfg": "yolov5n", "imgsz": [64], "batch_size": 4, "workers": 0, "epochs": 2, "save_period": 1, "seed": 0}


class Disk:
    """Count the files that are written; from number `limit` on, none can be written."""

    def __init__(self, monkeypatch):
        if not Path("/proc/self/fd").is_dir():
            pytest.skip("needs /proc to name the files")
        self.names, self.limit, self.reason = [], None, errno.ENOSPC
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, handle):
        """Replace os.fsync, which every atomic write calls last."""
        self.names.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        if self.limit is not None and len(self.names) >= self.limit:
            raise OSError(self.reason, os.strerror(self.reason))
        return self._fsync(handle)


@pytest.fixture
def disk(monkeypatch):
    """The disk, not yet full."""
    return Disk(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data YAML whose images exist already."""
    path = tiny_data(tmp_path_factory.mktemp("data"), 8, 4, 64)
    ensure_generated(load_data(str(path)))
    return path


def train(data, project, **options):
    """Run train.py in this process."""
    importlib.import_module("train").run(**TRAIN | {"data": str(data), "project": str(project)} | options)


@pytest.fixture(scope="module")
def undisturbed(data):
    """Folder of a run that was not disturbed, and the names of its temporary files in order."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        train(data, data.parent / "undisturbed")
    names = [name for name in disk.names if not name.endswith(".npz")]  # without the scan caches, which then exist
    return data.parent / "undisturbed" / "exp", names


WRITES = ["args", "labels", "results.csv", "best", "epoch0", "last", "results.json", "confusion_matrix"]
REASONS = [(name, errno.ENOSPC) for name in WRITES] + [("last", errno.EDQUOT), ("results.csv", errno.EROFS)]


@pytest.mark.parametrize(("name", "reason"), REASONS)
def test_full_disk_at_a_write_of_training(data, undisturbed, tmp_path, disk, name, reason):
    whole, names = undisturbed
    stem, _, suffix = name.partition(".")
    found = [number for number, one in enumerate(names, 1) if one.split(".")[1] == stem and one.endswith(suffix)]
    disk.limit, disk.reason = found[0], reason
    with pytest.raises(UserError, match=rf"cannot be written \({os.strerror(reason)}\)") as caught:
        train(data, tmp_path / "p")
    assert "\n" not in str(caught.value) and name in str(caught.value)
    disk.limit = None
    left = {path.name for path in (tmp_path / "p").rglob(".*")} - {".best.previous.pt", ".lock"}  # needed to resume
    assert not left, "temporary files were left"
    last = tmp_path / "p" / "exp" / "weights" / "last.pt"
    if not last.exists():  # the first epoch was not complete
        return
    importlib.import_module("train").run(resume=str(last))
    run = tmp_path / "p" / "exp"
    for name in ("last.pt", "best.pt", "epoch0.pt"):
        assert same(weights(run / "weights" / name), weights(whole / "weights" / name)), name
    assert (run / "results.csv").read_text() == (whole / "results.csv").read_text()


def test_full_disk_for_the_scan_cache(tmp_path, disk, caplog):
    """Labels are read all the same, and no half a cache stays."""
    data = load_data(str(image_set(tmp_path / "set")))
    before = sorted(tmp_path.rglob("*"))
    disk.limit = 1
    assert len(build_index(data, "train")) == 8
    assert "scan result not cached: " in caplog.text and os.strerror(errno.ENOSPC) in caplog.text
    assert sorted(tmp_path.rglob("*")) == before
    disk.limit = None
    assert len(build_index(data, "train")) == 8 and list(tmp_path.rglob("*.npz"))


def test_full_disk_while_shards_are_written(tmp_path, disk):
    source, out = image_set(tmp_path / "set"), tmp_path / "out"
    line = ["shards", "--source", str(source), "--shard-mb", "0.005", "--out"]
    convert.main([*line, str(tmp_path / "whole")])
    names, number = list(disk.names), [name.endswith(".tar") for name in disk.names].index(True) + 3
    disk.names.clear()
    disk.limit = number
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        convert.main([*line, str(out)])
    disk.limit = None
    convert.main([*line, str(out)])  # goes on
    assert len(names) > number + 1
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.tar")}
    assert whole == {path.name: path.read_bytes() for path in out.glob("*.tar")} and len(whole) > 2
    assert not list(out.glob(".*"))


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
