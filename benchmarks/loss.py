"""Cost of the IoU in the box loss, value and gradient: the fused function compared with autograd.

python benchmarks/loss.py
python benchmarks/loss.py --pairs 1000 100000 --device 0 --write

Both process the same random boxes, alternately; their values and gradients are checked for equality.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.machine import alternate, command_arguments, new_parser, publish, ratios, report, spread
from benchmarks.plain import plain_ciou
from utils.core.cli import run_script
from utils.core.device import select_device
from utils.core.timing import Stopwatch
from utils.ops.iou import paired_iou

NAME = "loss"
Overlap = Callable[[Tensor, Tensor], Tensor]


def random_boxes(pairs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw two (pairs, 4) sets of overlapping cxcywh boxes, in grid cells."""
    rng = torch.Generator().manual_seed(0)
    wanted = torch.cat((torch.rand(pairs, 2, generator=rng) * 20, torch.rand(pairs, 2, generator=rng) * 5 + 0.5), 1)
    noise = torch.randn(pairs, 4, generator=rng) * 0.3
    return (wanted + noise).clamp(min=0.1).to(device), wanted.to(device)


def gradient(overlap: Overlap, predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean IoU and its gradient."""
    predicted = predicted.detach().requires_grad_()
    mean = overlap(predicted, wanted).mean()
    (slope,) = torch.autograd.grad(mean, predicted)
    return mean.detach(), slope


def compare(pairs: int, options: argparse.Namespace, device: torch.device) -> tuple[str, float]:
    """Measure one number of pairs; return its table row and the speedup of the fused function."""
    boxes = random_boxes(pairs, device)
    kinds: dict[str, Overlap] = {"fused": paired_iou, "autograd": plain_ciou}
    for ours, plain in zip(*(gradient(kinds[name], *boxes) for name in ("fused", "autograd")), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-6)

    def timed(overlap: Overlap) -> float:
        with Stopwatch(device) as watch:
            for _ in range(options.repeats):
                gradient(overlap, *boxes)
        return 1000 * watch.seconds / options.repeats

    actions = {name: (lambda overlap=overlap: timed(overlap)) for name, overlap in kinds.items()}
    found = alternate(actions, options.rounds, warm_up=2)
    faster = ratios(found["autograd"], found["fused"])
    times = " | ".join(spread(found[name]).text(3) for name in ("fused", "autograd"))
    return f"| {pairs} | {times} | **{faster.text()}** |", faster.median


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--pairs", type=int, nargs="+", default=[300, 3000, 30000], help="numbers of box pairs")
    parser.add_argument("--rounds", type=int, default=15, help="paired measurements, whose median is reported")
    parser.add_argument("--repeats", type=int, default=50, help="gradients per measurement")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[int, float]:
    """Run the benchmark and report it; return the speedup for each number of pairs."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device)
    table, medians = [], {}
    for pairs in options.pairs:
        row, medians[pairs] = compare(pairs, options, device)
        table.append(row)
    body = [
        "CIoU of box pairs and its gradient in the first box. Milliseconds: median and range of "
        f"{options.rounds} rounds of {options.repeats}.",
        "",
        "| pairs | fused | autograd | speedup |",
        "|---|---|---|---|",
        *table,
    ]
    publish(report("IoU of boxes", NAME, line, body, device), NAME, options.write)
    return medians


if __name__ == "__main__":
    run_script(main)
