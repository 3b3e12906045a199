"""Duplicate filter: detections without NMS in PyTorch and exported files, both ways in results.json."""

import pytest
import torch
from helpers_export import CPU, detecting_network, needs, noise, written
from helpers_run import results, tiny_data

import export
import train
import val
from models.architecture import read_architecture
from models.checkpoint import save_checkpoint
from models.ensemble import Ensemble
from models.network_runner import NetworkRunner
from models.tta import with_tta
from utils.backends.open_weights import open_weights, use_end_to_end
from utils.core.contracts import EvalSettings, Geometry, ImageInfo, Results
from utils.core.errors import UserError
from utils.postprocess.detect import DetectPostProcess


@pytest.fixture(scope="module")
def network():
    return detecting_network({**read_architecture("polyolo-n"), "end_to_end": True})


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save_checkpoint(path, network, {"imgsz": 96})
    return path


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr("utils.programs.export_certificate.IMAGES", 2)


def opened(path):
    runner = open_weights([str(path)], CPU).runner
    use_end_to_end(runner)
    return runner


def test_default_is_the_dense_branch(checkpoint):
    decoded = open_weights([str(checkpoint)], CPU).runner.run(noise(1, 96, 96)).decoded["detect"]
    assert decoded.keys() == {"predictions"}
    assert opened(checkpoint).run(noise(1, 96, 96)).decoded["detect"].keys() == {"end_to_end"}


def test_post_processing_selects_rows():
    rows = torch.tensor([[[0.0, 0, 8, 8, 0.9, 1], [0, 0, 8, 8, 0.8, 0], [1, 1, 9, 9, 0.7, 1], [0, 0, 1, 1, 0.1, 1]]])
    spec = detecting_network("polyolo-n").specs["detect"]
    result = Results(ImageInfo(0, "", Geometry((96, 96), (96, 96))))
    for settings, scores in (
        (EvalSettings(confidence=0.5), [0.9, 0.8, 0.7]),  # equal boxes stay: there is no NMS
        (EvalSettings(confidence=0.5, classes=(1,)), [0.9, 0.7]),
        (EvalSettings(confidence=0.05, max_detections=1), [0.9]),
    ):
        DetectPostProcess(spec, settings)({"end_to_end": rows}, [result])
        assert result.scores.tolist() == pytest.approx(scores)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["torchscript", "onnx", "openvino", "pt2"])
def test_exported_file_gives_the_same_detections(name, dynamic, checkpoint, tmp_path):
    needs(name)
    options = {"dynamic": True, "imgsz": []} if dynamic else {}
    _, runner = written(checkpoint, tmp_path, name, end_to_end=True, **options)
    images = noise(2, 96, 64) if dynamic else noise(2, 96, 96)  # fewer than 300 cells in the first case
    ours = opened(checkpoint).run(images).decoded["detect"]["end_to_end"]
    theirs = runner.run(images).decoded["detect"]["end_to_end"]
    assert theirs.shape == ours.shape == (2, 300, 6) and runner.specs["detect"].end_to_end
    confident = ours[..., 4] > 0.05
    assert int(confident.sum()) > 10
    torch.testing.assert_close(theirs[..., 4], ours[..., 4], atol=1e-4, rtol=0)
    same = ((theirs - ours).abs().amax(dim=-1) < 0.05)[confident]
    assert float(same.float().mean()) > 0.98  # rows of nearly equal scores may change places


@pytest.mark.parametrize("name", ["ncnn", "coreml", "safetensors"])
def test_formats_without_its_operators_refuse_it(name, checkpoint, tmp_path, caplog):
    with pytest.raises(UserError, match=f"{name} not exported"):
        export.run(weights=[str(checkpoint)], include=[name], end_to_end=True, output=str(tmp_path))
    assert "--end-to-end: not supported for" in caplog.text and not list(tmp_path.iterdir())


def test_both_ways_are_in_the_results(tmp_path):
    data = tiny_data(tmp_path, train=16, val=8, size=64)
    chosen = {"cfg": "polyolo-n", "imgsz": [64], "batch_size": 8, "workers": 0, "epochs": 2, "noplots": True}
    train.run(data=str(data), project=str(tmp_path), name="run", end_to_end=True, **chosen)
    found = results(tmp_path / "run")
    assert {"detect/map50_95", "detect/map50_95_end_to_end"} <= found.keys()
    best = str(tmp_path / "run" / "weights" / "best.pt")
    scores = val.run(weights=[best], data=str(data), end_to_end=True, noplots=True, workers=0, batch_size=16)
    assert scores["detect/map50_95"] == pytest.approx(found["detect/map50_95_end_to_end"], abs=1e-3)


def test_impossible_uses(network, checkpoint, tmp_path):
    plain = tmp_path / "plain.pt"
    save_checkpoint(plain, detecting_network("polyolo-n"), {"imgsz": 96})
    with pytest.raises(UserError, match="no duplicate filter"):
        opened(plain)
    with pytest.raises(UserError, match="merge boxes by NMS"):
        use_end_to_end(open_weights([str(plain)], CPU, augment=True).runner)
    runner = opened(checkpoint)
    with pytest.raises(UserError, match="test-time augmentation merges boxes"):
        with_tta(runner)
    with pytest.raises(UserError, match="an ensemble merges boxes"):
        Ensemble([runner, NetworkRunner(network, CPU)])
    with pytest.raises(UserError, match="--end-to-end and --nms"):
        export.run(weights=[str(checkpoint)], include=["onnx"], end_to_end=True, nms=True, output=str(tmp_path))
    with pytest.raises(UserError, match="has no anchor-free head"):
        train.run(data=str(tiny_data(tmp_path)), cfg="yolov5n", end_to_end=True, project=str(tmp_path))
