"""Correctness of the GPU code, checked on a card: results against those of the CPU, host waits, NCCL, programs."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.train_step import random_batch
from models.builder import build_network, read_architecture
from models.network import Network
from models.network_runner import NetworkRunner, to_input
from utils.core.contracts import Batch, Loss
from utils.core.device import full_fp32
from utils.core.files import ROOT
from utils.core.host_targets import with_targets
from utils.core.hyp import Hyp
from utils.core.seed import seed_everything
from utils.engine.ema import ModelEma
from utils.engine.gradient_guard import GradientGuard
from utils.engine.parameter_groups import build_optimizer
from utils.engine.run_setup import build_losses, wrap_ddp
from utils.engine.train_epoch import compute_losses

NETWORKS = ("yolov5n", "yolov5n-seg", "yolov5n-cls", "yolov5n-sem")
SIZE, IMAGES = 128, 8
LOSS_TOLERANCE, GRADIENT_TOLERANCE, BF16_TOLERANCE = 1e-4, 5e-3, 0.05  # relative
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    passed: bool | None  # None: not applicable to this device, or no time was left
    detail: str
    seconds: float = 0.0

    def row(self) -> str:
        """Format as a row of a Markdown table."""
        word = {True: "passed", False: "**failed**", None: "skipped"}[self.passed]
        return f"| {self.name} | {word} | {self.detail} | {self.seconds:.0f} |"


def labelled_batch(network: Network, count: int = IMAGES, size: int = SIZE) -> Batch:
    """Draw a batch of noise with all kinds of labels that the heads of a network take."""
    specs = network.specs
    batch = random_batch(count, size, 7, max(spec.num_classes for spec in specs.values()))
    if "segment" in specs:
        batch.masks = torch.zeros((count, size // 4, size // 4), dtype=torch.uint8)
        for row, image in enumerate(batch.boxes[:, 0].long().tolist()):
            top = 4 * (row % 7)
            batch.masks[image, top : top + 4] = row % 7 + 1
    if "classify" in specs:
        batch.classes, batch.boxes = torch.arange(count) % specs["classify"].num_classes, batch.boxes[:0]
    if "semantic" in specs:
        random = torch.Generator().manual_seed(1)
        labels = torch.randint(0, specs["semantic"].num_classes, (count, size, size), generator=random)
        batch.semantic = labels.to(torch.uint8)
    return batch


def built(cfg: str, device: torch.device, size: int = SIZE) -> tuple[Network, dict[str, Loss]]:
    """Build a network in training mode, the same on every device, and its losses."""
    seed_everything(0)
    network = build_network(read_architecture(cfg)).train()
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network, build_losses(network, Hyp(), size, device)


def backward(
    model: nn.Module, losses: dict[str, Loss], batch: Batch, device: torch.device, mixed: torch.dtype | None
) -> Tensor:
    """Compute the loss of a batch from the host and its gradients, as training does; return the loss."""
    size_hw = (batch.images.shape[2], batch.images.shape[3])
    batch = with_targets(batch, losses, size_hw).to(device)
    with torch.autocast(device.type, dtype=mixed, enabled=mixed is not None):
        raw = model(to_input(batch.images, device))
    total, _ = compute_losses(losses, {}, raw, batch)
    total.backward()
    return total.detach()


def _outcome(cfg: str, device: torch.device, mixed: torch.dtype | None) -> tuple[float, Tensor]:
    network, losses = built(cfg, device)
    loss = float(backward(network, losses, labelled_batch(network), device, mixed))
    gradients = [p.grad.flatten().double().cpu() for p in network.parameters() if p.grad is not None]
    return loss, torch.cat(gradients)


def parity(cfg: str, device: torch.device) -> Check:
    """Compare loss, gradients and decoded outputs of a network with those of the CPU."""
    with full_fp32():
        (loss, gradients), (other, others) = _outcome(cfg, CPU, None), _outcome(cfg, device, None)
        low, _ = _outcome(cfg, device, torch.bfloat16)
        decoded = []
        for where in (CPU, device):
            network, _ = built(cfg, where)
            outputs = NetworkRunner(network.eval(), where).run(labelled_batch(network).images[:2]).decoded
            decoded.append(torch.cat([t.flatten().cpu() for one in outputs.values() for t in one.values()]))
    gap, rounded = abs(other - loss) / abs(loss), abs(low - loss) / abs(loss)
    gradient = float((others - gradients).norm() / gradients.norm())
    largest = float((decoded[1] - decoded[0]).abs().max())
    passed = gap < LOSS_TOLERANCE and gradient < GRADIENT_TOLERANCE and rounded < BF16_TOLERANCE
    detail = f"relative: loss {gap:.1e} (bf16 {rounded:.1e}), gradients {gradient:.1e}; decoded at most {largest:.1e}"
    return Check(f"{cfg} equals the CPU", passed, detail)


def host_waits(cfg: str, device: torch.device) -> Check:
    """Count the places where a training step makes the host wait for the GPU; there must be none."""
    name = f"{cfg} trains without host waits"
    if device.type != "cuda":
        return Check(name, None, "only on a GPU")
    network, losses = built(cfg, device)
    batch, ema = labelled_batch(network).pin_memory(), ModelEma(network)
    optimizer = build_optimizer(network, "SGD", Hyp(), IMAGES, device)
    guard = GradientGuard(optimizer, torch.amp.GradScaler(device.type, enabled=False), device)

    def step() -> None:
        backward(network, losses, batch, device, torch.bfloat16)
        guard.step()
        ema.update()

    for _ in range(2):
        step()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in seen if "synchroniz" in str(one.message)]
    return Check(name, not places, ", ".join(places) or "none")


def process_group(device: torch.device) -> Check:
    """Train a step with DDP and SyncBatchNorm in a group of one process, and use the collectives of training."""
    distributed = torch.distributed
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        options = {"device_id": device} if backend == "nccl" else {}
        distributed.init_process_group(backend, init_method=f"file://{folder}/group", rank=0, world_size=1, **options)
        try:
            network, losses = built("yolov5n", device)
            ema = ModelEma(network)
            model: nn.Module = network
            if device.type == "cuda":
                model = nn.SyncBatchNorm.convert_sync_batchnorm(network)
            model = wrap_ddp(model, device)
            loss = float(backward(model, losses, labelled_batch(network), device, None))
            for tensor in ema.network.state_dict().values():
                distributed.broadcast(tensor, src=0)
            gathered: list[object] = [None]
            distributed.all_gather_object(gathered, {"loss": loss})
            distributed.barrier()
        finally:
            distributed.destroy_process_group()
    return Check(f"{backend}: DDP and collectives", math.isfinite(loss) and gathered == [{"loss": loss}], "one process")


# ----------------------------------------------------------------------------------------------------------------------
# Programs


def program_lines(folder: Path, device: str, data: str, quick: bool) -> Iterator[tuple[str, list[str]]]:
    """List the programs to run, in order: name and command line."""
    run = str(folder / "run")
    where = ["--device", device, "--project", run, "--exist-ok"]
    train = ["--data", data, *where, "--noplots"]
    small = ["--img", "64", "--batch-size", "4", "--workers", "0"] if quick else []
    weights = f"{run}/a/weights/best.pt"
    yield "train", ["train.py", *train, *small, "--name", "a", "--epochs", "1" if quick else "3"]
    yield "detect", ["detect.py", "--weights", weights, "--data", data, *where, "--name", "detect"]
    if quick:
        return
    yield "train in fp16", ["train.py", *train, "--name", "fp16", "--amp", "fp16", "--epochs", "2"]
    batch = ["--batch-size", "-1", "--save-period", "1", "--epochs", "2"]
    yield "automatic batch size", ["train.py", *train, "--name", "auto", *batch]
    yield "resume", ["train.py", "--resume", f"{run}/auto/weights/epoch0.pt", "--device", device]
    yield "psp head", ["train.py", *train, "--name", "psp", "--semantic", "psp", "--epochs", "1"]
    yield "segment", ["segment/train.py", *train, "--name", "segment", "--epochs", "1"]
    yield "classify", ["classify/train.py", *where, "--noplots", "--name", "classify", "--epochs", "1"]
    yield "val", ["val.py", "--weights", weights, *where, "--name", "val"]
    yield "val in half precision with TTA", ["val.py", "--weights", weights, *where, "--half", "--augment"]
    yield "export", ["export.py", "--weights", weights, "--include", "torchscript", "pt2", "--device", device]
    exported = weights.replace("best.pt", "best.torchscript")
    yield "TorchScript", ["detect.py", "--weights", exported, "--data", data, *where, "--name", "torchscript"]
    yield "compiled", ["train.py", *train, "--name", "compiled", "--compile", "--epochs", "1"]


def run_program(name: str, line: list[str], project: Path, seconds: float) -> Check:
    """Run a program; it passes if it ends normally and all losses in its results are finite."""
    try:
        command = [sys.executable, *line]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return Check(name, None, "no time left")
    if done.returncode:
        reason = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        return Check(name, False, reason[-1][-200:].replace("|", "/"))
    if "--name" not in line or not line[0].endswith("train.py"):
        return Check(name, True, "")
    table = project / line[line.index("--name") + 1] / "results.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    losses = [float(text) for row in rows for key, text in row.items() if key.strip().startswith("train/")]
    return Check(name, bool(losses) and all(map(math.isfinite, losses)), f"{len(rows)} epoch(s), losses finite")


def checks(device: torch.device, quick: bool) -> list[Callable[[float], Check]]:
    """List the checks without programs; each is called with the seconds that are left."""
    networks = NETWORKS[:1] if quick else NETWORKS
    found: list[Callable[[float], Check]] = [lambda _, cfg=cfg: parity(cfg, device) for cfg in networks]  # type: ignore[misc]
    found += [lambda _, cfg=cfg: host_waits(cfg, device) for cfg in networks]  # type: ignore[misc]
    return [*found, lambda _: process_group(device)]


def run_checks(device: torch.device, data: str, quick: bool, seconds: float) -> list[Check]:
    """Run all checks, then the programs, for at most `seconds`; what does not fit is reported as skipped."""
    deadline, found = time.monotonic() + seconds, []
    with tempfile.TemporaryDirectory() as folder:
        actions = checks(device, quick)
        text = "cpu" if device.type == "cpu" else str(device.index or 0)
        for name, line in program_lines(Path(folder), text, data, quick):
            actions.append(lambda left, n=name, c=line: run_program(n, c, Path(folder) / "run", left))  # type: ignore[misc]
        for action in actions:
            start = time.monotonic()
            check = action(max(deadline - start, 1.0))
            found.append(Check(check.name, check.passed, check.detail, time.monotonic() - start))
    return found
