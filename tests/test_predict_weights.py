"""From `--weights` to a runner."""

import os

import pytest
import torch

from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from utils.backends.open_weights import find_weights, open_weights, strip_weights
from utils.backends.pytorch import record_feature_maps
from utils.core.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    network = build_network(read_architecture("yolov5n"), 2, ("cat", "dog"))
    save_checkpoint(folder / "a.pt", network, {"imgsz": 96}, training={"optimizer": [torch.zeros(1_000_000)]})
    save_checkpoint(folder / "b.safetensors", network, {})
    save_checkpoint(folder / "three.pt", build_network(read_architecture("yolov5n"), 3, ("x", "y", "z")), {})
    return folder


IMAGES = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_fuse_keeps_results(weights):
    opened = open_weights([str(weights / "a.pt")], CPU)
    plain = load_checkpoint(weights / "a.pt").network.eval()
    expected = plain.decode(plain(IMAGES / 255))["detect"]["predictions"]
    assert torch.allclose(opened.runner.run(IMAGES).decoded["detect"]["predictions"], expected, rtol=1e-3, atol=1e-3)
    assert opened.name == "a" and opened.meta["imgsz"] == 96 and opened.runner.names == ("cat", "dog")


def test_ensemble_and_augment(weights):
    alone = 3 * (8 * 12 + 4 * 6 + 2 * 3)
    twice = open_weights([str(weights / "a.pt")] * 2, CPU).runner
    assert twice.run(IMAGES).decoded["detect"]["predictions"].shape == (1, 2 * alone, 7)
    more = open_weights([str(weights / "a.pt")], CPU, augment=True).runner
    assert more.run(IMAGES).decoded["detect"]["predictions"].shape[1] > alone
    assert record_feature_maps(more) == {}


def test_safetensors(weights):
    first, second = (open_weights([str(weights / name)], CPU).runner.run(IMAGES) for name in ("a.pt", "b.safetensors"))
    assert torch.equal(first.decoded["detect"]["predictions"], second.decoded["detect"]["predictions"])


def test_half_precision(weights):
    full = open_weights([str(weights / "a.pt")], CPU).runner.run(IMAGES)
    half = open_weights([str(weights / "a.pt")], CPU, half=True).runner.run(IMAGES)
    difference = full.decoded["detect"]["predictions"] - half.decoded["detect"]["predictions"]
    assert difference[..., 4:].abs().max() < 0.02


def test_recorded_layers(weights):
    runner = open_weights([str(weights / "a.pt")], CPU).runner
    maps = record_feature_maps(runner)
    runner.run(IMAGES)
    assert maps["00_Conv"].shape == (1, 16, 32, 48) and len(maps) == 24  # the head gives no single map


def test_incompatible_models(weights):
    with pytest.raises(UserError, match="2 and 3 classes"):
        open_weights([str(weights / "a.pt"), str(weights / "three.pt")], CPU)


def test_default_weights_are_newest_run(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train a model with `python train.py`"):
        find_weights([" "])
    for age, name in enumerate(("exp2", "exp")):
        path = tmp_path / "runs" / "train" / name / "weights" / "best.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (1000 - age, 1000 - age))
    assert find_weights([])[0].parts[-3] == "exp2"


def test_unknown_formats(tmp_path):
    with pytest.raises(UserError, match=r"unknown format \'\.docx\'"):
        open_weights([str(tmp_path / "a.docx")], CPU)


def test_update_strips_checkpoint(weights, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes((weights / "a.pt").read_bytes())
    before = path.stat().st_size
    strip_weights([path])
    again = load_checkpoint(path)
    assert path.stat().st_size < before - 4_000_000 and again.training is None and again.meta["imgsz"] == 96
