"""Cost of one EMA update: multi-tensor operations compared with a loop over tensors.

python benchmarks/ema.py
python benchmarks/ema.py --cfg yolov5n yolov5s yolov5m --device 0 --write

The plain loop updates the entries of the state dict in place. Both average the same network, alternately, and their
results are checked for equality.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import alternate, command_arguments, new_parser, publish, ratios, report, spread
from benchmarks.plain import PlainEma
from models.builder import build_network, read_architecture
from utils.core.cli import run_script
from utils.core.device import select_device
from utils.core.seed import seed_everything
from utils.core.timing import Stopwatch
from utils.engine.ema import ModelEma

NAME = "ema"


def timed(update: Callable[[], None], times: int, device: torch.device) -> float:
    """Measure the milliseconds of one update, the mean of `times` updates."""
    with Stopwatch(device) as watch:
        for _ in range(times):
            update()
    return 1000 * watch.seconds / times


def compare(cfg: str, options: argparse.Namespace, device: torch.device) -> tuple[str, float]:
    """Measure one network; return its table row and the speedup of the multi-tensor update."""
    seed_everything(0)
    network = build_network(read_architecture(cfg)).to(device, memory_format=torch.channels_last)
    ours, plain = ModelEma(network), PlainEma(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    found = alternate(
        {
            "ours": lambda: timed(ours.update, options.repeats, device),
            "plain": lambda: timed(plain.update, options.repeats, device),
        },
        options.rounds,
        warm_up=2,
    )
    for name, tensor in plain.network.state_dict().items():
        torch.testing.assert_close(ours.network.state_dict()[name], tensor)
    floating = sum(tensor.dtype.is_floating_point for tensor in network.state_dict().values())
    numbers = sum(tensor.numel() for tensor in network.state_dict().values()) / 1e6
    faster = ratios(found["plain"], found["ours"])
    times = " | ".join(spread(found[name]).text(3) for name in ("ours", "plain"))
    return f"| {cfg} | {floating} | {numbers:.1f} | {times} | **{faster.text()}** |", faster.median


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--cfg", nargs="+", default=["yolov5n", "yolov5s"], help="networks")
    parser.add_argument("--rounds", type=int, default=15, help="paired measurements, whose median is reported")
    parser.add_argument("--repeats", type=int, default=20, help="updates per measurement")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return the speedup for each network."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device)
    table, medians = [], {}
    for cfg in options.cfg:
        row, medians[cfg] = compare(cfg, options, device)
        table.append(row)
    body = [
        f"Milliseconds for one update: median and range of {options.rounds} rounds of {options.repeats} updates.",
        "",
        "| network | tensors | million elements | multi-tensor | one by one | speedup |",
        "|---|---|---|---|---|---|",
        *table,
    ]
    publish(report("EMA of the weights", NAME, line, body, device), NAME, options.write)
    return medians


if __name__ == "__main__":
    run_script(main)
