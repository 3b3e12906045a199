"""--dnn: ONNX files run by OpenCV give what onnxruntime gives."""

import json

import cv2
import onnx
import pytest
import torch
from helpers_export import CLASSES, CPU, detecting_network, needs, noise, reference, written
from helpers_run import tiny_data

import detect
import val
from models.builder import classification_network
from models.checkpoint import save_checkpoint
from utils.backends.open_weights import open_weights
from utils.core.errors import UserError
from utils.core.yaml_file import read_yaml, write_yaml

NETWORKS = {
    "detect": lambda: detecting_network("yolov5n"),
    "segment": lambda: detecting_network("yolov5n-seg"),
    "classify": lambda: classification_network(detecting_network("yolov5n"), 3, CLASSES).eval(),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a checkpoint and its ONNX file of every task, sizes open."""
    needs("onnx")
    folder, made = tmp_path_factory.mktemp("dnn"), {}
    for task, network in NETWORKS.items():
        save_checkpoint(folder / f"{task}.pt", network(), {"imgsz": 96})
        path, _ = written(folder / f"{task}.pt", folder, "onnx", dynamic=True)
        made[task] = (folder / f"{task}.pt", path)
    return made


@pytest.mark.parametrize("task", NETWORKS)
def test_opencv_matches_checkpoint(task, files):
    checkpoint, path = files[task]
    runner = open_weights([str(path)], CPU, dnn=True).runner
    for images in (noise(1, 96, 96), noise(2, 96, 96) if task == "classify" else noise(2, 64, 128)):
        ours, theirs = reference(checkpoint).run(images).decoded, runner.run(images).decoded
        assert theirs.keys() == ours.keys()
        for head in ours:
            for key, tensor in ours[head].items():
                torch.testing.assert_close(theirs[head][key], tensor, rtol=2e-3, atol=2e-3)


def test_file_without_metadata(files, tmp_path):
    model = onnx.load(str(files["segment"][1]))
    del model.metadata_props[:]
    model.metadata_props.add(key="names", value=str(dict(enumerate(CLASSES))))
    model.metadata_props.add(key="stride", value="32")
    onnx.save(model, str(tmp_path / "theirs.onnx"))
    runner = open_weights([str(tmp_path / "theirs.onnx")], CPU, dnn=True).runner
    assert runner.specs["segment"].num_masks == 32 and runner.names == CLASSES


def test_dnn_option(files, tmp_path):
    data = tiny_data(tmp_path, train=4, val=4)
    values = read_yaml(data)
    write_yaml(data, {**values, "names": values["names"][:3]})  # as many as the network knows
    options = {"data": str(data), "imgsz": [96], "workers": 0, "noplots": True, "project": str(tmp_path / "runs")}
    path = str(files["detect"][1])
    for name, dnn in (("opencv", True), ("onnxruntime", False)):
        val.run(weights=[path], name=name, dnn=dnn, **options)
    found = [json.loads((tmp_path / "runs" / name / "results.json").read_text()) for name in ("opencv", "onnxruntime")]
    assert found[0]["detect/map50"] == pytest.approx(found[1]["detect/map50"], abs=1e-3)
    source = str(next((tmp_path / "tiny").rglob("*.*g")))
    detect.run(weights=[path], source=source, dnn=True, imgsz=[96], project=str(tmp_path / "seen"))
    assert list((tmp_path / "seen" / "exp").glob("*.jpg"))


def test_unsupported_by_opencv(files, tmp_path, monkeypatch):
    checkpoint, path = files["detect"]
    with pytest.raises(UserError, match=r"--dnn runs \.onnx files"):
        open_weights([str(checkpoint)], CPU, dnn=True)
    bytes_file, _ = written(checkpoint, tmp_path, "onnx", with_preprocess="rgb")
    with pytest.raises(UserError, match="inputs of float32, this file takes uint8"):
        open_weights([str(bytes_file)], CPU, dnn=True)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"broken\.onnx: "):
        open_weights([str(broken)], CPU, dnn=True)
    with pytest.raises(UserError, match="OpenCV runs on the CPU"):
        open_weights([str(path)], torch.device("cuda", 0), dnn=True)

    def refuses(name):
        raise cv2.error("unknown operator")

    monkeypatch.setattr(cv2.dnn, "readNetFromONNX", refuses)
    with pytest.raises(UserError, match=r"cannot run this file \(unknown operator\); leave --dnn out"):
        open_weights([str(path)], CPU, dnn=True)
