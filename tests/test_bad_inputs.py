"""Weights, options, folders and snapshots that a user can get wrong: one line, nothing left behind, no traceback."""

import copy
import importlib
import os
import pickle
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_bad import TINY, error_of, options_for
from helpers_run import ROOT, script, tiny_data

from models.checkpoint import load_checkpoint, save_checkpoint
from utils.core import distributed as dist
from utils.core.cli import one_line
from utils.core.errors import UserError
from utils.core.files import atomic_path, remove_if_empty, run_folder
from utils.datasets.labels.scan import ThreadPool
from utils.datasets.sources.frame_sources import open_source
from utils.engine.run_state import find_last, load_resumable
from utils.metrics import EVALUATORS
from utils.plots import prediction_sinks as sinks
from utils.plots import video_writer
from utils.postprocess import POSTPROCESS

BOXES = ("train", "val", "detect")
SCRIPTS = (
    *BOXES, "segment.train", "segment.val", "segment.predict", "classify.train", "classify.val", "classify.predict",
)  # fmt: skip


# ----------------------------------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("name", SCRIPTS)
def test_adversarial_weights(shared, images, tmp_path, name):
    files = sorted((shared / "weights" / "adversarial").iterdir())
    assert len(files) >= 4
    for path in files:
        assert error_of(name, *options_for(name, path, images), project=tmp_path / "p").startswith(str(path))


class _Evil:
    def __reduce__(self):
        return (os.system, ("exit 1",))


def _zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


WEIGHTS = {
    "empty.pt": (lambda p: p.write_bytes(b""), "empty"),
    "folder.pt": (lambda p: p.mkdir(), "folder"),
    "text.pt": (lambda p: p.write_text("hello"), "not a checkpoint"),
    "words.txt": (lambda p: p.write_text("hello"), "not a checkpoint|unknown format"),
    "zip.pt": (_zip_of_text, "without a checkpoint"),
    "bare.pt": (lambda p: torch.save({"a": torch.zeros(2)}, p), "bare weights"),
    "list.pt": (lambda p: torch.save([1, 2], p), "a list"),
    "evil.pt": (lambda p: p.write_bytes(pickle.dumps(_Evil())), "refused"),
    "short.safetensors": (lambda p: p.write_bytes(b"\0" * 20), "damaged"),
    "missing.pt": (lambda p: None, "no such file"),
    "yolov5s.pt": (lambda p: None, "--download"),
}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("file", WEIGHTS)
def test_not_a_checkpoint(images, tmp_path, name, file):
    make, says = WEIGHTS[file]
    path = tmp_path / file
    make(path)
    text = error_of(name, *options_for(name, path, images), project=tmp_path / "p")
    assert text.startswith(str(path)) and any(part in text for part in says.split("|")), text


@pytest.mark.parametrize(
    ("name", "file", "says"),
    [
        ("train", "cls_kuih_nc10.pt", "needs the head detect"),
        ("train", "yolov5n-seg.pt", "needs the head detect"),
        ("segment.train", "yolov5n.pt", "needs the head segment"),
        ("segment.val", "yolov5n.pt", "needs the head segment"),
        ("segment.predict", "yolov5n.pt", "has no mask head"),
        ("val", "cls_kuih_nc10.pt", "cls_kuih_nc10"),
    ],
)
def test_weights_of_another_task(shared, images, tmp_path, name, file, says):
    weights = shared / "weights" / file
    text = error_of(name, *options_for(name, weights, images), project=tmp_path / "p")
    assert weights.stem in text and says in text


@pytest.mark.parametrize(("name", "registry"), [("val", EVALUATORS), ("detect", POSTPROCESS)])
def test_unknown_head(monkeypatch, images, network_file, tmp_path, name, registry):
    registry.names()  # loads them
    monkeypatch.setattr(registry, "_entries", {"other": None})
    text = error_of(name, *options_for(name, network_file, images), project=tmp_path / "p")
    assert "two" in text and "head 'detect'" in text and ("not supported" in text or "known: other" in text)


def test_class_mismatch_of_weights_and_data(shared, images, network_file, tmp_path):
    options = options_for("val", shared / "weights" / "det_pvdefect_nc5.pt", images)
    assert "2 classes" in (text := error_of("val", *options, project=tmp_path / "p")) and "has 5" in text
    both = ("--weights", network_file, shared / "weights" / "yolov5n.pt")
    text = error_of("val", *both, "--data", images, "--img", 64, project=tmp_path / "p")
    assert "2 and 80 classes" in text


# ----------------------------------------------------------------------------------------------------------------------
# Where results go


@pytest.mark.parametrize("name", BOXES)
def test_unwritable_project(images, network_file, tmp_path, name):
    (tmp_path / "file").write_text("")
    for project in (tmp_path / "file", tmp_path / "file" / "runs", tmp_path / ("x" * 300), "a\0b"):
        options = options_for(name, network_file, images)
        text = error_of(name, *options, "--project", project, project=tmp_path / "p")
        assert "cannot be written" in text


def test_failed_runs_leave_no_empty_folder(images, network_file, tmp_path):
    runs = tmp_path / "p"
    options = options_for("val", network_file, images)
    assert "no such COCO JSON" in error_of("val", *options, "--annotations", "gone.json", project=runs)
    assert "unknown logger" in error_of("train", "--data", images, *TINY, "--log", "nothing", project=runs)
    folder = run_folder(runs, "exp")
    (folder / "labels" / "deeper").mkdir(parents=True)
    remove_if_empty(folder)
    assert not folder.exists()
    folder = run_folder(runs, "exp")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("")
    remove_if_empty(folder)
    assert (folder / "labels" / "a.txt").exists()


def test_video_on_full_disk(monkeypatch, tmp_path):
    from utils.core.contracts import Frame, Geometry, ImageInfo, Results

    image = np.zeros((64, 64, 3), np.uint8)
    frames = [Frame(image, "video.mp4", "", number, 3) for number in (1, 2, 3)]
    results = Results(ImageInfo(0, "video.mp4", Geometry((64, 64), (64, 64))))
    whole = sinks.VideoSink(tmp_path / "whole")
    for frame in frames:
        whole.write(frame, results, lambda: image)
    assert "1 video" in whole.close() and video_writer.count_frames(tmp_path / "whole" / "video.mp4") == 3
    cut = sinks.VideoSink(tmp_path / "cut")
    for frame in frames:
        cut.write(frame, results, lambda: image)
    monkeypatch.setattr(video_writer, "count_frames", lambda path: 2)
    with pytest.raises(UserError, match=r"video\.mp4: cannot write all 3 frames"):
        cut.close()
    assert not list((tmp_path / "cut").iterdir())


def test_csv_on_full_disk(tmp_path):
    from utils.core.contracts import Frame, Geometry, ImageInfo, Results

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

    info = ImageInfo(0, "a.jpg", Geometry((64, 64), (64, 64)))
    found = Results(info, torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.long))
    sink = sinks.CsvSink(tmp_path / "predictions.csv", ("a",))
    sink.write(Frame(np.zeros((64, 64, 3), np.uint8), "a.jpg", ""), found, lambda: np.zeros(0))
    path = tmp_path / "other.txt"
    with pytest.raises(UserError, match=r"other\.txt: cannot be written \(No space left"), atomic_path(path) as _:
        Full().write("x")
    assert "1 row" in sink.close() and sorted(entry.name for entry in tmp_path.iterdir()) == ["predictions.csv"]


# ----------------------------------------------------------------------------------------------------------------------
# Options, environment, resuming


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("train", "--epochs", "-1 0 x 1.5 nan"),
        ("train", "--imgsz", "0 -5 31 99999999999 x"),
        ("train", "--seed", "x 99999999999999999999"),
        ("train", "--freeze", "-1 26 99999999999999999999"),
        ("train", "--mosaic-window", "-1 x"),
        ("train", "--batch-size", "-2 0 2.5"),
        ("train", "--label-smoothing", "-1 1 nan inf"),
        ("train", "--patience", "-1"),
        ("train", "--optimizer", "LION"),
        ("train", "--nonsense", "1"),
        ("segment.train", "--mask-ratio", "-1 0 x"),
        ("val", "--conf-thres", "-1 2 nan x"),
        ("val", "--iou-thres", "1.5"),
        ("val", "--max-det", "0"),
        ("val", "--imgsz", "1 99999999999"),
        ("val", "--task", "nothing"),
        ("val", "--workers", "-1"),
        ("detect", "--conf-thres", "-1 2 nan"),
        ("detect", "--imgsz", "0 99999999999"),
        ("detect", "--vid-stride", "0 -1"),
        ("detect", "--max-det", "-1"),
    ],
)
def test_values_out_of_range(images, network_file, tmp_path, name, option, values):
    base = ("--data", images, *TINY) if name.endswith("train") else options_for(name, network_file, images)
    for value in values.split():
        text = error_of(name, *base, f"{option}={value}", project=tmp_path / "p")
        assert option in text, text


@pytest.mark.parametrize(
    "wrong",
    [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": "2", "RANK": "y"}, {"WORLD_SIZE": "2", "RANK": "5"}, {"WORLD_SIZE": "2"}],
)
def test_invalid_launcher_environment(monkeypatch, wrong):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="environment variable") as caught:
        dist.is_main()
        dist.start(torch.device("cpu"))
    assert "torchrun" in str(caught.value) and dist.is_launched()


def test_one_line_escapes_control_characters():
    assert one_line("a\nb\tc\0d\x1b[31m ü 图") == "a\\nb\\tc\\x00d\\x1b[31m ü 图"


def test_interrupt_cancels_queued_work():
    done, start = [], threading.Event()

    def slow(number):
        start.set()
        time.sleep(0.02)
        done.append(number)

    with pytest.raises(KeyboardInterrupt), ThreadPool(2) as pool:
        waiting = [pool.submit(slow, number) for number in range(500)]
        start.wait()
        raise KeyboardInterrupt
    assert len(done) < 50 and any(future.cancelled() for future in waiting)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The last.pt of a run that was stopped after its first epoch, and the YAML of its data."""
    from utils.engine import fit as engine

    folder = tmp_path_factory.mktemp("stopped")
    data = tiny_data(folder, train=8, val=4, size=64)
    keep = engine._finish_epoch

    class StopError(Exception):
        pass

    def stop(*arguments):
        keep(*arguments)
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_finish_epoch", stop)
        with pytest.raises(StopError):
            importlib.import_module("train").run(
                data=str(data), cfg="yolov5n", imgsz=[64], batch_size=4, workers=0, epochs=2, noplots=True,
                project=str(folder / "runs"),
            )  # fmt: skip
    return folder / "runs" / "exp" / "weights" / "last.pt", data


def _resume(path):
    with pytest.raises(UserError) as caught:
        importlib.import_module("train").run(resume=str(path))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_resume_errors(stopped, tmp_path):
    last, data = stopped
    content = last.read_bytes()
    run = tmp_path / "exp" / "weights"
    run.mkdir(parents=True)
    (run / "last.pt").write_bytes(content[: len(content) // 2])
    assert "cut short" in _resume(run / "last.pt")
    yaml = data.read_text()
    data.write_text(yaml.replace("- ring\n", ""))
    assert "6 classes, but the run to resume has 7" in _resume(last)
    data.write_text(yaml)
    data.rename(data.with_suffix(".gone"))
    assert "no such data-set YAML" in _resume(last)
    data.with_suffix(".gone").rename(data)
    with pytest.raises(UserError, match=r"no last\.pt under"):
        find_last("newest", tmp_path / "nothing")
    save_checkpoint(tmp_path / "plain.pt", load_checkpoint(last).network, meta={})
    with pytest.raises(UserError, match="holds weights only"):
        load_resumable(tmp_path / "plain.pt")


def test_bare_resume_takes_newest_run(tmp_path):
    for number, name in enumerate(("exp", "exp3", "exp2")):
        path = tmp_path / name / "weights" / "last.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        os.utime(path, (1000 + number, 1000 + number))
    assert find_last("newest", tmp_path) == tmp_path / "exp2" / "weights" / "last.pt"
    assert find_last(str(tmp_path / "exp"), tmp_path) == tmp_path / "exp" / "weights" / "last.pt"


FORGED = {
    "no optimizer": lambda training: training.pop("optimizer"),
    "settings a number": lambda training: training.update(settings=3),
    "epochs a word": lambda training: training["settings"].update(epochs="x"),
    "other groups": lambda training: training["optimizer"].update(param_groups=[]),
    "a tensor gone": lambda training: training["network"].popitem(),
    "epoch a word": lambda training: training["state"].update(epoch="x"),
    "random state": lambda training: training.update(random=[{"cpu": torch.zeros(3)}]),
}


@pytest.mark.parametrize("kind", FORGED)
def test_invalid_training_state(stopped, tmp_path, kind):
    content = copy.deepcopy(torch.load(stopped[0], weights_only=True))
    FORGED[kind](content["training"])
    path = tmp_path / "exp" / "weights" / "last.pt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    assert _resume(path).startswith(str(path))


# ----------------------------------------------------------------------------------------------------------------------
# The same through the command line

LINES = [
    ("train.py", ("--epochs", "three"), {}, "--epochs"),
    ("val.py", ("--weights", "gone\n.pt"), {}, "no such file"),
    ("detect.py", ("--weights", "README.md"), {}, "README.md"),
    ("segment/predict.py", ("--weights", "README.md"), {}, "README.md"),
    ("train.py", (), {"WORLD_SIZE": "two"}, "WORLD_SIZE"),
]


@pytest.mark.parametrize(("program", "options", "extra", "says"), LINES)
def test_programs_exit_with_status_2(monkeypatch, tmp_path, program, options, extra, says):
    for name, value in extra.items():
        monkeypatch.setenv(name, value)
    text = script(program, *options, "--project", tmp_path / "p", status=2)
    lines = text.strip().splitlines()
    assert lines[-1].startswith("error: ") and says in lines[-1]
    assert sum(line.startswith("error: ") for line in lines) == 1 and "usage" not in text
    assert not (tmp_path / "p").exists() and not (ROOT / "exp").exists()


def test_error_messages_keep_whole_file_names(tmp_path):
    long = Path(tmp_path, "図" * 60, "x" * 200)
    with pytest.raises(UserError, match="図" * 60):
        open_source(str(long / "a.jpg"))
