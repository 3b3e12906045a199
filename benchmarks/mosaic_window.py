"""Accuracy with mosaic partners from a window of the epoch's order, compared with partners from all images.

python benchmarks/mosaic_window.py
python benchmarks/mosaic_window.py --data shapes.yaml --epochs 40 --seeds 0 1 2 3 --windows 64 0 --write

Trains once per seed and window with otherwise equal settings. The last window is the reference; 0 means all images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import command_arguments, new_parser, publish, report
from benchmarks.trainings import Training, add_training_options, train_once
from utils.core.cli import run_script
from utils.core.device import select_device

NAME = "mosaic_window"
SCORES = {"mAP50": "detect/map50", "mAP50-95": "detect/map50_95"}
Runs = dict[tuple[int, int], Training]  # by window and seed


def mean_and_deviation(values: Sequence[float]) -> str:
    """Format `mean ± standard deviation`; only the mean of a single value."""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ± {statistics.stdev(values):.4f}" if len(values) > 1 else mean


def summary(runs: Runs, windows: Sequence[int], seeds: Sequence[int]) -> tuple[list[str], dict[str, float]]:
    """Compute table rows with the mean scores of each window, and their mean differences from the last window."""
    rows, differences = [], {}
    for window in windows:
        cells = []
        for title, name in SCORES.items():
            values = [runs[window, seed].numbers[name] for seed in seeds]
            against = [runs[windows[-1], seed].numbers[name] for seed in seeds]
            apart = [a - b for a, b in zip(values, against, strict=True)]
            differences[f"{window}/{title}"] = statistics.fmean(apart)
            cells += [mean_and_deviation(values), mean_and_deviation(apart) if window != windows[-1] else "–"]
        seconds = statistics.fmean(runs[window, seed].seconds for seed in seeds)
        rows.append(f"| {window or 'all images'} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return rows, differences


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    add_training_options(parser, "data/shapes.yaml", None)
    parser.add_argument(
        "--windows", type=int, nargs="+", default=[64, 0], help="mosaic windows; 0: partners from all images"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return the mean differences from the last window."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    runs: Runs = {
        (window, seed): train_once(options, mosaic_window=window, seed=seed)
        for seed in options.seeds
        for window in options.windows
    }
    rows, differences = summary(runs, options.windows, options.seeds)
    epochs = len(next(iter(runs.values())).losses)
    body = [
        f"{Path(options.data).name}, {epochs} epochs, {len(options.seeds)} seed(s): mean ± standard deviation over "
        "seeds. Differences are taken seed by seed.",
        "",
        "| window | mAP50 | difference | mAP50-95 | difference | seconds |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "| window | seed | mAP50 | mAP50-95 |",
        "|---|---|---|---|",
        *(
            f"| {window or 'all images'} | {seed} | "
            + " | ".join(f"{run.numbers[name]:.4f}" for name in SCORES.values())
            + " |"
            for (window, seed), run in runs.items()
        ),
    ]
    publish(
        report("Windowed mosaic partners", NAME, line, body, select_device(options.device or "")), NAME, options.write
    )
    return differences


if __name__ == "__main__":
    run_script(main)
