"""`convert.py shards`: batches equal to those of the source, exact continuation, and the order within windows."""

import io
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_run import ROOT, environment, same, weights
from helpers_shards import write_folders
from test_shards import assert_same, batches

import convert
import train
from tools.converters import shards as writer
from tools.dataset_check.check_settings import CheckSettings
from tools.dataset_check.program import check_dataset
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.yaml_file import read_yaml, write_yaml
from utils.datasets.labels.label_scan import build_index
from utils.datasets.pipeline.batch_plan import epoch_order
from utils.datasets.pipeline.box_samples import open_box_loader


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path / "folders")


def convert_to(out: Path, source: Path, *more: object) -> str:
    """Write shards of a few images each; return the data YAML."""
    convert.main(["shards", "--source", str(source), "--out", str(out), "--shard-mb", "0.02", *map(str, more)])
    return str(out / "data.yaml")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


@pytest.mark.parametrize("task", ["detect", "segment", "classify", "semantic", "joint"])
def test_written_shards_give_the_batches_of_the_source(folders, tmp_path, task):
    source = folders / "classes" if task == "classify" else folders / f"{task}.yaml"
    if task == "classify":
        (folders / "classes" / "val").symlink_to("train")
    yaml = convert_to(tmp_path / "out", source)
    assert len(list((tmp_path / "out").glob("*train-*.tar"))) > 2
    for training in (True, False):
        assert_same(batches(task, yaml, training), batches(task, str(source), training))


def test_faults_of_the_source_stay(folders, tmp_path, caplog):
    (folders / "labels/train/0001.txt").write_text("0 0.5 0.5 2 0.5\n")
    (folders / "images/train/0002.jpg").write_bytes(b"no image")
    yaml = convert_to(tmp_path / "out", folders / "detect.yaml")
    one, other = (
        build_index(load_data(str(data)), "train", allow_faults=True) for data in (yaml, folders / "detect.yaml")
    )
    assert one.count == other.count and len(one) == len(other) == 10


def test_shards_of_shards_have_the_same_samples(folders, tmp_path):
    first = convert_to(tmp_path / "first", folders / "joint.yaml")
    second = convert_to(tmp_path / "second", Path(first), "--shard-mb", "1")
    assert len(contents(tmp_path / "second")) == 2  # train and val
    assert_same(batches("joint", first, True), batches("joint", second, True))


def test_other_formats_become_lines_without_rounding(folders, tmp_path):
    xml = "<annotation><size><width>64</width><height>40</height></size><object><name>dog</name><bndbox>"
    xml += "<xmin>4</xmin><ymin>6</ymin><xmax>37</xmax><ymax>29</ymax></bndbox></object></annotation>"
    (folders / "voc" / "images").mkdir(parents=True)
    for number in (0, 3, 6):
        name = f"{number:04d}"
        (folders / "voc/images" / f"{name}.v1.jpg").write_bytes((folders / f"images/train/{name}.jpg").read_bytes())
        (folders / "voc/images" / f"{name}.v1.xml").write_text(xml)
    values = {
        "path": str(folders / "voc"),
        "train": "images",
        "val": "images",
        "names": ["cat", "dog"],
        "format": "voc",
    }
    write_yaml(folders / "voc.yaml", values)
    yaml = convert_to(tmp_path / "out", folders / "voc.yaml")
    assert_same(batches("detect", yaml, True), batches("detect", str(folders / "voc.yaml"), True))
    with tarfile.open(tmp_path / "out/train-000000.tar") as tar:
        assert tar.getnames()[:2] == ["0000_v1.jpg", "0000_v1.txt"]


def test_interrupted_conversion_goes_on_and_ends_equal(folders, tmp_path, monkeypatch, caplog):
    whole = convert_to(tmp_path / "whole", folders / "joint.yaml")
    reads = []
    original = writer.read_binary

    def interrupt(path):
        reads.append(path)
        if len(reads) == 20:
            raise KeyboardInterrupt
        return original(path)

    monkeypatch.setattr(writer, "read_binary", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_to(tmp_path / "part", folders / "joint.yaml")
    done = contents(tmp_path / "part")
    assert 0 < len(done) < len(contents(tmp_path / "whole")) and not (tmp_path / "part/data.yaml").exists()
    (tmp_path / "part" / ".train-000009.abc.tar").write_bytes(b"left by a killed process")
    reads.clear()
    monkeypatch.setattr(writer, "read_binary", lambda path: reads.append(path) or original(path))
    convert_to(tmp_path / "part", folders / "joint.yaml")
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert len(reads) < 2 * 3 * 12 and not list((tmp_path / "part").glob(".*"))
    assert read_yaml(tmp_path / "part/data.yaml") == read_yaml(Path(whole))


def test_used_folders_are_refused(folders, tmp_path):
    convert_to(tmp_path / "out", folders / "detect.yaml")
    for source in ("detect.yaml", "segment.yaml"):  # complete, and of other images
        with pytest.raises(UserError, match="exists and is not empty"):
            convert_to(tmp_path / "out", folders / source)
    convert_to(tmp_path / "out", folders / "segment.yaml", "--exist-ok")
    (tmp_path / "out" / "shards.json").write_text("[1, 2")
    with pytest.raises(UserError, match=r"shards.json: damaged; remove the folder or choose another --out"):
        convert_to(tmp_path / "out", folders / "segment.yaml", "--exist-ok")
    with pytest.raises(UserError, match="--shard-mb expects a number above 0"):
        convert_to(tmp_path / "new", folders / "detect.yaml", "--shard-mb", "0")
    (folders / "empty").mkdir()
    write_yaml(folders / "gone.yaml", {"path": str(folders), "train": "list.txt", "val": "list.txt", "names": ["a"]})
    (folders / "list.txt").write_text("nowhere/a.jpg\n")
    with pytest.raises(UserError, match=r"no image of train can be read; .*a.jpg: cannot be read"):
        convert_to(tmp_path / "gone", folders / "gone.yaml")


def test_check_covers_shards(folders, tmp_path, caplog):
    from tools.dataset_check.collect import collect_records
    from tools.dataset_check.program import run_checks

    yaml = convert_to(tmp_path / "out", folders / "detect.yaml")
    with tarfile.open(tmp_path / "out" / "train-000000.tar", "a") as tar:
        image = (folders / "images/train/0003.jpg").read_bytes()[:-9]
        for name, content in (("bad.jpg", b"no image"), ("odd.jpg", image), ("odd.txt", b"0 1 2\n")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    kinds = {finding.kind for finding in run_checks(collect_records(load_data(yaml), 64))}
    assert {"unreadable", "label-fault", "missing-label", "annotations"} <= kinds


def test_cleaned_copy_of_shards(folders, tmp_path):
    yaml = convert_to(tmp_path / "out", folders / "detect.yaml")
    settings = CheckSettings(data=yaml, project=tmp_path / "runs", fix=tmp_path / "clean")
    check_dataset(settings)
    copied = build_index(load_data(str(tmp_path / "clean" / "data.yaml")), "val")
    assert len(copied) == 12 and (copied.boxes == build_index(load_data(yaml), "val").boxes).all()


# ----------------------------------------------------------------------------------------------------------------------
# Order within windows


@pytest.mark.parametrize("weights", [None, np.r_[np.zeros(50), np.ones(50)]], ids=["plain", "weighted"])
def test_window_order_is_local_and_changes_with_the_epoch(weights):
    orders = [epoch_order(100, 7, epoch, weights, shuffle_window=10) for epoch in (0, 1, 0)]
    assert (orders[0] == orders[2]).all() and (orders[0] != orders[1]).any()
    if weights is None:
        assert sorted(orders[0]) == list(range(100))
        jumps = np.abs(np.diff(orders[0])) >= 10
        assert 5 < jumps.sum() <= 20  # from window to window, and hardly within
        assert (np.diff(orders[0]) != 1).sum() > 50  # shuffled within
    else:
        assert orders[0].min() >= 50


def test_window_order_is_the_same_on_any_number_of_ranks(folders, tmp_path):
    yaml = convert_to(tmp_path / "out", folders / "detect.yaml")
    write_yaml(Path(yaml), read_yaml(Path(yaml)) | {"shuffle_window": 4})

    def images(place: tuple[int, int], size: int) -> list[list[int]]:
        request = LoadRequest(load_data(yaml), "train", True, 64, size, 32, Hyp(), workers=0)
        loader = open_box_loader(request, place)
        return [[info.index for info in batch.info] for epoch in (0, 1) for batch in loader.epoch(epoch)]

    alone = images((0, 1), 4)
    first, second = images((0, 2), 2), images((1, 2), 2)
    assert [[a[0], b[0], a[1], b[1]] for a, b in zip(first, second, strict=True)] == alone


@pytest.mark.parametrize("window", [0, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_epoch_continues_at_its_exact_position(folders, tmp_path, window, workers):
    yaml = convert_to(tmp_path / "out", folders / "detect.yaml")
    write_yaml(Path(yaml), read_yaml(Path(yaml)) | {"shuffle_window": window})

    def load(start: int) -> list[torch.Tensor]:
        request = LoadRequest(load_data(yaml), "train", True, 64, 2, 32, Hyp(), workers=workers)
        return [batch.images for batch in open_box_loader(request).epoch(1, start)]

    whole = load(0)
    for start in (1, 4):
        rest = load(start)
        assert len(rest) == len(whole) - start
        assert all(torch.equal(one, other) for one, other in zip(rest, whole[start:], strict=True))


KILLED_TRAINING = """
import json, os, signal, sys
from pathlib import Path
import train
rename, written = Path.replace, []

def replace(self, target):
    done = rename(self, target)
    written.extend([target] if Path(target).name == "last.pt" else [])
    if len(written) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return done

Path.replace = replace
train.run(**json.loads(sys.argv[1]))
"""


def test_killed_training_on_shards_ends_like_an_undisturbed_one(folders, tmp_path, caplog):
    """The process is killed within the second epoch; two workers read ahead in the shuffled windows."""
    caplog.set_level("INFO", logger="polyolo")
    yaml = convert_to(tmp_path / "out", folders / "detect.yaml")
    write_yaml(Path(yaml), read_yaml(Path(yaml)) | {"shuffle_window": 5})
    options = {"data": yaml, "cfg": "yolov5n", "imgsz": [64], "batch_size": 4, "epochs": 2, "noplots": True}
    options |= {"save_steps": 1, "seed": 2, "project": str(tmp_path)}
    train.run(**options, workers=0, name="whole")
    line = [sys.executable, "-c", KILLED_TRAINING, json.dumps(options | {"workers": 2, "name": "run"})]
    env = environment() | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert subprocess.run(line, cwd=ROOT, env=env, timeout=200, check=False).returncode == -signal.SIGKILL
    train.run(resume=str(tmp_path / "run" / "weights" / "last.pt"))
    assert "at epoch 2, batch 2" in caplog.text
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert all(
        same(weights(whole / "weights" / name), weights(run / "weights" / name)) for name in ("best.pt", "last.pt")
    )
    assert (whole / "results.csv").read_text() == (run / "results.csv").read_text()


def test_window_with_rectangles_is_refused(folders, tmp_path):
    yaml = convert_to(tmp_path / "out", folders / "detect.yaml")
    write_yaml(Path(yaml), read_yaml(Path(yaml)) | {"shuffle_window": 4})
    with pytest.raises(UserError, match=r"`shuffle_window:` needs shuffled images; remove it or --rect"):
        batches("detect", yaml, True, rect=True)
    write_yaml(Path(yaml), read_yaml(Path(yaml)) | {"shuffle_window": -1})
    with pytest.raises(UserError, match="`shuffle_window:` must be a number of images of at least 0, got -1"):
        load_data(yaml)
