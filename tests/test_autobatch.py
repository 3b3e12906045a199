"""The batch size chosen by the device: the rules on made-up measurements, the measuring on a small network."""

import logging

import pytest
import torch
from helpers_run import tiny_data, weights

import train
from models.builder import build_network
from utils.core.cli import explicit_options
from utils.core.errors import UserError
from utils.core.train_options import training_parser
from utils.core.train_settings import TrainSettings
from utils.core.yaml_file import read_yaml
from utils.engine import autobatch
from utils.engine.autobatch import available_memory, choose_batch, fitting_batch, growing_batch

GIB = 2**30
LINE = {batch: (1 + 0.5 * batch) * GIB for batch in (1, 2, 4, 8, 16)}  # 1 GiB for the network, half a GiB an image


@pytest.mark.parametrize(("free", "share", "batch"), [(20, 0.8, 30), (20, 0.5, 18), (80, 0.9, 142), (3, 0.8, 2)])
def test_memory_extrapolation(free, share, batch):
    assert fitting_batch(LINE, free * GIB, share) == batch  # (free x share - 1) / 0.5, rounded down


def test_out_of_memory_batch_is_never_chosen():
    small = {batch: LINE[batch] for batch in (1, 2, 4)}
    assert fitting_batch(small, 20 * GIB, 0.8, failed=8) == 4
    assert fitting_batch(small, 4 * GIB, 0.8, failed=8) == 4  # the line says (3.2 - 1) / 0.5 = 4 itself


@pytest.mark.parametrize(
    ("memory", "free", "failed", "batch"),
    [
        ({}, 20, 1, 16),  # not even one image: the training itself will say so
        ({1: 1.5 * GIB}, 20, 2, 1),  # one point is no line
        ({1: GIB, 2: GIB, 4: GIB}, 20, None, 16),  # an image costs nothing?
        (LINE, 1, None, 16),  # less than one image
        (LINE, 2000, None, 16),  # more than 1024
    ],
)
def test_implausible_fit_falls_back_to_sixteen(memory, free, failed, batch, caplog):
    with caplog.at_level(logging.WARNING, logger="polyolo"):
        assert fitting_batch(memory, free * GIB, 0.8, failed) == batch
    assert f"taking {batch}" in caplog.text


@pytest.mark.parametrize(
    ("rates", "free", "batch"),
    [
        ({1: 10, 2: 18, 4: 30, 8: 31, 16: 90}, 1000, 4),  # 8 brings 3 % more: not enough, and nobody looks further
        ({1: 10, 2: 9}, 1000, 1),
        ({1: 1, 2: 2, 4: 4, 8: 8, 16: 16, 32: 32, 64: 64}, 1000, 64),
        ({1: 1, 2: 2, 4: 4}, 7, 4),  # eight images do not fit
        ({1: 1}, 0.5, 1),  # a training needs one image
    ],
)
def test_cpu_batch_doubles_while_throughput_grows(rates, free, batch):
    assert growing_batch(lambda n: rates[n], bytes_per_image=1.0, free=free) == batch


def test_measuring_has_no_side_effects(monkeypatch):
    monkeypatch.setattr(autobatch, "_CPU_BATCHES", (1, 2))
    net = build_network("yolov5n.yaml")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    assert choose_batch(net, 64, torch.device("cpu"), None, 0.8) in (1, 2)
    assert torch.equal(state, torch.get_rng_state()) and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_activation_memory_per_image():
    trial = autobatch._Trial(build_network("yolov5n.yaml"), 64, torch.device("cpu"), None)
    kept = trial.kept_bytes()
    trial.size = 128
    assert 3.5 < trial.kept_bytes() / kept < 4.5  # four times the pixels
    assert 2**18 < kept < 2**24


def test_free_memory():
    assert 2**20 < available_memory() < 2**50 or available_memory() == float("inf")


@pytest.mark.parametrize(("text", "value"), [("-1", -1), ("0.6", 0.6), ("8", 8), ("16.0", 16)])
def test_batch_size_values(text, value):
    chosen = explicit_options(training_parser(""), ["--batch-size", text])["batch_size"]
    assert chosen == value and type(chosen) is type(value)


@pytest.mark.parametrize("value", [0, -2, 1.5, -0.5])
def test_invalid_batch_size(value):
    with pytest.raises(UserError, match="--batch-size"):
        TrainSettings(batch_size=value)


def test_auto_batch_is_saved_for_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(autobatch, "_CPU_BATCHES", (1, 2, 4))
    data = tiny_data(tmp_path, train=8, val=4, size=64)
    train.run(
        data=str(data), cfg="yolov5n", imgsz=[64], batch_size=0.5, workers=0, epochs=1, noplots=True, quad=True,
        save_period=1, project=str(tmp_path / "runs"), noval=True,
    )  # fmt: skip
    folder = tmp_path / "runs" / "exp"
    assert read_yaml(folder / "args.yaml")["batch_size"] == 4  # --quad takes multiples of four
    stored = torch.load(folder / "weights" / "epoch0.pt", weights_only=True)["training"]["settings"]
    assert stored["batch_size"] == 4 and weights(folder / "weights" / "best.pt")
