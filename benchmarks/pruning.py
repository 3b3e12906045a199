"""Speed and accuracy of a pruned checkpoint after export, compared with the original, as ONNX files.

    python benchmarks/pruning.py --weights yolov5n.pt pruned.pt --data coco128.yaml --write

The second checkpoint is the first after prune.py and fine-tuning. Times are those of one call of the runtime with one
image; scores are those of val.py for the checkpoints.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import alternate, command_arguments, new_parser, publish, ratios, report, spread
from models.checkpoint import load_checkpoint
from models.fuse import fuse
from models.network_runner import NetworkRunner
from models.summary import count_operations
from utils.backends.open_weights import open_weights
from utils.core.cli import run_script
from utils.core.data_config import load_data
from utils.core.errors import UserError
from utils.core.timing import Stopwatch
from utils.programs.export import export_checkpoints, size_bytes
from utils.programs.export_certificate import accuracy
from utils.programs.export_settings import ExportSettings

NAME = "pruning"


def exported(weights: str, size: int, folder: Path) -> Path:
    """Write the ONNX file of a checkpoint for square images of `size`; return it."""
    settings = ExportSettings(weights=(weights,), include=("onnx",), imgsz=(size,), output=str(folder))
    return export_checkpoints(settings, stop_at_error=True)[0]


def timed(runner: Any, images: torch.Tensor, calls: int) -> float:
    """Measure the milliseconds of one call, the mean of `calls` calls."""
    with Stopwatch() as watch:
        for _ in range(calls):
            runner.run(images)
    return 1000 * watch.seconds / calls


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    add = parser.add_argument
    add("--weights", nargs=2, required=True, metavar=("BEFORE", "AFTER"), help="two checkpoints of one task")
    add("--data", default="", help="data-set YAML for the scores (default: none, no scores)")
    add("--imgsz", type=int, default=640)
    add("--rounds", type=int, default=15, help="paired measurements, whose median is reported")
    add("--calls", type=int, default=5, help="calls per measurement")
    return parser


def main(arguments: Sequence[str] | None = None) -> float:
    """Run the benchmark and report it; return the speedup of the second file."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    device, size = torch.device("cpu"), options.imgsz
    checkpoints = [load_checkpoint(path) for path in options.weights]
    if checkpoints[0].task != checkpoints[1].task:
        raise UserError("--weights: two checkpoints of one task")
    images = torch.rand(1, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        files = [exported(path, size, Path(folder) / str(i)) for i, path in enumerate(options.weights)]
        runners = [open_weights([str(file)], device).runner for file in files]
        found = alternate(
            {str(i): lambda runner=runner: timed(runner, images, options.calls) for i, runner in enumerate(runners)},
            options.rounds,
            warm_up=2,
        )
        megabytes = [size_bytes(file) / 1e6 for file in files]
    rows = []
    for index, checkpoint in enumerate(checkpoints):
        network = checkpoint.network
        parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        gflops = count_operations(network, (size, size)) / 1e9
        cells = [f"{parameters:.2f}", f"{gflops:.2f}", f"{megabytes[index]:.1f}", spread(found[str(index)]).text()]
        if options.data:
            runner = NetworkRunner(fuse(network).eval(), device)
            scores = accuracy(runner, load_data(options.data), size)
            cells.append(", ".join(f"{name.rpartition('/')[2]} {value:.3f}" for name, value in scores.items()))
        rows.append(f"| {'before' if index == 0 else 'after'} | {' | '.join(cells)} |")
    faster = ratios(found["0"], found["1"])
    scored = " score |" if options.data else ""
    body = [
        f"One image of {size} pixels, onnxruntime: median, range of {options.rounds} rounds, {options.calls} calls.",
        "",
        f"| checkpoint | million parameters | GFLOPs | MB of the ONNX file | ms |{scored}",
        "|---|---|---|---|---|" + ("---|" if options.data else ""),
        *rows,
        "",
        f"Speedup after pruning: **{faster.text()}**.",
    ]
    publish(report("Pruning", NAME, line, body, device), NAME, options.write)
    return faster.median


if __name__ == "__main__":
    run_script(main)
