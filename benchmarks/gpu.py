"""Everything to measure on a graphics card in ten minutes, after the checks that its results are right.

python benchmarks/gpu.py --device 0 --write
python benchmarks/gpu.py --device cpu --quick

Checks: losses, gradients and decoded boxes equal those of the CPU, training steps without host waits, NCCL, and each
program once. Measurements: training step, epoch, validation and inference of YOLOv5 n, s and m in fp32, TF32, bf16 and
fp16, eager and compiled, beside a plain PyTorch network of the same layers (NCHW, BatchNorm not folded, optimizer and
EMA that loop over tensors) in the same precision. What does not fit into --minutes is left out and listed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.gpu_checks import backward, run_checks
from benchmarks.machine import alternate, command_arguments, new_parser, publish, ratios, report, spread
from benchmarks.train_step import our_side, plain_side, random_batch
from models.builder import build_network, read_architecture
from models.fuse import fuse
from models.network_runner import to_input
from utils.core.cli import run_script
from utils.core.device import configure_gpu, select_device
from utils.core.interrupt import Interrupt
from utils.core.seed import seed_everything
from utils.core.timing import Stopwatch
from utils.core.train_settings import TrainSettings
from utils.engine.evaluate import evaluate
from utils.engine.fit import build_run
from utils.engine.train_epoch import train_one_epoch
from utils.tasks.task_selection import select_training_task

NAME = "gpu"
PRECISIONS = {
    "fp32": (None, False),
    "tf32": (None, True),
    "bf16": (torch.bfloat16, True),
    "fp16": (torch.float16, True),
}
CHECKS_SHARE = 0.5  # of the time


@dataclass(frozen=True)
class Case:
    """One measurement of a training step or of inference."""

    cfg: str
    batch: int
    precision: str
    compiled: bool = False

    def label(self) -> str:
        """Format as the first columns of a table row."""
        return f"| {self.cfg} | {self.batch} | {self.precision} | {'compiled' if self.compiled else 'eager'} |"


def training_cases(quick: bool) -> Iterator[Case]:
    """List the training steps, the most interesting ones first."""
    if quick:
        yield Case("yolov5n", 2, "fp32")
        return
    for precision in ("bf16", "fp32", "tf32", "fp16"):
        yield from (Case(cfg, 16, precision) for cfg in ("yolov5n", "yolov5s", "yolov5m"))
    yield from (Case("yolov5s", batch, precision) for batch in (8, 64) for precision in ("fp32", "bf16", "fp16"))
    yield from (Case(cfg, 16, "bf16", compiled=True) for cfg in ("yolov5s", "yolov5n"))


def inference_cases(quick: bool) -> Iterator[Case]:
    """List the inference batches, the most interesting ones first."""
    if quick:
        yield Case("yolov5n", 1, "fp32")
        return
    for precision in ("fp16", "fp32", "tf32", "bf16"):
        for cfg in ("yolov5s", "yolov5n", "yolov5m"):
            yield from (Case(cfg, batch, precision) for batch in (1, 8, 32, 64))
    yield from (Case("yolov5s", batch, "fp16", compiled=True) for batch in (1, 32))


def training_actions(case: Case, options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], None]]:
    """Build the training steps of both sides from a batch on the host, without waits for the device."""
    mixed, tf32 = PRECISIONS[case.precision]
    configure_gpu(device, fixed_sizes=True, tf32=tf32)
    batch = random_batch(case.batch, options.size, 7, read_architecture(case.cfg)["nc"])
    batch = batch.pin_memory() if device.type == "cuda" else batch
    settings = argparse.Namespace(size=options.size, batch_size=case.batch, amp="fp32")

    def action(plain: bool) -> Callable[[], None]:
        side = (plain_side if plain else our_side)(case.cfg, settings, device)
        model = torch.compile(side.network) if case.compiled and not plain else side.network

        def step() -> None:
            backward(model, side.losses, batch, device, mixed)  # type: ignore[arg-type]
            side.clip([p for group in side.optimizer.param_groups for p in group["params"]])
            side.optimizer.step()
            side.optimizer.zero_grad(set_to_none=True)
            side.ema.update()

        if plain:  # the plain network takes contiguous images
            side.network.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        return step

    return {"ours": action(plain=False), "plain": action(plain=True)}


def inference_actions(case: Case, options: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], None]]:
    """Build the inference of both sides, from bytes on the device to decoded boxes."""
    mixed, tf32 = PRECISIONS[case.precision]
    configure_gpu(device, fixed_sizes=True, tf32=tf32)
    dtype = mixed or torch.float32
    images = random_batch(case.batch, options.size, 7, 80).images.to(device)
    seed_everything(0)
    network = build_network(read_architecture(case.cfg)).eval().requires_grad_(False)
    ours = fuse(network).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    plain = build_network(read_architecture(case.cfg)).eval().requires_grad_(False).to(device, dtype)
    model = torch.compile(ours) if case.compiled else ours

    @torch.inference_mode()
    def run_ours() -> None:
        ours.decode(model(to_input(images, device, dtype)))

    @torch.inference_mode()
    def run_plain() -> None:
        plain.decode(plain(images.contiguous().to(dtype) / 255))

    return {"ours": run_ours, "plain": run_plain}


def count_kernels(action: Callable[[], None], device: torch.device) -> str:
    """Count the kernels and copies of one call."""
    if device.type != "cuda":
        return "–"
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        action()
        torch.cuda.synchronize()
    return str(sum(one.device_type == torch.autograd.DeviceType.CUDA for one in profiler.events() or []))


def peak_mebibytes(action: Callable[[], None], device: torch.device) -> str:
    """Measure the peak memory of one call, with what is allocated before it."""
    if device.type != "cuda":
        return "–"
    torch.cuda.reset_peak_memory_stats(device)
    action()
    torch.cuda.synchronize(device)
    return f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f}"


def measure(case: Case, actions: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> str:
    """Measure both sides in alternation; return the table row."""

    def timed(action: Callable[[], None]) -> float:
        with Stopwatch(device) as watch:
            action()
        return watch.seconds

    found = alternate({name: partial(timed, action) for name, action in actions.items()}, rounds, warm_up=3)
    ours, plain = (spread(found[name]).scaled(1000) for name in ("ours", "plain"))
    faster = ratios(found["plain"], found["ours"])
    rate = 1000 * case.batch / ours.median
    counts = " | ".join(count_kernels(action, device) for action in actions.values())
    memory = " | ".join(peak_mebibytes(action, device) for action in actions.values())
    times = f"{ours.text(1)} | {plain.text(1)} | **{faster.text()}** | {rate:.0f}"
    return f"{case.label()} {times} | {memory} | {counts} |"


def measured_table(
    title: str, cases: Iterator[Case], build: Callable[..., dict[str, Callable[[], None]]],
    options: argparse.Namespace, device: torch.device, deadline: float,
) -> list[str]:  # fmt: skip
    """Measure the cases until the deadline; return a section of the report."""
    head = ["network", "images", "precision", "mode", "ours, ms", "plain, ms", "speedup", "images/s"]
    head += ["ours, MiB", "plain, MiB", "ours, kernels", "plain, kernels"]
    rows, left_out = [], []
    for case in cases:
        if time.monotonic() > deadline:
            left_out.append(f"{case.cfg} {case.batch} {case.precision}{' compiled' if case.compiled else ''}")
            continue
        try:
            rows.append(measure(case, build(case, options, device), options.rounds, device))
        except torch.OutOfMemoryError:
            left_out.append(f"{case.cfg} {case.batch} {case.precision} (out of memory)")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows, ""]
    return [*lines, f"Not measured: {', '.join(left_out)}.", ""] if left_out else lines


def epoch_and_validation(options: argparse.Namespace, device: torch.device) -> list[str]:
    """Time an epoch of training and a validation, with the loader."""
    with TemporaryDirectory() as folder:
        settings = TrainSettings(
            data=options.data, cfg="yolov5n" if options.quick else "yolov5s", imgsz=(options.size,),
            batch_size=2 if options.quick else 64, workers=0 if options.quick else 8, noplots=True, noautoanchor=True,
            device="cpu" if device.type == "cpu" else str(device.index or 0), project=folder,
        )  # fmt: skip
        run = build_run(partial(select_training_task, "detect", ()), settings)
        seconds: list[tuple[float, float]] = []
        for epoch in range(1 if options.quick else 3):  # the first one starts the workers and chooses algorithms
            run.state.epoch, run.state.step = epoch, 0
            with Interrupt("stopping after this step") as interrupt, Stopwatch(device) as training:
                train_one_epoch(run, interrupt, lambda: None)
            with Stopwatch(device) as validation:
                evaluate(run.runner(), run.val_loader, run.eval_settings(), device)
            seconds.append((training.seconds, validation.seconds))
        rows = []
        for name, loader, index in (("epoch", run.train_loader, 0), ("validation", run.val_loader, 1)):
            fastest = min(times[index] for times in seconds)
            rows.append(f"| {name} | {loader.num_images} | {fastest:.2f} | {loader.num_images / fastest:.0f} |")
    head = ["| part | images | seconds | images/s |", "|---|---|---|---|"]
    return ["## Epoch and validation", "", f"{settings.cfg}, batch {settings.batch_size:.0f}.", "", *head, *rows, ""]


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--device", default="0")
    parser.add_argument("--data", default="data/shapes.yaml", help="data set of programs, epoch and validation")
    parser.add_argument("--size", type=int, default=640, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=10, help="paired calls per measurement")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit")
    parser.add_argument("--quick", action="store_true", help="the smallest form, which also suits CPUs")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run checks and measurements and report them; return the numbers of checks that passed, failed, were skipped."""
    line, start = command_arguments(arguments), time.monotonic()
    options = build_parser().parse_args(line)
    if options.quick:
        options.size, options.rounds = min(options.size, 64), 1
    device, seconds = select_device(options.device), options.minutes * 60
    found = run_checks(device, options.data, options.quick, seconds * CHECKS_SHARE)
    body = [
        "## Checks",
        "",
        "| check | result | detail | seconds |",
        "|---|---|---|---|",
        *(c.row() for c in found),
        "",
    ]
    rest = seconds - (time.monotonic() - start)
    body += measured_table(
        "Training step", training_cases(options.quick), training_actions, options, device,
        time.monotonic() + rest * 0.5,
    )  # fmt: skip
    body += epoch_and_validation(options, device)
    body += measured_table(
        "Inference", inference_cases(options.quick), inference_actions, options, device, start + seconds - 30
    )
    note = f"Median and range of {options.rounds} alternating calls on images of {options.size} pixels, from bytes on"
    body = [f"{note} the host (training) or the device (inference).", "", *body]
    publish(report("Graphics card", NAME, line, body, device), NAME, options.write)
    results = [check.passed for check in found]
    return {"passed": results.count(True), "failed": results.count(False), "skipped": results.count(None)}


if __name__ == "__main__":
    run_script(main)
