"""Every logger accepts a run; what it wrote can be read back; one that fails harms nobody."""

import logging
import sys

import cv2
import numpy as np
import pytest

from utils.core.errors import UserError
from utils.loggers import LOGGERS, Loggers
from utils.loggers.csv_file import CsvFile, read_results

NUMBERS = {"train/box_loss": 0.123456789, "metrics/mAP_0.5": 0.5, "metrics/mAP_0.5:0.95": 1e-7, "x/lr0": 0.07}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "labels.png"
    cv2.imwrite(str(path), np.tile(np.uint8([[[255, 0, 0]]]), (8, 6, 1)))  # blue
    return path


@pytest.mark.parametrize("name", LOGGERS.names())
def test_every_logger_accepts_a_run(name, tmp_path, picture, caplog):
    if name != "csv":
        pytest.importorskip(name, reason=f"{name} is not installed")
    loggers = Loggers([name])
    loggers.start(tmp_path, {"epochs": 2, "imgsz": [64], "entity": None, "project": "runs/train"})
    loggers.picture(picture, 0)
    for epoch in range(2):
        loggers.epoch(epoch, NUMBERS)
    loggers.finish({"detect/map50": 0.5}, [])
    assert "switched off" not in caplog.text


def test_csv_has_yolov5s_layout(tmp_path):
    logger = CsvFile()
    logger.start(tmp_path, {})
    logger.epoch(0, NUMBERS)
    logger.epoch(1, NUMBERS | {"x/lr0": 12345678.0})
    assert (tmp_path / "results.csv").read_text() == (
        "               epoch,      train/box_loss,     metrics/mAP_0.5,metrics/mAP_0.5:0.95,               x/lr0\n"
        "                   0,             0.12346,                 0.5,               1e-07,                0.07\n"
        "                   1,             0.12346,                 0.5,               1e-07,          1.2346e+07\n"
    )


def logged(folder, epochs, value):
    logger = CsvFile()
    logger.start(folder, {})
    for epoch in epochs:
        logger.epoch(epoch, {"loss": value})
    return read_results(folder / "results.csv")


def test_csv_of_a_resumed_run_has_every_epoch_once(tmp_path):
    logged(tmp_path, range(4), 1.0)
    assert logged(tmp_path, [2], 2.0) == {0: {"loss": 1.0}, 1: {"loss": 1.0}, 2: {"loss": 2.0}}
    assert (tmp_path / "results.csv").read_text().count("epoch") == 1


def test_csv_of_a_new_run_in_an_old_folder_starts_anew(tmp_path):
    logged(tmp_path, range(4), 1.0)
    assert logged(tmp_path, [0], 2.0) == {0: {"loss": 2.0}}


def test_csv_writes_nan_for_numbers_an_epoch_lacks(tmp_path):
    logger = CsvFile()
    logger.start(tmp_path, {})
    logger.epoch(0, {"loss": 1.0})
    logger.epoch(1, {"loss": 0.5, "map": 0.25})
    rows = read_results(tmp_path / "results.csv")
    assert np.isnan(rows[0]["map"])
    assert rows[1] == {"loss": 0.5, "map": 0.25}


def test_csv_leaves_out_lines_that_are_not_whole(tmp_path):
    logged(tmp_path, range(2), 1.0)
    path = tmp_path / "results.csv"
    path.write_text(path.read_text() + "2, one\n3\n")
    assert list(read_results(path)) == [0, 1]
    path.write_text("")
    assert read_results(path) == {}


def test_tensorboard_holds_the_numbers_and_the_picture(tmp_path, picture):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for epochs in (range(3), range(1, 3)):  # the second start resumes at epoch 1
        loggers = Loggers(["tensorboard"])
        loggers.start(tmp_path / "run", {})
        for epoch in epochs:
            loggers.epoch(epoch, {"metrics/mAP_0.5": 0.25 * epoch})
        loggers.picture(picture, 2)
        loggers.finish({}, [])
    events = reading.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("metrics/mAP_0.5")] == [(0, 0), (1, 0.25), (2, 0.5)]
    encoded = np.frombuffer(events.Images("labels")[0].encoded_image_string, np.uint8)
    assert cv2.imdecode(encoded, cv2.IMREAD_COLOR)[0, 0].tolist() == [255, 0, 0]


def test_tensorboard_is_not_started_unless_asked(tmp_path):
    loggers = Loggers(["csv"])
    loggers.start(tmp_path, {})
    loggers.epoch(0, NUMBERS)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def test_wandb_is_offline_and_continues_its_run(tmp_path, picture, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for epoch in range(2):
        loggers = Loggers(["wandb"])
        loggers.start(tmp_path, {"project": "runs/train", "imgsz": [64]})
        assert loggers._active["wandb"]._run.settings._offline
        loggers.epoch(epoch, NUMBERS)
        loggers.picture(picture, epoch)
        loggers.finish({"detect/map50": 0.5}, [])
        assert list(loggers._active) == ["wandb"]
    name = (tmp_path / "wandb_id.txt").read_text().strip()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{name}*"))) == 2


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_at_the_start(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"--log {name} needs a package: pip install {name}"):
        Loggers([name]).start(tmp_path, {})


def test_an_unknown_logger_is_a_user_error():
    with pytest.raises(UserError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        Loggers(["csv", "tensorbord"])


class PackageError(Exception):
    pass


class Failing:
    def __init__(self, error, errors=()):
        self.error, self.errors, self.calls = error, errors, 0

    def start(self, run_dir, settings):
        pass

    def epoch(self, epoch, numbers):
        self.calls += 1
        raise self.error

    def picture(self, path, epoch):
        pass

    def finish(self, numbers, checkpoints):
        self.calls += 1


@pytest.mark.parametrize(
    "error",
    [OSError("disk full\nmore"), RuntimeError("disk full"), ValueError("disk full"), PackageError("disk full")],
    ids=lambda error: type(error).__name__,
)
def test_a_failing_logger_warns_once_and_the_others_go_on(tmp_path, monkeypatch, caplog, error):
    failing = Failing(error, (PackageError,))
    monkeypatch.setitem(LOGGERS._entries, "failing", lambda: failing)
    loggers = Loggers(["failing", "csv"])
    loggers.start(tmp_path, {})
    with caplog.at_level(logging.WARNING, logger="polyolo"):
        for epoch in range(3):
            loggers.epoch(epoch, NUMBERS)
        loggers.finish({}, [])
    assert failing.calls == 1
    assert [record.getMessage() for record in caplog.records] == [
        "logger failing failed and is switched off: disk full"
    ]
    assert list(read_results(tmp_path / "results.csv")) == [0, 1, 2]


def test_a_mistake_of_ours_in_a_logger_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS._entries, "failing", lambda: Failing(TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        Loggers(["failing"]).epoch(0, {})


def test_a_results_file_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    loggers = Loggers(["csv"])
    loggers.start(tmp_path / "file", {})
    with caplog.at_level(logging.WARNING, logger="polyolo"):
        loggers.epoch(0, NUMBERS)
        loggers.epoch(1, NUMBERS)
    assert caplog.text.count("logger csv failed") == 1


def test_other_ranks_log_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    loggers = Loggers(["csv"])
    loggers.start(tmp_path, {})
    loggers.epoch(0, NUMBERS)
    assert not list(tmp_path.iterdir())
