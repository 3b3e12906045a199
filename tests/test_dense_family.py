"""The polyolo family in what works for other families: training, resuming, views, ensembles, hub, transfer."""

import importlib

import cv2
import pytest
import torch
from helpers_export import detecting_network, noise
from helpers_run import results, same, tiny_data, weights

from models.architecture import known_names, read_architecture
from models.builder import build_network
from models.checkpoint import save_checkpoint
from models.ensemble import Ensemble
from models.network_runner import NetworkRunner
from models.summary import summarize
from models.tta import with_tta
from utils.core.contracts import EvalSettings, Geometry, ImageInfo, Results
from utils.postprocess import POSTPROCESS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=16, val=8, size=64)


def train(data, folder, name, script="train", **options):
    chosen = {"cfg": "polyolo-n", "imgsz": [64], "batch_size": 8, "workers": 0, "noplots": True, "epochs": 2} | options
    importlib.import_module(script).run(data=str(data), project=str(folder), name=name, **chosen)
    return folder / name


COUNTS = {  # parameters of the networks with 80 classes, and GFLOPs at 640
    "polyolo-n": (2_222_048, 6.1),
    "polyolo-s": (7_856_496, 19.1),
    "polyolo-m": (22_183_440, 53.1),
    "polyolo-l": (48_010_288, 115.2),
    "polyolo-x": (89_119_632, 215.4),
    "polyolo-n-direct": (1_911_980, 4.8),
    "polyolo-n-seg": (2_525_264, 9.2),
    "polyolo-x-seg": (94_331_712, 282.1),
    "polyolo-n-pan": (2_701_909, 11.0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    with torch.device("meta"):
        network = build_network(read_architecture(name))
    summary = summarize(network, 640)
    assert (summary.parameters, round(summary.gflops or 0, 1)) == COUNTS[name]


def test_names_of_the_family():
    scales = {name.removeprefix("polyolo-") for name in known_names() if name.startswith("polyolo-")}
    assert {"n", "s", "m", "l", "x", "n-direct", "x-direct", "n-seg", "x-seg", "n-pan", "x-pan"} <= scales


def test_training_with_other_options(data, tmp_path):
    chosen = {"cfg": "polyolo-n-direct", "semantic": "base", "multi_scale": [64, 96], "optimizer": "Adam"}
    folder = train(data, tmp_path, "run", slimming=1e-4, **chosen)
    table = (folder / "results.csv").read_text().splitlines()
    header = [column.strip() for column in table[0].split(",")]
    assert {"train/dfl_loss", "val/dfl_loss", "train/box_loss"} <= set(header) and "train/obj_loss" not in header
    values = [float(value) for value in table[-1].split(",")]
    assert len(values) == len(header) and values[header.index("train/dfl_loss")] > 0
    assert results(folder)["detect/map50"] is not None and "semantic/miou" in results(folder)


def test_anchors_are_not_fitted(data, tmp_path, caplog):
    with caplog.at_level("INFO", "polyolo"):
        train(data, tmp_path, "run", epochs=1, rect=True)
    assert "nothing to fit" in caplog.text


def test_resume_is_bit_exact(data, tmp_path):
    folder = train(data, tmp_path, "run", epochs=2, save_period=1, end_to_end=True)
    whole = weights(folder / "weights" / "last.pt")
    importlib.import_module("train").run(resume=str(folder / "weights" / "epoch0.pt"), workers=0)
    assert same(weights(folder / "weights" / "last.pt"), whole)


def test_backbone_of_yolov5_is_transferred(data, tmp_path, caplog):
    path = tmp_path / "yolov5n.pt"
    source = build_network(read_architecture("yolov5n"), num_classes=3)
    save_checkpoint(path, source, {})
    with caplog.at_level("INFO", "polyolo"):
        folder = train(data, tmp_path, "run", weights=str(path), epochs=1)
    own = build_network(read_architecture("polyolo-n")).state_dict()
    body = [name for name in source.state_dict() if not name.startswith("model.24.")]
    assert f"Transferred {len(body)}/{len(own)} items" in caplog.text
    last = weights(folder / "weights" / "last.pt")
    name = "model.5.conv.weight"
    torch.testing.assert_close(last[name].float(), source.state_dict()[name], rtol=0.2, atol=0.02)


def test_views_and_ensembles():
    networks = [detecting_network("polyolo-n"), detecting_network("yolov5n", seed=1)]
    first, second = (NetworkRunner(network, CPU) for network in networks)
    images = noise(2, 96, 96)
    joined = Ensemble([first, second]).run(images).decoded["detect"]["predictions"]
    parts = [runner.run(images).decoded["detect"]["predictions"] for runner in (first, second)]
    assert torch.equal(joined, torch.cat(parts, dim=1))
    decoded = with_tta(first).run(images).decoded["detect"]
    assert decoded["predictions"].shape[1] > parts[0].shape[1]
    found = [Results(ImageInfo(i, "", Geometry((96, 96), (96, 96)))) for i in range(2)]
    POSTPROCESS.get("detect")(networks[0].specs["detect"], EvalSettings())(decoded, found)
    assert all(len(result.boxes) for result in found)


def test_mirrored_view_finds_mirrored_boxes():
    """A head without anchors is symmetric: the boxes of a symmetric network on a mirrored image are mirrored."""
    network = detecting_network("polyolo-n")
    raw = {f"level{i}": torch.randn(1, 67, side, side) for i, side in enumerate((8, 4, 2))}
    head = network.heads["detect"]
    mirrored = {}
    for name, level in raw.items():
        left, top, right, bottom, classes = level.flip(3).split((16, 16, 16, 16, 3), dim=1)
        mirrored[name] = torch.cat((right, top, left, bottom, classes), dim=1)
    ours, theirs = head.decode(raw)["predictions"], head.decode(mirrored)["predictions"]
    start = 0
    for side in (8, 4, 2):
        rows = slice(start, start + side * side)
        flipped = theirs[0, rows].view(side, side, -1).flip(1).flatten(0, 1)
        torch.testing.assert_close(ours[0, rows, 0], 64 - flipped[:, 0])
        torch.testing.assert_close(ours[0, rows, 1:], flipped[:, 1:])
        start += side * side


def test_hub_model(tmp_path):
    from hubconf import custom

    path = tmp_path / "model.pt"
    save_checkpoint(path, detecting_network("polyolo-n"), {"imgsz": 96})
    cv2.imwrite(str(tmp_path / "image.png"), noise(1, 90, 120)[0].permute(1, 2, 0).numpy())
    detections = custom(str(path))(str(tmp_path / "image.png"))
    assert detections.xyxy[0].shape[1] == 6
