"""Cost of the class of every pixel: only mixed cells interpolated, beside enlarging all scores and taking the best.

python benchmarks/class_map.py
python benchmarks/class_map.py --size 512x1024 --classes 133 --write

Scores are `street`, which change along smooth borders as a trained network's do, and `noise`, where every cell is
mixed: the worst that can happen. Both ways must give the same classes, but for scores equal up to rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from benchmarks.machine import given, new_parser, publish, ratios, report, spread, turn_about
from benchmarks.plain import plain_class_map
from utils.core.cli import run_script
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.timing import Stopwatch
from utils.ops.semantic_maps import aligned_grid, class_map

NAME = "class_map"
STRIDE = 8
KINDS = ("street", "noise")
_BLOCK = 12  # cells of the map from one independent score to the next, in street scenes
_MOST_DIFFERENT = 1e-4  # share of pixels whose scores may be equal up to rounding


def scores(kind: str, classes: int, map_hw: tuple[int, int], device: torch.device) -> Tensor:
    """Return (C, h, w) scores."""
    rng = torch.Generator().manual_seed(0)
    if kind == "noise":
        return (torch.randn(classes, *map_hw, generator=rng) * 3).to(device)
    coarse = torch.randn(1, classes, *(side // _BLOCK + 2 for side in map_hw), generator=rng) * 3
    return interpolate(coarse, size=map_hw, mode="bicubic", align_corners=True)[0].to(device)


def compare(
    kind: str, size_hw: tuple[int, int], options: argparse.Namespace, device: torch.device
) -> tuple[str, float]:
    """Return the table's row of one kind and size, and how many times as fast ours is."""
    map_hw = (size_hw[0] // STRIDE, size_hw[1] // STRIDE)
    logits, grid = scores(kind, options.classes, map_hw, device), aligned_grid(size_hw, map_hw)
    differing = float((class_map(logits, *grid) != plain_class_map(logits, size_hw)).float().mean())
    if differing > _MOST_DIFFERENT:
        raise RuntimeError(f"{kind}: {differing:.2%} of the pixels differ from the plain way")

    def timed(action: str) -> float:
        with Stopwatch(device) as watch:
            for _ in range(options.repeats):
                class_map(logits, *grid) if action == "ours" else plain_class_map(logits, size_hw)
        return 1000 * watch.seconds / options.repeats

    actions = {name: (lambda name=name: timed(name)) for name in ("ours", "plain")}
    found = turn_about(actions, options.rounds, warm_up=1)
    faster = ratios(found["plain"], found["ours"])
    times = " | ".join(spread(found[name]).text(1) for name in ("ours", "plain"))
    return f"| {kind} | {size_hw[1]}x{size_hw[0]} | {times} | **{faster.text()}** |", faster.median


def size_of(text: str) -> tuple[int, int]:
    """Return (height, width) of `WIDTHxHEIGHT`."""
    width, cross, height = text.partition("x")
    if not cross or not (width.isdigit() and height.isdigit()) or min(int(width), int(height)) < 2 * STRIDE:
        raise UserError(f"--size {text}: width and height such as 1024x512, each at least {2 * STRIDE}")
    return int(height), int(width)


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--size", nargs="+", default=["1024x512", "2048x1024"], help="width x height of the images")
    parser.add_argument("--classes", type=int, default=19)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of measurements; the median counts")
    parser.add_argument("--repeats", type=int, default=3, help="maps in a measurement")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print and on request write the report; return the ratio by `kind/size`."""
    line = given(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device)
    table, medians = [], {}
    for text in options.size:
        for kind in KINDS:
            row, medians[f"{kind}/{text}"] = compare(kind, size_of(text), options, device)
            table.append(row)
    body = [
        f"Class of every pixel from {options.classes} scores at stride {STRIDE}. Milliseconds per image: median and "
        f"range of {options.rounds} rounds of {options.repeats}.",
        "",
        "| scores | image | ours | plain | times as fast |",
        "|---|---|---|---|---|",
        *table,
    ]
    publish(report("Class of every pixel", NAME, line, body, device), NAME, options.write)
    return medians


if __name__ == "__main__":
    run_script(main)
