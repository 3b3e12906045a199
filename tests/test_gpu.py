"""CUDA code paths on a simulated GPU: no mixed devices, few kernel launches, no host waits in a training step."""

import json
from pathlib import Path

import pytest
import simulated_gpu
import torch
from helpers_run import tiny_data
from torch import nn

from models.architecture import read_architecture
from models.builder import build_network
from models.checkpoint import save_checkpoint
from utils.core.data_config import load_data
from utils.core.device import autocast_dtype
from utils.core.yaml_file import write_yaml
from utils.engine.autobatch import MAX_BATCH, fitting_batch
from utils.engine.batchnorm_counters import BatchNormCounters
from utils.engine.bn_sparsity import add_bn_sparsity
from utils.engine.gradient_guard import MAX_BAD_STEPS_IN_A_ROW, GradientGuard
from utils.engine.optimizers import OPTIMIZERS, OptimizerOptions
from utils.engine.parameter_groups import clip_gradients

needs_simulation = pytest.mark.skipif(bool(simulated_gpu.available()), reason=simulated_gpu.available() or "available")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"), train=32, val=8, size=64)


def steps(folder: Path, script: str, *options: object) -> list[dict]:
    """Train for one epoch on the simulated GPU; return the counts between successive optimizer steps."""
    report = folder / "steps.json"
    common = ["--device", "0", "--epochs", "2", "--img", "64", "--workers", "0", "--noplots", "--noval", "--nosave"]
    done, record = simulated_gpu.run_simulated(
        ["tests/gpu_step_counts.py", report, script, *options, *common, "--project", folder], strict=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert record["mixed"] == {}
    return json.loads(report.read_text())


@needs_simulation
@pytest.mark.parametrize(
    ("script", "options", "limit"),
    [
        ("train.py", ["--amp", "bf16"], 800),
        ("train.py", ["--amp", "fp16"], 800),
        ("segment/train.py", ["--amp", "bf16"], 1100),
        ("train.py", ["--amp", "bf16", "--semantic", "psp"], 1200),
        ("train.py", ["--amp", "bf16", "--cfg", "polyolo-n", "--end-to-end"], 1600),
        ("segment/train.py", ["--amp", "bf16", "--cfg", "polyolo-n-seg"], 1600),
    ],
    ids=["detect-bf16", "detect-fp16", "segment", "psp", "dense", "dense-segment"],
)
def test_training_step_launches_and_waits(tmp_path, data, script, options, limit):
    check_steps(tmp_path, limit, script, "--data", data, *options)


@needs_simulation
def test_hard_pixels_and_region_losses_do_not_wait(tmp_path, data):
    write_yaml(tmp_path / "regions.yaml", {"seg_loss": "ohem", "seg_dice": 0.5, "seg_lovasz": 0.5})
    options = ("--amp", "bf16", "--semantic", "psp", "--hyp", tmp_path / "regions.yaml")
    check_steps(tmp_path, 4000, "train.py", "--data", data, *options)


@needs_simulation
@pytest.mark.parametrize(("family", "limit"), [("yolov5n", 1200), ("polyolo-n", 1600)])
def test_distillation_does_not_wait(tmp_path, data, family, limit):
    names = list(load_data(str(data)).names)
    save_checkpoint(tmp_path / "teacher.pt", build_network(read_architecture(family), len(names), names), {})
    options = ("--amp", "bf16", "--cfg", family, "--noautoanchor", "--distill", tmp_path / "teacher.pt")
    check_steps(tmp_path, limit, "train.py", "--data", data, *options)


def check_steps(tmp_path: Path, limit: int, script: str, *options: object) -> None:
    """Train for two epochs; a steady step must launch at most `limit` kernels and never wait."""
    counts = steps(tmp_path, script, "--batch-size", 16, *options)
    steady = counts[0]  # both batches of the first epoch
    assert 100 < steady["launches"] <= limit
    assert steady["waits"] == {}
    (results,) = tmp_path.rglob("results.csv")
    rows = results.read_text().splitlines()[1:]
    assert len(rows) == 2 and all("nan" not in row.split(",")[1].lower() for row in rows)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": list(module.parameters()), "role": "decay"}]
    return OPTIMIZERS.get("SGD")(groups, OptimizerOptions(0.1, 0.9, fused=True))


def test_sgd_momentum_starts_at_zero():
    """The fused kernel would leave it uninitialised after a skipped first step."""
    layer = nn.Linear(3, 2)
    optimizer = sgd(layer)
    buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter in layer.parameters()]
    assert all(buffer.count_nonzero() == 0 for buffer in buffers)
    plain = torch.optim.SGD([parameter.detach().clone().requires_grad_() for parameter in layer.parameters()],
                            lr=0.1, momentum=0.9, nesterov=True)  # fmt: skip
    for _ in range(3):
        for ours, other in zip(layer.parameters(), plain.param_groups[0]["params"], strict=True):
            ours.grad = torch.ones_like(ours)
            other.grad = torch.ones_like(other)
        optimizer.step()
        plain.step()
    for ours, other in zip(layer.parameters(), plain.param_groups[0]["params"], strict=True):
        assert torch.equal(ours, other)


def test_bad_steps_are_skipped_and_counted():
    layer = nn.Linear(2, 1)
    guard = GradientGuard(sgd(layer), torch.amp.GradScaler("cpu", enabled=False), torch.device("cpu"))
    before = layer.weight.detach().clone()
    for value in (float("nan"), 1.0, float("inf")):
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, value)
        guard.step()
    assert guard.bad_steps == 2 and not guard.failed
    assert torch.isfinite(layer.weight).all() and not torch.equal(layer.weight, before)


def test_diverged_fp16_run_is_detected():
    layer = nn.Linear(2, 1)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    guard = GradientGuard(sgd(layer), scaler, torch.device("cpu"))
    for step in range(MAX_BAD_STEPS_IN_A_ROW + 1):
        assert not guard.failed, step
        scaler.scale(layer(torch.full((1, 2), float("inf"))).sum()).backward()
        guard.step()
    assert guard.failed


def test_bf16_is_not_emulated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert autocast_dtype(torch.device("cuda", 0)) is torch.float16


def test_bn_sparsity_finds_synchronised_layers():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    optimizer = sgd(network)
    add_bn_sparsity(network, optimizer, strength=0.5, images=4)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(network[1].weight.grad, torch.full((4,), 2.0))


def test_clipping_lets_torch_choose_the_implementation(monkeypatch):
    """`foreach=True` raises on devices without multi-tensor kernels, such as Apple's."""
    seen = {}
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **options: seen.update(options))
    clip_gradients([])
    assert seen.get("foreach") is None


def test_large_gpu_gets_the_largest_batch():
    memory = {1: 1e8, 2: 2e8, 4: 4e8}
    assert fitting_batch(memory, free=139 * 2**30, fraction=0.8) == MAX_BATCH == 1024


def test_paused_counters_agree_with_torch():
    ours, theirs = (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)) for _ in range(2))
    ours[2].eval()
    theirs[2].eval()
    counters = BatchNormCounters(ours)
    for _ in range(3):
        with counters.paused():
            assert ours[1].num_batches_tracked is None
            ours(torch.rand(2, 3, 4, 4))
        theirs(torch.rand(2, 3, 4, 4))
    counters.flush()
    counters.flush()
    names = ("1.num_batches_tracked", "2.num_batches_tracked")
    assert [int(ours.state_dict()[name]) for name in names] == [int(theirs.state_dict()[name]) for name in names]
    assert list(ours.state_dict()) == list(theirs.state_dict())
