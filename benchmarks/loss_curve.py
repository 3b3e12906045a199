"""Difference between mixed-precision and fp32 training, compared with the difference between seeds.

python benchmarks/loss_curve.py --data coco128.yaml --weights yolov5n.pt --imgsz 320
python benchmarks/loss_curve.py --data shapes.yaml --epochs 5 --seeds 0 1 2 --write

Trains once per seed and precision with otherwise equal settings; equal seeds train on the same images.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import command_arguments, new_parser, publish, report
from benchmarks.trainings import Training, add_training_options, train_once
from utils.core.cli import run_script
from utils.core.device import autocast_dtype, select_device
from utils.core.errors import UserError

NAME = "loss_curve"
Runs = dict[tuple[str, int], Training]  # by precision and seed


def gaps(runs: Runs, precisions: Sequence[str], seeds: Sequence[int], what: str) -> tuple[float, float]:
    """Compute the mean distance between the curves of runs.

    Args:
        runs: The trainings, by precision and seed.
        precisions: The mixed precision, then fp32.
        seeds: The seeds.
        what: "losses" (distances relative to fp32) or "scores" (absolute distances).

    Returns:
        The distance between precisions with the same seed, and between seeds in fp32 (NaN for a single seed).
    """

    def distance(first: Training, second: Training) -> float:
        pairs = list(zip(getattr(first, what), getattr(second, what), strict=True))
        return sum(abs(a - b) / (b if what == "losses" else 1) for a, b in pairs) / len(pairs)

    mixed, full = precisions
    by_precision = [distance(runs[mixed, seed], runs[full, seed]) for seed in seeds]
    others = [(a, b) for i, a in enumerate(seeds) for b in seeds[:i]]
    by_seed = [distance(runs[full, a], runs[full, b]) for a, b in others]
    return sum(by_precision) / len(by_precision), sum(by_seed) / len(by_seed) if by_seed else float("nan")


def curves(runs: Runs, what: str, title: str, digits: int) -> list[str]:
    """Format a table with a column per run and a row per epoch."""
    epochs = len(next(iter(getattr(run, what) for run in runs.values())))
    lines = [
        f"| {title} | " + " | ".join(f"{precision}, seed {seed}" for precision, seed in runs) + " |",
        "|---" * (len(runs) + 1) + "|",
    ]
    for epoch in range(epochs):
        cells = " | ".join(f"{getattr(run, what)[epoch]:.{digits}f}" for run in runs.values())
        lines.append(f"| epoch {epoch + 1} | {cells} |")
    return lines


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    add_training_options(parser, "data/shapes.yaml", 5)
    parser.add_argument("--mixed", default="auto", help="mixed precision: auto, bf16 or fp16")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return the distances between the curves."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device or "")
    kind = autocast_dtype(device, options.mixed)
    if kind is None:
        raise UserError(f"--mixed {options.mixed} is fp32 on this device, nothing to compare; try --mixed bf16")
    mixed = str(kind).removeprefix("torch.").replace("bfloat", "bf").replace("float", "fp")
    runs: Runs = {
        (name, seed): train_once(options, amp=name, seed=seed) for seed in options.seeds for name in (mixed, "fp32")
    }
    found = {}
    for what in ("losses", "scores"):
        found[f"{what}/precision"], found[f"{what}/seed"] = gaps(runs, (mixed, "fp32"), options.seeds, what)
    start = Path(options.weights).name if options.weights else "from scratch"
    body = [
        f"{Path(options.data).name}, {start}. The loss is the sum of its three terms, a mean over the epoch; the score "
        "is that of the averaged weights.",
        "",
        *curves(runs, "losses", "training loss", 4),
        "",
        *curves(runs, "scores", "mAP50-95", 4),
        "",
        "| mean distance between two curves | loss | mAP50-95 |",
        "|---|---|---|",
        f"| {mixed} and fp32, same seed | {found['losses/precision']:.2%} | {found['scores/precision']:.4f} |",
        f"| two seeds, fp32 | {found['losses/seed']:.2%} | {found['scores/seed']:.4f} |",
        "",
        "| run | mAP50 | mAP50-95 | seconds |",
        "|---|---|---|---|",
        *(
            f"| {name}, seed {seed} | {run.numbers['detect/map50']:.4f} | {run.numbers['detect/map50_95']:.4f} "
            f"| {run.seconds:.0f} |"
            for (name, seed), run in runs.items()
        ),
    ]
    publish(report("Loss curves by precision", NAME, line, body, device), NAME, options.write)
    return found


if __name__ == "__main__":
    run_script(main)
