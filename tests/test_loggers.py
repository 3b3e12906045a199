"""Tests of the loggers: each accepts a run, its output can be read back, and a failing one does not stop the run."""

import json
import logging
import subprocess
import sys
import threading
import time
import zipfile

import cv2
import numpy as np
import pytest
from helpers_run import ROOT, tiny_data

from utils.core.contracts import StopTraining
from utils.core.errors import UserError
from utils.core.registry import registered_names
from utils.loggers import LOGGERS, Loggers, async_logger
from utils.loggers.csv_file import CsvFile, read_results

NUMBERS = {"train/box_loss": 0.123456789, "metrics/mAP_0.5": 0.5, "metrics/mAP_0.5:0.95": 1e-7, "x/lr0": 0.07}


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "labels.png"
    cv2.imwrite(str(path), np.tile(np.uint8([[[255, 0, 0]]]), (8, 6, 1)))  # blue
    return path


PACKAGES = {"csv": "csv", "comet": "comet_ml"}


@pytest.fixture(autouse=True)
def no_home(monkeypatch, tmp_path):
    """Keep what services would write into the user's home below the test's folder."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_MODE", "COMET_MODE", "CLEARML_OFFLINE_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


OWN_TESTS = {"wandb", "mlflow", "clearml", "comet"}  # below, which do the same and read it back


@pytest.mark.filterwarnings("ignore")  # packages of services warn about themselves
@pytest.mark.parametrize("name", [name for name in LOGGERS.names() if name not in OWN_TESTS])
def test_every_logger_accepts_a_run(name, tmp_path, image_file, caplog):
    package = PACKAGES.get(name, name)
    pytest.importorskip(package, reason=f"{package} is not installed")
    loggers = Loggers([name])
    loggers.start(tmp_path, {"epochs": 2, "imgsz": [64], "entity": None, "project": "runs/train"})
    loggers.image(image_file, 0)
    for epoch in range(2):
        loggers.epoch(epoch, NUMBERS)
    loggers.finish({"detect/map50": 0.5}, [])
    assert "switched off" not in caplog.text and loggers.active == [name]


def test_csv_layout(tmp_path):
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


def test_csv_of_resumed_run(tmp_path):
    logged(tmp_path, range(4), 1.0)
    assert logged(tmp_path, [2], 2.0) == {0: {"loss": 1.0}, 1: {"loss": 1.0}, 2: {"loss": 2.0}}
    assert (tmp_path / "results.csv").read_text().count("epoch") == 1


def test_csv_of_new_run_in_existing_folder(tmp_path):
    logged(tmp_path, range(4), 1.0)
    assert logged(tmp_path, [0], 2.0) == {0: {"loss": 2.0}}


def test_csv_missing_values_are_nan(tmp_path):
    logger = CsvFile()
    logger.start(tmp_path, {})
    logger.epoch(0, {"loss": 1.0})
    logger.epoch(1, {"loss": 0.5, "map": 0.25})
    rows = read_results(tmp_path / "results.csv")
    assert np.isnan(rows[0]["map"])
    assert rows[1] == {"loss": 0.5, "map": 0.25}


def test_csv_drops_incomplete_lines(tmp_path):
    logged(tmp_path, range(2), 1.0)
    path = tmp_path / "results.csv"
    path.write_text(path.read_text() + "2, one\n3\n")
    assert list(read_results(path)) == [0, 1]
    path.write_text("")
    assert read_results(path) == {}


def test_tensorboard(tmp_path, image_file):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for epochs in (range(3), range(1, 3)):  # the second start resumes at epoch 1
        loggers = Loggers(["tensorboard"])
        loggers.start(tmp_path / "run", {})
        for epoch in epochs:
            loggers.epoch(epoch, {"metrics/mAP_0.5": 0.25 * epoch})
        loggers.image(image_file, 2)
        loggers.finish({}, [])
    events = reading.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("metrics/mAP_0.5")] == [(0, 0), (1, 0.25), (2, 0.5)]
    encoded = np.frombuffer(events.Images("labels")[0].encoded_image_string, np.uint8)
    assert cv2.imdecode(encoded, cv2.IMREAD_COLOR)[0, 0].tolist() == [255, 0, 0]


def test_tensorboard_is_opt_in(tmp_path):
    loggers = Loggers(["csv"])
    loggers.start(tmp_path, {})
    loggers.epoch(0, NUMBERS)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


def twice(name, tmp_path, image_file):
    """Log a run of one epoch that is resumed for another; return the run's folder."""
    folder, checkpoint = tmp_path / "runs" / "exp", tmp_path / "best.pt"
    folder.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    for epoch in range(2):
        loggers = Loggers([name])
        loggers.start(folder, {"project": "runs/train", "imgsz": [64], "entity": None})
        loggers.epoch(epoch, NUMBERS | {"metrics/mAP_0.5": 0.25 * (epoch + 1), "nothing": float("nan")})
        loggers.image(image_file, epoch)
        loggers.finish(*(({}, []) if epoch == 0 else ({"detect/map50": 0.5}, [checkpoint])))
        assert loggers.active == [name]
    return folder


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_and_resume(tmp_path, image_file):
    pytest.importorskip("wandb")
    folder = twice("wandb", tmp_path, image_file)
    name = (folder / "wandb_id.txt").read_text().strip()
    runs = sorted((folder / "wandb").glob(f"offline-run-*-{name}*"))
    assert len(runs) == 2 and all(list(run.glob("files/media/images/labels_*.png")) for run in runs)
    stored = [run.joinpath(f"run-{name}.wandb").read_bytes() for run in runs]
    assert b"metrics/mAP_0.5:0.95" in stored[0] and f"run_{name}_model".encode() not in stored[0]
    assert b"best.pt" in stored[1] and f"run_{name}_model".encode() in stored[1]


@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path, image_file):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    folder = twice("mlflow", tmp_path, image_file)
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("train").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["imgsz"]) == ("exp", "FINISHED", "[64]")
    history = client.get_metric_history(run.info.run_id, "metrics/mAP_0.5")
    assert [(point.step, point.value) for point in history] == [(0, 0.25), (1, 0.5)]
    assert run.data.metrics["final/detect/map50"] == 0.5 and "nothing" not in run.data.metrics
    files = tmp_path / "runs" / "mlflow-files" / run.info.run_id / "artifacts"
    assert (files / "weights" / "best.pt").read_bytes() == b"weights" and (files / "pictures" / "labels.png").is_file()


@pytest.mark.filterwarnings("ignore")
def test_clearml(tmp_path, image_file):
    pytest.importorskip("clearml")
    folder = twice("clearml", tmp_path, image_file)
    sessions = sorted((folder / "clearml" / "offline").glob("*.zip"), key=lambda path: path.stat().st_mtime)
    assert len(sessions) == 2
    with zipfile.ZipFile(sessions[1]) as archive:
        names = archive.namelist()
        events = [json.loads(line) for line in archive.read("metrics.jsonl").decode().splitlines()]
        assert json.loads(archive.read("task.json"))["name"] == "exp"
    found = {(e.get("metric"), e.get("variant"), e.get("iter")): e.get("value") for batch in events for e in batch}
    assert found["metrics", "mAP_0.5", 1] == 0.5
    assert any(name.endswith("artifacts/best/best.pt") for name in names) and any("labels" in name for name in names)


@pytest.mark.filterwarnings("ignore")
def test_comet(tmp_path, image_file):
    pytest.importorskip("comet_ml")
    folder = twice("comet", tmp_path, image_file)
    name = (folder / "comet_id.txt").read_text().strip()
    archives = sorted((folder / "comet").glob(f"{name}*.zip"), key=lambda path: path.stat().st_mtime)
    assert len(archives) == 2
    with zipfile.ZipFile(archives[1]) as archive:
        text = archive.read("messages.json").decode()
        messages = [json.loads(line) for line in text.splitlines()]
        names = archive.namelist()
    metrics = [message["payload"].get("metric") or {} for message in messages]
    values = {metric["metricName"]: metric["metricValue"] for metric in metrics if "metricName" in metric}
    assert float(values["metrics/mAP_0.5"]) == 0.5 and float(values["final/detect/map50"]) == 0.5
    assert any("best.pt" in text for text in (*names, text))


MODULES = {"tensorboard": "torch.utils.tensorboard", "comet": "comet_ml", "mlflow": "mlflow.entities"}


@pytest.mark.parametrize("name", [name for name in LOGGERS.names() if name != "csv"])
def test_missing_package(tmp_path, monkeypatch, name):
    package = PACKAGES.get(name, name)
    monkeypatch.setitem(sys.modules, MODULES.get(name, name), None)
    with pytest.raises(UserError, match=f"--log {name} needs a package: pip install {package}"):
        Loggers([name]).start(tmp_path, {})


def test_loggers_are_loaded_on_demand():
    code = (
        "import sys; from utils.loggers import LOGGERS, Loggers; LOGGERS.names(); Loggers(['csv'])\n"
        "print([name for name in ('wandb', 'mlflow', 'clearml', 'comet_ml', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_help_lists_every_logger():
    assert set(registered_names("utils.loggers")) == set(LOGGERS.names())


def test_unknown_logger():
    with pytest.raises(UserError, match="unknown logger 'tensorbord'; did you mean 'tensorboard'"):
        Loggers(["csv", "tensorbord"])


class PackageError(Exception):
    pass


class Failing:
    def __init__(self, error):
        self.error, self.calls = error, 0

    def start(self, run_dir, settings):
        pass

    def epoch(self, epoch, numbers):
        self.calls += 1
        raise self.error

    def image(self, path, epoch):
        pass

    def finish(self, numbers, checkpoints):
        self.calls += 1


ERRORS = [
    (OSError("disk full\nmore"), "OSError: disk full"),
    (RuntimeError("disk full"), "RuntimeError: disk full"),
    (PackageError("disk full"), "PackageError: disk full"),
    (TypeError(), "TypeError"),
]


@pytest.mark.parametrize(("error", "says"), ERRORS, ids=lambda value: type(value).__name__)
def test_failing_logger_is_disabled(tmp_path, monkeypatch, caplog, error, says):
    failing = Failing(error)
    monkeypatch.setitem(LOGGERS._entries, "failing", lambda: failing)
    loggers = Loggers(["failing", "csv"])
    loggers.start(tmp_path, {})
    with caplog.at_level(logging.WARNING, logger="polyolo"):
        for epoch in range(3):
            loggers.epoch(epoch, NUMBERS)
        loggers.finish({}, [])
    assert failing.calls == 1 and loggers.active == ["csv"]
    assert [record.getMessage() for record in caplog.records] == [f"logger failing failed and is switched off: {says}"]
    assert list(read_results(tmp_path / "results.csv")) == [0, 1, 2]


@pytest.mark.parametrize("error", [PackageError("disk full"), UserError("disk full")], ids=lambda e: type(e).__name__)
def test_failure_is_logged_with_type_and_traceback(monkeypatch, caplog, error):
    monkeypatch.setitem(LOGGERS._entries, "failing", lambda: Failing(error))
    loggers = Loggers(["failing"])
    with caplog.at_level(logging.DEBUG, logger="polyolo"):
        loggers.epoch(0, NUMBERS)
        end = time.monotonic() + 20
        while len(caplog.records) < 2 and time.monotonic() < end:  # without another call to the logger
            time.sleep(0.005)
    warning, details = caplog.records
    kind = type(error).__name__
    assert warning.getMessage() == f"logger failing failed and is switched off: {kind}: disk full"
    assert warning.threadName == "logger failing" and not loggers.active
    assert details.levelno == logging.DEBUG and "Traceback" in details.getMessage()
    assert "raise self.error" in details.getMessage()


def test_user_error_at_start_is_raised(tmp_path, monkeypatch, caplog):
    class Absent(Failing):
        def start(self, run_dir, settings):
            raise UserError("no key")

    monkeypatch.setitem(LOGGERS._entries, "absent", lambda: Absent(None))
    with pytest.raises(UserError, match="no key"):
        Loggers(["absent"]).start(tmp_path, {})
    assert not caplog.records


class Slow(Failing):
    """Waits in every epoch until it is released."""

    def __init__(self):
        super().__init__(None)
        self.gate, self.epochs = threading.Event(), []

    def epoch(self, epoch, numbers):
        self.gate.wait(20)
        self.epochs.append(epoch)


def test_slow_logger_does_not_block(tmp_path, monkeypatch):
    slow = Slow()
    monkeypatch.setitem(LOGGERS._entries, "slow", lambda: slow)
    loggers = Loggers(["slow"])
    loggers.start(tmp_path, {})
    start = time.perf_counter()
    for epoch in range(50):
        loggers.epoch(epoch, NUMBERS)
    assert time.perf_counter() - start < 1 and slow.epochs == []
    slow.gate.set()
    loggers.finish({}, [])
    assert slow.epochs == list(range(50)) and slow.calls == 1


def test_hanging_logger_is_abandoned(tmp_path, monkeypatch, caplog):
    slow = Slow()
    monkeypatch.setitem(LOGGERS._entries, "slow", lambda: slow)
    monkeypatch.setattr(async_logger, "FINISH_TIMEOUT_S", 0.05)
    monkeypatch.setattr(async_logger, "QUEUE_SIZE", 4)
    loggers = Loggers(["slow"])
    loggers.start(tmp_path, {})
    with caplog.at_level(logging.WARNING, logger="polyolo"):
        for epoch in range(20):
            loggers.epoch(epoch, NUMBERS)
        loggers.finish({}, [])
    slow.gate.set()
    assert "too slow" in caplog.text and "not finished" in caplog.text and "calls were dropped" in caplog.text
    assert len(caplog.records) == 3


class Stopping(Failing):
    def epoch(self, epoch, numbers):
        self.seen = numbers
        if epoch == 1:
            raise StopTraining("good enough")


def test_custom_logger_can_stop_training(tmp_path):
    import train

    own = Stopping(None)
    data = tiny_data(tmp_path, train=4, val=4, size=64)
    train.run(
        [own], data=str(data), cfg="yolov5n", imgsz=[64], batch_size=4, workers=0, epochs=9, noplots=True,
        project=str(tmp_path / "runs"),
    )  # fmt: skip
    assert len(read_results(tmp_path / "runs" / "exp" / "results.csv")) == 2 and own.calls == 1
    assert "metrics/mAP_0.5" in own.seen and (tmp_path / "runs" / "exp" / "results.json").is_file()


class Following(Failing):
    """Logger that records the arguments of every hook."""

    def __init__(self):
        super().__init__(None)
        self.batches, self.checkpoints, self.epochs, self.images = {}, [], [], []

    def batch(self, step, numbers):
        self.batches[step] = numbers

    def checkpoint(self, path, epoch, best):
        assert path.is_file()
        self.checkpoints.append((path.name, epoch, best))

    def epoch(self, epoch, numbers):
        self.epochs.append(epoch)

    def image(self, path, epoch):
        assert path.is_file()
        self.images.append((epoch, path.parent.name, path.name))


def test_custom_logger_hooks(tmp_path):
    import train

    own = Following()
    data = tiny_data(tmp_path, train=8, val=4, size=64)
    train.run(
        [own], data=str(data), cfg="yolov5n", imgsz=[64], batch_size=4, workers=0, epochs=3, save_period=2,
        picture_interval=2, project=str(tmp_path / "runs"),
    )  # fmt: skip
    assert list(own.batches) == [1, 2, 3, 4, 5, 6] and own.epochs == [0, 1, 2] and own.calls == 1
    assert own.batches[1].keys() == {"train/detect/box", "train/detect/obj", "train/detect/cls"}
    rows = read_results(tmp_path / "runs" / "exp" / "results.csv")
    mean = (own.batches[3]["train/detect/box"] + own.batches[4]["train/detect/box"]) / 2
    assert rows[1]["train/box_loss"] == pytest.approx(mean, rel=1e-3)
    assert [c[:2] for c in own.checkpoints if c[0] != "best.pt"] == [
        ("epoch0.pt", 0), ("last.pt", 0), ("last.pt", 1), ("epoch2.pt", 2), ("last.pt", 2),
    ]  # fmt: skip
    assert ("best.pt", 0, True) in own.checkpoints
    assert [name for epoch, folder, name in own.images if folder == "epoch1" and epoch == 1] == [
        "val_batch0_labels.jpg", "val_batch0_pred.jpg",
    ]  # fmt: skip
    assert not [row for row in own.images if row[1] in ("epoch0", "epoch2")]


def test_device_sync_only_for_batch_loggers():
    assert not Loggers(["csv"]).wants_batches and Loggers(["csv"], [Following()]).wants_batches


@pytest.mark.filterwarnings("ignore")
def test_wandb_checkpoints(tmp_path):
    pytest.importorskip("wandb")
    for name in ("epoch4.pt", "last.pt"):
        (tmp_path / name).write_bytes(b"weights")
    loggers = Loggers(["wandb"])
    loggers.start(tmp_path, {})
    for name in ("epoch4.pt", "last.pt"):
        loggers.checkpoint(tmp_path / name, 4, True)
    loggers.finish({}, [])
    name = (tmp_path / "wandb_id.txt").read_text().strip()
    (stored,) = (tmp_path / "wandb").glob(f"offline-run-*-{name}*/run-{name}.wandb")
    content = stored.read_bytes()
    assert f"run_{name}_model".encode() in content and b"epoch4.pt" in content and b"last.pt" not in content


def test_custom_logger_errors_are_raised():
    with pytest.raises(TypeError, match="a bug"):
        Loggers([], [Failing(TypeError("a bug"))]).epoch(0, {})


def test_unwritable_results_csv_ends_the_run(tmp_path):
    """Its lines are results of the run: without them a resumed run would not equal an undisturbed one."""
    (tmp_path / "file").write_text("")
    loggers = Loggers(["csv"])
    loggers.start(tmp_path / "file", {})
    with pytest.raises(UserError, match=r"results\.csv: cannot be written"):
        loggers.epoch(0, NUMBERS)


def test_only_rank_zero_logs(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    loggers = Loggers(["csv"])
    loggers.start(tmp_path, {})
    loggers.epoch(0, NUMBERS)
    assert not list(tmp_path.iterdir())
