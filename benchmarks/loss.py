"""Cost of the overlap in the box loss, value and gradient: our fused function beside autograd on the paper's formula.

python benchmarks/loss.py
python benchmarks/loss.py --pairs 1000 100000 --device 0 --write

Both take the same random boxes, turn about; values and gradients are checked to agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.machine import given, new_parser, publish, ratios, report, spread, turn_about
from benchmarks.plain import plain_ciou
from utils.core.cli import run_script
from utils.core.device import select_device
from utils.core.timing import Stopwatch
from utils.ops.iou import paired_iou

NAME = "loss"
Overlap = Callable[[Tensor, Tensor], Tensor]


def random_boxes(pairs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two (pairs, 4) sets of cxcywh boxes, in cells, that overlap more or less."""
    rng = torch.Generator().manual_seed(0)
    wanted = torch.cat((torch.rand(pairs, 2, generator=rng) * 20, torch.rand(pairs, 2, generator=rng) * 5 + 0.5), 1)
    noise = torch.randn(pairs, 4, generator=rng) * 0.3
    return (wanted + noise).clamp(min=0.1).to(device), wanted.to(device)


def gradient(overlap: Overlap, predicted: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean overlap and its gradient."""
    predicted = predicted.detach().requires_grad_()
    mean = overlap(predicted, wanted).mean()
    (slope,) = torch.autograd.grad(mean, predicted)
    return mean.detach(), slope


def compare(pairs: int, options: argparse.Namespace, device: torch.device) -> tuple[str, float]:
    """Return the table's row of a number of pairs and how many times as fast the fused function is."""
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
    found = turn_about(actions, options.rounds, warm_up=2)
    faster = ratios(found["autograd"], found["fused"])
    times = " | ".join(spread(found[name]).text(3) for name in ("fused", "autograd"))
    return f"| {pairs} | {times} | **{faster.text()}** |", faster.median


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--pairs", type=int, nargs="+", default=[300, 3000, 30000], help="boxes with a label")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of measurements; the median counts")
    parser.add_argument("--repeats", type=int, default=50, help="gradients in a measurement")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[int, float]:
    """Measure, print and on request write the report; return the ratio at each number of pairs."""
    line = given(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device)
    table, medians = [], {}
    for pairs in options.pairs:
        row, medians[pairs] = compare(pairs, options, device)
        table.append(row)
    body = [
        "CIoU of pairs of boxes with its gradient in the first. Milliseconds: median and range of "
        f"{options.rounds} rounds of {options.repeats}.",
        "",
        "| pairs | fused | autograd | times as fast |",
        "|---|---|---|---|",
        *table,
    ]
    publish(report("Overlap of boxes", NAME, line, body, device), NAME, options.write)
    return medians


if __name__ == "__main__":
    run_script(main)
