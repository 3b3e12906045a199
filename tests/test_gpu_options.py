"""Options of the hardware: TF32, determinism, torch.compile, processes and GPUs; nothing here needs a GPU."""

import json
import zipfile
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers_export import CPU, detecting_network, noise
from helpers_run import tiny_data
from torch import nn

import export
from benchmarks.train_step import random_batch
from models.builder import build_network
from models.checkpoint import save_checkpoint
from models.network_runner import to_input
from utils.backends.open_weights import open_model, open_weights
from utils.core.data_config import load_data
from utils.core.device import configure_gpu, full_fp32, select_device, varying_sizes
from utils.core.errors import UserError
from utils.core.hyp import Hyp
from utils.core.train_settings import TrainSettings
from utils.core.val_settings import ValSettings
from utils.datasets.generators.prepare import ensure_generated
from utils.engine.fit import build_run
from utils.engine.run_setup import build_losses, open_resumed, wrap_model
from utils.engine.run_state import _restore, snapshot
from utils.programs import export_certificate
from utils.programs.predict_options import PredictOptions
from utils.tasks.task_selection import select_training_task

GPU = torch.device("cuda", 0)
TINY = {
    "nc": 3, "depth_multiple": 1.0, "width_multiple": 1.0,
    "anchors": [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]],
    "backbone": [[-1, 1, "Conv", [8, 6, 2, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "C3", [16]],
                 [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "SPPF", [32, 5]]],
    "head": [[-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[-1, 2], 1, "Concat", [1]], [-1, 1, "C3", [16, False]],
             [[7, 4], 1, "Detect", ["nc", "anchors"]]],
}  # fmt: skip


def flags():
    backends = torch.backends
    return {
        "deterministic": backends.cudnn.deterministic,
        "benchmark": backends.cudnn.benchmark,
        "convolutions": backends.cudnn.allow_tf32,
        "products": backends.cuda.matmul.allow_tf32,
        "operations": torch.are_deterministic_algorithms_enabled(),
    }


@pytest.fixture(autouse=True)
def settings_of_cuda(monkeypatch):
    """Restore the global settings, so that other tests do not depend on this file."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "unused")
    before = flags()
    yield
    torch.use_deterministic_algorithms(before["operations"])
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before["deterministic"], before["benchmark"]
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before["convolutions"], before["products"]


def test_gpu_settings():
    configure_gpu(GPU, fixed_sizes=True)
    assert flags() == {
        "deterministic": False, "benchmark": True, "convolutions": True, "products": True, "operations": False,
    }  # fmt: skip
    with varying_sizes():
        assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark
    configure_gpu(GPU, deterministic=True, fixed_sizes=True, tf32=False)
    assert flags() == {
        "deterministic": True, "benchmark": False, "convolutions": False, "products": False, "operations": True,
    }  # fmt: skip


def test_settings_of_cuda_are_left_alone_on_a_cpu():
    before = flags()
    configure_gpu(CPU, deterministic=True, fixed_sizes=True, tf32=not before["products"])
    assert flags() == before


def test_full_fp32_restores_the_settings():
    configure_gpu(GPU, tf32=True)
    with pytest.raises(KeyError), full_fp32():
        assert not flags()["convolutions"] and not flags()["products"]
        raise KeyError
    assert flags()["convolutions"] and flags()["products"]


def test_certificate_compares_without_tf32(tmp_path, monkeypatch):
    configure_gpu(GPU, tf32=True)
    save_checkpoint(tmp_path / "net.pt", detecting_network(TINY), {"imgsz": 64})
    seen = []
    compare = export_certificate.compare
    monkeypatch.setattr(export_certificate, "IMAGES", 1)
    monkeypatch.setattr(
        export_certificate, "compare", lambda *args, **more: (seen.append(flags()), compare(*args, **more))[1]
    )
    export.run(weights=[str(tmp_path / "net.pt")], include=["torchscript"], imgsz=[64], allow_mismatch=True)
    (during,) = seen
    assert not during["convolutions"] and not during["products"]


@pytest.mark.parametrize(("built_for", "device", "hint"), [("cpu", GPU, "--device cpu"), ("cuda", CPU, "--device 0")])
def test_compiled_package_for_another_device(built_for, device, hint, tmp_path):
    path = tmp_path / "net.aoti.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "net/data/aotinductor/model/a.wrapper_metadata.json", json.dumps({"AOTI_DEVICE_KEY": built_for})
        )
    with pytest.raises(UserError, match=f"compiled for {built_for}, but the device is {device.type}") as caught:
        open_weights([str(path)], device)
    assert hint in str(caught.value)


def test_damaged_compiled_package(tmp_path):
    path = tmp_path / "net.aoti.pt2"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="not an AOTInductor package"):
        open_weights([str(path)], CPU)


# ----------------------------------------------------------------------------------------------------------------------
# Processes and GPUs


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    return monkeypatch


def test_one_process_per_machine_takes_the_named_gpu(two_gpus):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}.items():
        two_gpus.setenv(name, value)
    assert select_device("1") == torch.device("cuda", 1)


def test_more_processes_than_gpus(two_gpus):
    for name, value in {"WORLD_SIZE": "3", "RANK": "2", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"}.items():
        two_gpus.setenv(name, value)
    with pytest.raises(UserError, match=r"--device 0: 3 processes on this machine, but PyTorch finds 2 GPU"):
        select_device("0")
    two_gpus.setenv("LOCAL_WORLD_SIZE", "2")
    two_gpus.setenv("LOCAL_RANK", "1")
    assert select_device("0") == torch.device("cuda", 1)


def test_cpu_run_does_not_touch_cuda(tmp_path, monkeypatch):
    path = tiny_data(tmp_path, train=4, val=2, size=64)
    ensure_generated(load_data(str(path)))

    def refuse(*_):
        raise AssertionError("a CUDA context is opened")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state", "set_device", "current_device"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    settings = TrainSettings(
        data=str(path), imgsz=(64,), batch_size=2, workers=0, device="cpu", amp="fp32", project=str(tmp_path),
        noautoanchor=True, noplots=True,
    )  # fmt: skip
    run = build_run(partial(select_training_task, "detect", ()), settings)
    batch = next(iter(run.train_loader.epoch(0)))
    assert not batch.images.is_pinned()
    assert not run.train_loader._pool.pin
    assert "cuda" not in snapshot(run)["random"][0]


def test_run_without_loss_scale_resumes_with_one(tmp_path):
    """A scaler that was off stores nothing, which one that is on does not accept."""
    path = tiny_data(tmp_path, train=4, val=2, size=64)
    ensure_generated(load_data(str(path)))
    settings = TrainSettings(
        data=str(path), imgsz=(64,), batch_size=2, workers=0, device="cpu", amp="fp32", project=str(tmp_path),
        noautoanchor=True, noplots=True,
    )  # fmt: skip
    run = build_run(partial(select_training_task, "detect", ()), settings)
    stored = snapshot(run)
    assert not stored["scaler"]
    run.scaler = torch.amp.GradScaler("cpu", enabled=True)
    _restore(run, SimpleNamespace(training=stored, network=run.ema.network))
    assert run.scaler.get_scale() == 2.0**16


def test_resuming_can_become_deterministic(tmp_path, monkeypatch):
    stored = TrainSettings(data="a.yaml")
    (tmp_path / "last.pt").touch()

    checkpoint = SimpleNamespace(training={"settings": stored.to_dict()})
    monkeypatch.setattr("utils.engine.run_setup.load_resumable", lambda path: checkpoint)
    resumed, _ = open_resumed(replace(stored, resume=str(tmp_path / "last.pt"), deterministic=True))
    assert resumed.deterministic
    assert not open_resumed(replace(stored, resume=str(tmp_path / "last.pt")))[0].deterministic


# ----------------------------------------------------------------------------------------------------------------------
# torch.compile


def gradients(model, network):
    batch = random_batch(2, 64, 3, 3)
    losses = build_losses(network, Hyp(), 64, CPU)
    raw = model(to_input(batch.images, CPU))
    torch.stack([term for head, loss in losses.items() for term in loss(raw[head], batch).values()]).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_training(backend, monkeypatch):
    """The whole network is one graph, and its gradients are those of the plain one."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = build_network(TINY, 3, ("a", "b", "c")).to(memory_format=torch.channels_last).train()
        model = wrap_model(network, TrainSettings(compile=compiled), CPU)
        assert compiled == isinstance(model, torch._dynamo.OptimizedModule)
        found.append(gradients(model, network))
    assert found[0].norm() > 0
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-4


@pytest.mark.parametrize("augment", [False, True])
def test_compiled_inference(augment, tmp_path, monkeypatch):
    torch._dynamo.reset()
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    paths = [str(tmp_path / f"{seed}.pt") for seed in range(2)]
    for seed, path in enumerate(paths):
        save_checkpoint(path, detecting_network(TINY, seed=seed), {"imgsz": 64})
    images = noise(2, 64, 64)
    settings = ValSettings(weights=tuple(paths), augment=augment)
    plain = open_model(settings, CPU).runner.run(images).decoded["detect"]["predictions"]
    assert not calls
    compiled = open_model(replace(settings, compile=True), CPU).runner.run(images).decoded["detect"]["predictions"]
    assert calls  # the members of the ensemble can have a graph in common
    torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-3)


def test_compile_needs_a_checkpoint(tmp_path):
    save_checkpoint(tmp_path / "net.pt", detecting_network(TINY), {"imgsz": 64})
    (path,) = export.run(
        weights=[str(tmp_path / "net.pt")], include=["torchscript"], imgsz=[64], allow_mismatch=True
    )  # fmt: skip
    with pytest.raises(UserError, match="--compile: exported files"):
        open_model(ValSettings(weights=(str(path),), compile=True), CPU)
    with pytest.raises(UserError, match="--visualize and --compile"):
        PredictOptions(visualize=True, compile=True)


def test_networks_are_channels_last(tmp_path):
    save_checkpoint(tmp_path / "net.pt", detecting_network(TINY), {"imgsz": 64})
    network = open_weights([str(tmp_path / "net.pt")], CPU).runner.network
    wide = [m for m in network.modules() if isinstance(m, nn.Conv2d) and min(m.weight.shape[1:]) > 1]
    assert wide and all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in wide)
    assert to_input(noise(2, 64, 64), CPU).is_contiguous(memory_format=torch.channels_last)
