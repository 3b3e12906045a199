"""The package `polyolo`: one object that predicts, validates, trains and exports, and the command `polyolo`."""

import subprocess
import sys

import numpy as np
import pytest
from helpers_networks import write_networks
from helpers_run import ROOT, environment, tiny_data

import polyolo
from polyolo.__main__ import COMMANDS, find_command, usage
from utils.core.errors import UserError

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
SMALL = {"imgsz": [64], "batch_size": 8, "workers": 0, "device": "cpu", "noplots": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train two epochs with every callback; return the result, the model and the calls."""
    folder = tmp_path_factory.mktemp("api")
    calls = {name: [] for name in ("on_start", "on_batch", "on_epoch", "on_image", "on_checkpoint", "on_end")}
    callbacks = polyolo.Callbacks(**{name: lambda *given, to=to: to.append(given) for name, to in calls.items()})
    model = polyolo.load("yolov5n.yaml", device="cpu")
    result = model.train(tiny_data(folder), 2, callbacks=callbacks, project=str(folder / "runs"), **SMALL)
    return result, model, calls, folder


def test_training_returns_metrics_and_files(trained):
    result, model, _, folder = trained
    assert result.folder == folder / "runs" / "exp" and result.best.is_file() and result.last.is_file()
    assert 0 <= result.metrics["detect/map50"] <= 1
    assert model.weights == [str(result.best)] and len(model.names) == 7


def test_callbacks_are_called(trained):
    _, _, calls, folder = trained
    assert calls["on_start"][0][0] == folder / "runs" / "exp" and calls["on_start"][0][1]["epochs"] == 2
    assert [step for step, _ in calls["on_batch"]] == [1, 2, 3, 4]
    assert [epoch for epoch, _ in calls["on_epoch"]] == [0, 1] and "metrics/mAP_0.5" in calls["on_epoch"][0][1]
    assert {path.name for path, _, _ in calls["on_checkpoint"]} >= {"last.pt"}
    assert len(calls["on_end"]) == 1


def test_validation_equals_that_of_the_training(trained):
    result, model, _, folder = trained
    metrics = model.val(folder / "tiny.yaml", project=str(folder / "val"), **SMALL)
    assert metrics["detect/map50"] == pytest.approx(result.metrics["detect/map50"], abs=1e-3)


def test_export_and_load_of_the_file(trained):
    _, model, _, folder = trained
    file = model.export("torchscript", output=str(folder), imgsz=[64], source=str(folder / "tiny/images/val"))
    assert file.suffix == ".torchscript"
    expected = model.predict(IMAGE, size=64, conf=0.0, max_det=3)
    found = polyolo.load(file, device="cpu").predict(IMAGE, size=64, conf=0.0, max_det=3)
    assert np.allclose(found.boxes.conf, expected.boxes.conf, atol=1e-3)


def test_a_callback_stops_the_training(tmp_path):
    def stop(epoch, numbers):
        raise polyolo.StopTraining("enough")

    model = polyolo.YOLO("yolov5n.yaml", device="cpu")
    epochs = []
    callbacks = polyolo.Callbacks(on_epoch=stop, on_checkpoint=lambda path, epoch, best: epochs.append(epoch))
    model.train(tiny_data(tmp_path), 5, callbacks=callbacks, project=str(tmp_path / "runs"), **SMALL)
    assert set(epochs) == {0}


def test_results_convert(files):
    model = polyolo.load(files["masks"], device="cpu")
    results = model.predict([IMAGE, IMAGE], size=64, conf=0.0, max_det=3)
    assert isinstance(results, polyolo.Detections) and len(results.plot()) == 2 and model.task == "segment"
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = results.to_pandas()
    assert isinstance(table, pandas.DataFrame) and list(table["image"]) == ["image0.jpg"] * 3 + ["image1.jpg"] * 3
    assert list(table.columns)[1:] == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    assert isinstance(results[0].to_supervision(), supervision.Detections)
    with pytest.raises(UserError, match=r"select one"):
        results.to_supervision()


@pytest.mark.parametrize(("kind", "task"), [("boxes", "detect"), ("whole", "classify"), ("pixels", "detect")])
def test_task_of_the_checkpoint(files, kind, task):
    assert polyolo.load(files[kind], device="cpu").task == task


def test_mistakes_are_explained(files, tmp_path):
    model = polyolo.load(files["boxes"], device="cpu")
    with pytest.raises(TypeError, match="unknown option 'batchsize'; did you mean 'batch_size'"):
        model.train("shapes.yaml", batchsize=4)
    with pytest.raises(TypeError, match="unknown option 'dynamc'; did you mean 'dynamic'"):
        model.export(dynamc=True)
    with pytest.raises(UserError, match="train it first"):
        polyolo.load("yolov5n.yaml").predict(IMAGE)
    with pytest.raises(UserError, match="ensemble of 2 models cannot be trained"):
        polyolo.load([files["boxes"], files["boxes"]], device="cpu").train("shapes.yaml")
    with pytest.raises(UserError, match="unknown; use one of detect"):
        polyolo.load(files["boxes"], "segmentation")
    with pytest.raises(AttributeError, match="no attribute 'Yolo'"):
        polyolo.Yolo  # noqa: B018


def test_public_names():
    assert all(getattr(polyolo, name) is not None for name in polyolo.__all__)
    assert set(dir(polyolo)) == set(polyolo.__all__)


# ----------------------------------------------------------------------------------------------------------------------
# The command


def test_commands():
    assert find_command(["segment", "train", "--data", "x"]) == ("segment train", ["--data", "x"])
    assert find_command(["val"]) == ("val", [])
    with pytest.raises(UserError, match="did you mean 'train'"):
        find_command(["tran", "--data", "x"])
    with pytest.raises(UserError, match="did you mean 'segment train'"):
        find_command(["segmnt", "train"])
    assert all(name in usage() for name in COMMANDS)
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module, _ in COMMANDS.values())


def test_command_in_a_clone():
    def run(*arguments):
        line = [sys.executable, "-m", "polyolo", *arguments]
        done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    status, text = run("segment", "train", "--help")
    assert status == 0 and text.startswith("usage: polyolo segment train ") and "--mask-ratio" in text
    status, text = run("detect", "--no-such-option")
    assert status == 2 and "polyolo detect --help" in text
    assert run("--version") == (0, f"polyolo {polyolo.__version__}\n")
