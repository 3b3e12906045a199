"""Our own checkpoints: what goes in comes out, byte for byte, and nothing half-written stays."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.builder import build_network, read_architecture
from models.checkpoint import load_checkpoint, save_checkpoint
from models.fuse import fuse
from models.network import Network
from models.transfer import transfer
from utils.core.errors import UserError

SMALL = """
nc: 2
anchors: [[10, 13], [30, 61]]
activation: nn.LeakyReLU(0.1)
backbone:
  - [-1, 1, Conv, [8, 3, 8]]
  - [-1, 2, C3, [8]]
  - [-1, 1, Conv, [8, 3, 2]]
head:
  - [[1, 2], 1, Detect, [nc, anchors]]
"""


def small_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    network = build_network(read_architecture(SMALL), names=("cat", "dog"))
    network(torch.rand(4, 3, 32, 32))  # normalisation statistics of its own
    return network.eval()


def same(first: Network, second: Network) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoint_round_trip(suffix, tmp_path):
    network = small_network().to(memory_format=torch.channels_last)
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, network, {"imgsz": 640, "folder": Path("a/b"), "best": np.float64(0.5)})
    loaded = load_checkpoint(path)
    assert same(network, loaded.network)
    assert (loaded.names, loaded.task, loaded.source, loaded.training) == (("cat", "dog"), "detect", "polyolo", None)
    assert loaded.meta == {"imgsz": 640, "folder": "a/b", "best": 0.5}
    assert loaded.network.specs == network.specs
    assert isinstance(loaded.network.model[0].act, nn.LeakyReLU)
    assert all(p.requires_grad for p in loaded.network.parameters())
    images = torch.rand(1, 3, 32, 32)
    found = loaded.network(images)["detect"]["level1"]
    assert torch.equal(found, small_network()(images)["detect"]["level1"])


def test_saving_is_deterministic(tmp_path):
    for name in ("a.pt", "b.pt"):
        save_checkpoint(tmp_path / name, small_network(), {"n": 1})
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_checkpoint_loads_with_weights_only(tmp_path):
    save_checkpoint(tmp_path / "net.pt", small_network(), {}, training={"step": 3})
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    assert content["format"] == "polyolo"
    assert content["anchors"] == {"detect": (((10.0, 13.0),), ((30.0, 61.0),))}
    assert all(tensor.is_contiguous() for tensor in content["state"].values())


def test_training_state_round_trip(tmp_path):
    optimizer_state = {0: {"momentum": torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)}}
    training = {"optimizer": {"state": optimizer_state, "groups": [{"betas": (0.9, 0.99), "lr": 1e-3}]},
                "rng": random.Random(3).getstate(), "scores": np.arange(3.0), "best": None, "epoch": 4}  # fmt: skip
    save_checkpoint(tmp_path / "last.pt", small_network(), {}, training, half=True)
    loaded = load_checkpoint(tmp_path / "last.pt").training
    assert torch.equal(loaded["optimizer"]["state"][0]["momentum"], optimizer_state[0]["momentum"])
    assert loaded["optimizer"]["groups"] == training["optimizer"]["groups"]
    assert loaded["rng"] == training["rng"]
    assert loaded["scores"].tolist() == [0, 1, 2]


def test_half_precision_storage(tmp_path):
    network = small_network()
    network.set_anchors("detect", torch.tensor([[[10.1, 13.3]], [[30.7, 61.9]]]))
    save_checkpoint(tmp_path / "half.pt", network, {}, half=True)
    loaded = load_checkpoint(tmp_path / "half.pt").network
    assert torch.equal(loaded.heads["detect"].anchors, network.heads["detect"].anchors)
    weight = network.model[0].conv.weight
    assert torch.equal(loaded.model[0].conv.weight, weight.half().float())
    assert loaded.model[0].conv.weight.dtype == torch.float32


def test_fused_network_round_trip(tmp_path):
    network = fuse(small_network())
    save_checkpoint(tmp_path / "fused.pt", network, {})
    loaded = load_checkpoint(tmp_path / "fused.pt").network
    assert same(network, loaded)
    assert isinstance(loaded.model[0].bn, nn.Identity)


def test_only_plain_data_is_saved(tmp_path):
    with pytest.raises(TypeError, match="plain data"):
        save_checkpoint(tmp_path / "net.pt", small_network(), {"network": small_network()})
    with pytest.raises(ValueError, match="weights alone"):
        save_checkpoint(tmp_path / "net.safetensors", small_network(), {}, training={})
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.pt"
    save_checkpoint(path, small_network(), {})
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, small_network(1), {})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pt"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_files(suffix, tmp_path):
    path = tmp_path / f"net{suffix}"
    save_checkpoint(path, small_network(), {})
    content = path.read_bytes()
    rng, refused = random.Random(2), 0
    for case in range(120):
        damaged = bytearray(content)
        if case % 2:
            del damaged[rng.randrange(len(content)) :]
        else:
            damaged[rng.randrange(len(content) // (1 + case % 3))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
    assert refused >= 60


def test_other_kind_or_version(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "bare.safetensors")
    torch.save({"format": "polyolo", "version": 99}, tmp_path / "new.pt")
    torch.save({"format": "polyolo", "version": 1, "architecture": {}}, tmp_path / "hollow.pt")
    for name, pattern in {"bare.safetensors": "without Polyolo's description", "new.pt": "another version",
                          "hollow.pt": "damaged", "no.safetensors": "no such file"}.items():  # fmt: skip
        with pytest.raises(UserError, match=pattern):
            load_checkpoint(tmp_path / name)


def test_safetensors_metadata_is_json(tmp_path):
    from safetensors import safe_open

    save_checkpoint(tmp_path / "net.safetensors", small_network(), {})
    with safe_open(tmp_path / "net.safetensors", "pt") as archive:
        about = json.loads(archive.metadata()["polyolo"])
    assert (about["names"], about["stride"], about["task"]) == (["cat", "dog"], 16, "detect")


def test_transfer_weights():
    source = small_network(1)
    target = build_network(read_architecture(SMALL), 5)
    state = {**source.state_dict(), "model.9.extra": torch.ones(1)}
    del state["model.0.conv.weight"]
    report = transfer(target, state)
    total = len(target.state_dict())
    assert str(report) == f"Transferred {total - 5}/{total} items"
    assert report.missing == ("model.0.conv.weight",)
    assert report.unexpected == ("model.9.extra",)
    assert report.mismatched[0] == ("model.3.m.0.weight", (10, 8, 1, 1), (7, 8, 1, 1))
    assert len(report.mismatched) == 4
    assert torch.equal(target.model[2].conv.weight, source.model[2].conv.weight)


def test_transfer_without_anchors():
    source, target = small_network(1), small_network(2)
    target.set_anchors("detect", torch.tensor([[[5.0, 6.0]], [[7.0, 8.0]]]))
    report = transfer(target, source.state_dict(), skip_anchors=True)
    assert report.skipped == ("model.3.anchors",)
    assert target.specs["detect"].anchors == (((5, 6),), ((7, 8),))
    transfer(target, source.state_dict())
    assert target.specs["detect"].anchors == (((10, 13),), ((30, 61),))
