"""Time per image of detect.py's way, from picture to boxes, in PyTorch and in the runtimes of exported files.

python benchmarks/runtimes.py --weights yolov5n.pt --source photos/
python benchmarks/runtimes.py --weights yolov5n.pt --source photos/ --data coco128.yaml --rounds 30 --write

Every picture is first put into a square, so that files of one size and of open sizes compute the same. Plain PyTorch is
the network as its checkpoint holds it: fp32, normalisation not folded, default memory order. With --data also files in
8-bit integers, and what they cost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

import export
from benchmarks.machine import given, new_parser, publish, ratios, report, spread, turn_about
from models.checkpoint import load_checkpoint
from models.network import Network
from utils.backends import BACKENDS
from utils.backends.exported_runner import as_floats, installed
from utils.core.cli import run_script
from utils.core.contracts import Frame, Outputs
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.datasets.sources.frame_sources import open_source
from utils.engine.predict import PredictSettings, predict
from utils.ops.letterbox import letterbox

NAME = "runtimes"
WARM_UP = 2  # rounds that are not counted
CPU = torch.device("cpu")
PLAIN, OURS = "PyTorch, plain", "PyTorch, detect.py's"


class PlainRunner:
    """A network run as it is, in the default memory order."""

    fixed_hw = None

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)
        self.specs, self.names, self.stride = network.specs, network.names, network.stride

    @torch.inference_mode()
    def run(self, images: Tensor) -> Outputs:
        """Return decoded outputs of (B, 3, H, W) uint8 images."""
        return Outputs(decoded=self.network.decode(self.network(as_floats(images))))


@dataclass(frozen=True)
class Variant:
    """One way to run the network."""

    name: str
    format: str
    options: tuple[str, ...] = ()  # of export.py
    half: bool = False  # --half of detect.py


VARIANTS = (
    Variant("onnxruntime", "onnx"),
    Variant("onnxruntime, one size", "onnx", ("static",)),
    Variant("OpenVINO", "openvino"),
    Variant("OpenVINO, one size", "openvino", ("static",)),
    Variant("OpenVINO --half", "openvino", half=True),
    Variant("ncnn", "ncnn"),
    Variant("TorchScript", "torchscript"),
    Variant("onnxruntime INT8", "onnx", ("int8",)),
    Variant("OpenVINO INT8", "openvino", ("int8",)),
    Variant("OpenVINO INT8, one size", "openvino", ("int8", "static")),
)
BASE = {
    "onnxruntime INT8": "onnxruntime",
    "OpenVINO INT8": "OpenVINO",
    "OpenVINO INT8, one size": "OpenVINO, one size",
}


class Squares:
    """A source of frames that are there already."""

    live, faults = False, 0

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames

    def __iter__(self) -> Iterator[list[Frame]]:
        return ([frame] for frame in self.frames)

    def close(self) -> None:
        """Nothing is open."""


def pictures(source: str, count: int, size: int) -> list[Frame]:
    """Return up to `count` pictures of a source as squares."""
    groups = islice(open_source(source), count)
    return [Frame(letterbox(one.image, (size, size))[0], one.path, one.text) for group in groups for one in group]


@dataclass(frozen=True)
class Way:
    """What one process runs."""

    path: Path
    format: str  # of the exported file; "" for the network as its checkpoint holds it
    half: bool
    options: argparse.Namespace


RUNNING: dict[str, Any] = {}  # in a process of its own: runner and frames


def start(way: Way) -> None:
    """Open a way's file and the pictures in this process."""
    if way.options.threads:
        torch.set_num_threads(way.options.threads)
    LOGGER.setLevel(logging.WARNING)  # a line per picture is of no use here
    RUNNING["frames"] = pictures(way.options.source, way.options.pictures, way.options.size)
    if way.format:
        RUNNING["runner"] = BACKENDS.get(way.format).open([way.path], CPU, half=way.half)[0]
    else:
        RUNNING["runner"] = PlainRunner(load_checkpoint(way.path).network)


def turn(size: int) -> list[float]:
    """Predict on every picture; return the seconds per picture of the three steps. A first picture does not count."""
    frames: Sequence[Frame] = RUNNING["frames"]
    predict(RUNNING["runner"], Squares(frames[:1] * 4), PredictSettings((size, size)))
    found = predict(RUNNING["runner"], Squares(frames), PredictSettings((size, size)))
    return [watch.seconds / len(frames) for watch in (found.preprocess, found.inference, found.postprocess)]


def exported(variant: Variant, options: argparse.Namespace, folder: Path) -> Path | None:
    """Return the file of a variant, written unless it is there; None where that cannot be."""
    backend, path = BACKENDS.get(variant.format), Path(options.weights)
    if ("int8" in variant.options and not options.data) or not installed(*backend.packages):
        return None
    place = folder / "-".join((variant.format, *variant.options))
    ready = next(iter(place.glob(f"*{backend.ending}")), None) if place.is_dir() else None
    if ready is not None:
        return ready
    chosen = dict.fromkeys(variant.options, True) | ({"data": options.data} if options.data else {})
    try:
        return export.run(weights=[str(path)], include=[variant.format], output=str(place), **chosen)[0]
    except UserError as error:
        LOGGER.warning(f"{variant.name}: {error}")
        return None


def ways(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Way], dict[str, str]]:
    """Return what is compared, by name, and what INT8 costs in words; files are written below `folder`."""
    path = Path(options.weights)
    found = {PLAIN: Way(path, "", False, options), OURS: Way(path, "pytorch", False, options)}
    costs: dict[str, str] = {}
    for variant in VARIANTS:
        ready = exported(variant, options, folder)
        if ready is None:
            continue
        about = json.loads((ready.parent / f"{ready.name}.json").read_text(encoding="utf-8"))
        if "accuracy" in about:
            before, after = about["accuracy"]["before"], about["accuracy"]["after"]
            costs[variant.name] = ", ".join(f"{name} {before[name]:.4f} → {after[name]:.4f}" for name in after)
        found[variant.name] = Way(ready, variant.format, variant.half, options)
    return found, costs


def measured(found: dict[str, Way], options: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return seconds per picture, by way and round, and the same of the three steps (rounds, 3)."""
    parts: dict[str, list[list[float]]] = {name: [] for name in found}
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:  # threads that wait for work in one runtime must not slow the next
        workers = {n: stack.enter_context(spawn.Pool(1, start, (way,))) for n, way in found.items()}

        def action(name: str) -> Callable[[], float]:
            def once() -> float:
                parts[name].append(workers[name].apply(turn, (options.size,)))
                return sum(parts[name][-1])

            return once

        times = turn_about({name: action(name) for name in found}, options.rounds, warm_up=WARM_UP)
    return times, {name: np.array(rows[WARM_UP:]) for name, rows in parts.items()}


def compare(options: argparse.Namespace) -> list[str]:
    """Return the lines of the report."""
    count = len(pictures(options.source, options.pictures, options.size))
    with tempfile.TemporaryDirectory() as folder:
        found, costs = ways(options, Path(options.files or folder))
        times, parts = measured(found, options)
    lines = [
        f"{count} pictures of {options.size} x {options.size}, one at a time, {options.rounds} rounds turn about, each "
        "runtime in a process of its own; milliseconds per picture, medians (least to greatest); then how many times "
        "as fast as others",
        "",
        "| | in all | before | network | after | as plain PyTorch | as detect.py's PyTorch | as its fp32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seconds in times.items():
        whole = spread([1000 * value for value in seconds]).text(1)
        steps = " | ".join(f"{1000 * value:.1f}" for value in np.median(parts[name], axis=0))
        own = ratios(times[BASE[name]], seconds).text() if BASE.get(name) in times else ""
        faster = f"{ratios(times[PLAIN], seconds).text()} | {ratios(times[OURS], seconds).text()} | {own}"
        lines.append(f"| {name} | {whole} | {steps} | {faster} |")
    if costs:
        lines += ["", "Scores before and after INT8:", "", *(f"- {name}: {words}" for name, words in costs.items())]
    return lines


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--weights", required=True, help="a checkpoint that finds boxes")
    parser.add_argument("--source", required=True, help="pictures")
    parser.add_argument("--data", default="", help="data-set YAML for INT8; empty: without it")
    parser.add_argument("--size", type=int, default=640, help="side of the squares")
    parser.add_argument("--pictures", type=int, default=4, help="how many")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds")
    parser.add_argument("--files", default="", help="folder that keeps the exported files; what is there is taken")
    parser.add_argument("--threads", type=int, default=0, help="of every runtime; 0: torch's choice")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write if asked."""
    options = build_parser().parse_args(given(arguments))
    text = report("Runtimes", NAME, given(arguments), compare(options), None)
    publish(text, NAME, options.write)


if __name__ == "__main__":
    run_script(main)
