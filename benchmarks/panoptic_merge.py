"""Time of the panoptic merge of one image, by the number of instances.

python benchmarks/panoptic_merge.py
OMP_NUM_THREADS=1 python benchmarks/panoptic_merge.py --instances 10 30 100 --imgsz 640 --write

Prototypes, coefficients and boxes are random and overlap as in a crowd; the semantic map has 80 things and 53 kinds of
stuff in patches. `merge` has the masks of the instances at hand, `with masks` also samples them from the prototypes at
the size of the image.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

from benchmarks.machine import alternate, command_arguments, new_parser, publish, report, spread
from utils.core.cli import run_script
from utils.core.contracts import Geometry
from utils.core.segment_types import MergeSettings
from utils.core.timing import Stopwatch
from utils.ops.masks import PrototypeMasks
from utils.ops.panoptic import merge_panoptic

NAME = "panoptic_merge"
THINGS, CLASSES, PATCHES = 80, 133, 12
CPU = torch.device("cpu")


def scene(instances: int, size: int, seed: int = 0) -> tuple[PrototypeMasks, np.ndarray]:
    """Build the masks of so many instances on a square image, and its semantic map."""
    random, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    low = torch.rand(instances, 2, generator=random) * 0.8
    sides = 0.05 + 0.35 * torch.rand(instances, 2, generator=random)
    boxes = torch.cat((low, (low + sides).clamp(max=1)), dim=1) * size
    prototypes = torch.randn(32, size // 4, size // 4, generator=random)
    masks = PrototypeMasks(
        prototypes,
        torch.randn(instances, 32, generator=random) + 0.3,
        boxes,
        Geometry((size, size), (size, size)),
        True,
    )
    patches = rng.integers(0, CLASSES, (PATCHES, PATCHES), np.uint8)
    return masks, cv2.resize(patches, (size, size), interpolation=cv2.INTER_NEAREST)


def measure(instances: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Measure the milliseconds of the merge, with and without the computation of the masks."""
    masks, semantic = scene(instances, size)
    ready = [masks.original(row) for row in range(instances)]
    is_stuff = np.arange(CLASSES) >= THINGS
    scores = np.linspace(0.99, 0.5, instances).tolist()
    classes = [row % THINGS for row in range(instances)]

    def timed(mask_of: Callable[[int], np.ndarray]) -> float:
        with Stopwatch(CPU) as watch:
            merge_panoptic(scores, classes, mask_of, semantic, is_stuff, MergeSettings())
        return 1000 * watch.seconds

    actions: dict[str, Callable[[], float]] = {
        "merge": partial(timed, lambda row: ready[row]),
        "with masks": partial(timed, masks.original),
    }
    return alternate(actions, rounds, warm_up=2)


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--instances", type=int, nargs="+", default=[10, 30, 100], help="instances per image")
    parser.add_argument("--imgsz", type=int, default=640, help="height and width of the image")
    parser.add_argument("--rounds", type=int, default=20, help="measurements, alternately")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[int, float]:
    """Run the benchmark and report it; return the median milliseconds of the merge by number of instances."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    found = {instances: measure(instances, options.imgsz, options.rounds) for instances in options.instances}
    body = [
        f"Milliseconds per image of {options.imgsz} x {options.imgsz}, median (range) of {options.rounds} rounds.",
        "",
        "| instances | merge | with masks |",
        "|---|---|---|",
        *(
            f"| {n} | {spread(times['merge']).text(1)} | {spread(times['with masks']).text(1)} |"
            for n, times in found.items()
        ),
    ]
    publish(report("Panoptic merge", NAME, line, body, CPU), NAME, options.write)
    return {instances: spread(times["merge"]).median for instances, times in found.items()}


if __name__ == "__main__":
    run_script(main)
