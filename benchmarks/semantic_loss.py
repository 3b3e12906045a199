"""Time and memory of the semantic loss and its gradient, in tiles, compared with PyTorch's functions on whole batches.

python benchmarks/semantic_loss.py
python benchmarks/semantic_loss.py --batch-size 16 --size 832x416 --kinds ce ohem --write

Both process the same scores and labels, alternately; values and gradients are checked for equality. Memory is measured
in a separate process in addition to scores and labels: the increase of its peak on a CPU, of PyTorch's on a GPU.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.class_map import STRIDE, size_of
from benchmarks.machine import alternate, command_arguments, new_parser, publish, ratios, report, spread
from benchmarks.plain import plain_entropy, plain_focal, plain_ohem, plain_prob_ohem
from utils.core.cli import run_script
from utils.core.contracts import IGNORED_PIXEL, Batch, HeadSpec
from utils.core.device import select_device
from utils.core.hyp import Hyp
from utils.core.timing import Stopwatch
from utils.losses.semantic import SemanticLoss

NAME = "semantic_loss"
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": plain_entropy,
    "ohem": lambda maps, labels: plain_ohem(maps, labels, 0.7),
    "prob_ohem": lambda maps, labels: plain_prob_ohem(maps, labels, 0.5, 256),
    "focal": lambda maps, labels: plain_focal(maps, labels, 2.0),
}
SIDES = ("ours", "plain")


def random_case(options: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw (B, C, h, w) scores correlated with (B, H, W) labels, of which a tenth is ignored."""
    height, width = size_of(options.size)
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(options.batch_size, options.classes, height // STRIDE, width // STRIDE, generator=rng)
    labels = torch.randint(0, options.classes, (options.batch_size, height, width), generator=rng).to(torch.uint8)
    labels[:, : height // 10] = IGNORED_PIXEL
    return maps.to(device), labels.to(device)


def step(side: str, kind: str, maps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the loss and its gradient in the maps."""
    maps = maps.detach().requires_grad_()
    if side == "plain":
        loss = PLAIN[kind](maps, labels)
    else:
        ours = SemanticLoss(HeadSpec("semantic", maps.shape[1]), Hyp(seg=1.0, seg_loss=kind)).train()
        batch = Batch(maps[:, :3], maps.new_zeros(0, 6), [None] * len(maps), semantic=labels)  # type: ignore[list-item]
        loss = ours({"logits": maps}, batch)["seg"]
    (slope,) = torch.autograd.grad(loss, maps)
    return loss.detach(), slope


def timed(kind: str, options: argparse.Namespace, device: torch.device) -> tuple[str, float]:
    """Measure the time of a kind of loss; return its table cells and our speedup."""
    case = random_case(options, device)
    for ours, plain in zip(*(step(side, kind, *case) for side in SIDES), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6)

    def measure(side: str) -> float:
        with Stopwatch(device) as watch:
            step(side, kind, *case)
        return 1000 * watch.seconds

    actions = {side: (lambda side=side: measure(side)) for side in SIDES}
    found = alternate(actions, options.rounds, warm_up=1)
    faster = ratios(found["plain"], found["ours"])
    times = " | ".join(spread(found[side]).text(0) for side in SIDES)
    return f"{times} | **{faster.text()}**", faster.median


def used_mb(side: str, kind: str, options: argparse.Namespace) -> float:
    """Measure the additional peak memory of a step in megabytes."""
    device = select_device(options.device)
    case = random_case(options, device)
    small = (case[0][:1, :, :4, :4].clone(), case[1][:1, -32:, :32].clone())
    step(side, kind, *small)  # exclude what is allocated at the first use
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step(side, kind, *case)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    before = _peak_kib()
    step(side, kind, *case)
    return (_peak_kib() - before) / 2**10


def _peak_kib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "darwin" else peak


def memory(side: str, kind: str, options: argparse.Namespace) -> float:
    """Run `used_mb` in a separate process, because the peak of a process never decreases."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        return pool.apply(used_mb, (side, kind, options))


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--size", default="1024x512", help="width x height of the images")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--kinds", nargs="+", choices=list(PLAIN), default=list(PLAIN), help="kinds of loss to compare")
    parser.add_argument("--rounds", type=int, default=7, help="paired measurements, whose median is reported")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return the ratios of time by kind and of memory by `kind/mb`."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device)
    size_of(options.size)
    # memory first: on Linux, a process inherits the peak of its parent
    peaks = {(kind, side): memory(side, kind, options) for kind in options.kinds for side in SIDES}
    table, found = [], {}
    for kind in options.kinds:
        cells, found[kind] = timed(kind, options, device)
        found[f"{kind}/mb"] = peaks[kind, "plain"] / max(peaks[kind, "ours"], 1e-3)
        table.append(f"| {kind} | {cells} | {peaks[kind, 'ours']:.0f} | {peaks[kind, 'plain']:.0f} |")
    body = [
        f"Loss of {options.batch_size} images of {options.size} pixels, {options.classes} classes, scores at stride "
        f"{STRIDE}, with the gradient of the scores. Milliseconds: median and range of {options.rounds} rounds. "
        "Megabytes: peak beyond scores and labels.",
        "",
        "| loss | ours, ms | plain, ms | speedup | ours, MB | plain, MB |",
        "|---|---|---|---|---|---|",
        *table,
    ]
    publish(report("Loss of pixels", NAME, line, body, device), NAME, options.write)
    return found


if __name__ == "__main__":
    run_script(main)
