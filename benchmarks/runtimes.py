"""Time per image of detect.py, from image to boxes, in PyTorch and in the runtimes of exported files.

python benchmarks/runtimes.py --weights yolov5n.pt --source photos/
python benchmarks/runtimes.py --weights yolov5n.pt --source photos/ --data coco128.yaml --rounds 30 --write
python benchmarks/runtimes.py --weights end-to-end.pt --source photos/ --formats onnx

Every image is first resized to a square, so that files with static and dynamic shapes compute the same. Plain PyTorch
is the unfused network in fp32 and the default memory format. With --data, INT8 files and their accuracy are included.
Weights with a duplicate filter (train.py --end-to-end) are also exported without NMS. The last column compares an INT8
file with the fp32 file, and a file without NMS with one that contains it. With --write, the report is named after the
weights.
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
from benchmarks.machine import alternate, command_arguments, new_parser, publish, ratios, report, spread
from models.checkpoint import load_checkpoint
from models.network import Network
from utils.backends import BACKENDS
from utils.backends.exported_runner import is_installed, to_nchw_floats
from utils.core.cli import run_script
from utils.core.contracts import Frame, Outputs
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.datasets.sources.frame_sources import open_source
from utils.engine.predict import PredictSettings, predict
from utils.ops.letterbox import letterbox

NAME = "runtimes"
WARM_UP = 2  # rounds
CPU = torch.device("cpu")
PLAIN, OURS = "PyTorch, plain", "PyTorch, detect.py's"


class PlainRunner:
    """Runner of an unfused network in the default memory format."""

    fixed_hw = None

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)
        self.specs, self.names, self.stride = network.specs, network.names, network.stride

    @torch.inference_mode()
    def run(self, images: Tensor) -> Outputs:
        """Compute the decoded outputs of (B, 3, H, W) uint8 images."""
        return Outputs(decoded=self.network.decode(self.network(to_nchw_floats(images))))


@dataclass(frozen=True)
class Variant:
    """One runtime with its options."""

    name: str
    format: str
    options: tuple[str, ...] = ()  # of export.py
    half: bool = False  # --half of detect.py


VARIANTS = (
    Variant("onnxruntime", "onnx"),
    Variant("onnxruntime, one size", "onnx", ("static",)),
    Variant("onnxruntime, NMS in the file", "onnx", ("nms",)),
    Variant("onnxruntime, end to end", "onnx", ("end_to_end",)),
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
    "onnxruntime, end to end": "onnxruntime, NMS in the file",
    "onnxruntime INT8": "onnxruntime",
    "OpenVINO INT8": "OpenVINO",
    "OpenVINO INT8, one size": "OpenVINO, one size",
}


class Squares:
    """Source of frames in memory."""

    live, faults, incomplete = False, 0, ()

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = frames

    def __iter__(self) -> Iterator[list[Frame]]:
        return ([frame] for frame in self.frames)

    def close(self) -> None:
        """Do nothing, as no file is open."""


def load_images(source: str, count: int, size: int) -> list[Frame]:
    """Load up to `count` images of a source, resized to squares."""
    groups = islice(open_source(source), count)
    return [Frame(letterbox(one.image, (size, size))[0], one.path, one.text) for group in groups for one in group]


@dataclass(frozen=True)
class Way:
    """Job of one process."""

    path: Path
    format: str  # format of the exported file; "" for the unfused network
    half: bool
    options: argparse.Namespace


RUNNING: dict[str, Any] = {}  # runner and frames of this worker process


def start(way: Way) -> None:
    """Load a runtime and the images in this worker process."""
    if way.options.threads:
        torch.set_num_threads(way.options.threads)
    LOGGER.setLevel(logging.WARNING)  # no line per image
    RUNNING["frames"] = load_images(way.options.source, way.options.images, way.options.size)
    if way.format:
        RUNNING["runner"] = BACKENDS.get(way.format).open([way.path], CPU, half=way.half)[0]
    else:
        RUNNING["runner"] = PlainRunner(load_checkpoint(way.path).network)


def turn(size: int) -> list[float]:
    """Predict on every image; return the seconds per image of the three steps, after a warm-up image."""
    frames: Sequence[Frame] = RUNNING["frames"]
    predict(RUNNING["runner"], Squares(frames[:1] * 4), PredictSettings((size, size)))
    found = predict(RUNNING["runner"], Squares(frames), PredictSettings((size, size)))
    return [watch.seconds / len(frames) for watch in (found.preprocess, found.inference, found.postprocess)]


def exported(variant: Variant, options: argparse.Namespace, folder: Path) -> Path | None:
    """Export a variant unless its file exists; return the file, None if the export is not possible."""
    backend, path = BACKENDS.get(variant.format), Path(options.weights)
    if ("int8" in variant.options and not options.data) or not is_installed(*backend.packages):
        return None
    place = folder / "-".join((variant.format, *variant.options))
    ready = next(iter(place.glob(f"*{backend.ending}")), None) if place.is_dir() else None
    if ready is not None:
        return ready
    chosen: dict[str, Any] = dict.fromkeys(variant.options, True)
    chosen |= {} if backend.dynamic_by_default and "static" not in variant.options else {"imgsz": [options.size]}
    chosen |= {"data": options.data} if options.data else {}
    try:
        return export.run(weights=[str(path)], include=[variant.format], output=str(place), **chosen)[0]
    except UserError as error:
        LOGGER.warning(f"{variant.name}: {error}")
        return None


def ways(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Way], dict[str, str]]:
    """Export the files below `folder`; return the jobs by name, and a text about the accuracy of INT8."""
    path = Path(options.weights)
    found = {PLAIN: Way(path, "", False, options), OURS: Way(path, "pytorch", False, options)}
    costs: dict[str, str] = {}
    for variant in VARIANTS:
        if options.formats and variant.format not in options.formats:
            continue
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
    """Measure the seconds per image of each job and round, and of its three steps as (rounds, 3) arrays."""
    parts: dict[str, list[list[float]]] = {name: [] for name in found}
    spawn = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        workers = {n: stack.enter_context(spawn.Pool(1, start, (way,))) for n, way in found.items()}

        def action(name: str) -> Callable[[], float]:
            def once() -> float:
                parts[name].append(workers[name].apply(turn, (options.size,)))
                return sum(parts[name][-1])

            return once

        times = alternate({name: action(name) for name in found}, options.rounds, warm_up=WARM_UP)
    return times, {name: np.array(rows[WARM_UP:]) for name, rows in parts.items()}


def compare(options: argparse.Namespace) -> list[str]:
    """Format the lines of the report."""
    count = len(load_images(options.source, options.images, options.size))
    with tempfile.TemporaryDirectory() as folder:
        found, costs = ways(options, Path(options.files or folder))
        times, parts = measured(found, options)
    lines = [
        f"{count} images of {options.size} x {options.size}, one at a time, {options.rounds} alternating rounds, each "
        "runtime in a separate process; milliseconds per image, medians (range); then the speedups.",
        "",
        "| | total | preprocessing | network | postprocessing | over plain PyTorch | over detect.py | over its pair |",
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
    """Create the command-line parser."""
    parser = new_parser(__doc__, f"{NAME}_WEIGHTS")
    parser.add_argument("--weights", required=True, help="checkpoint of a detector")
    parser.add_argument("--source", required=True, help="images")
    parser.add_argument("--data", default="", help="data-set YAML for INT8 calibration (default: none, no INT8)")
    known = sorted({variant.format for variant in VARIANTS})
    parser.add_argument("--formats", nargs="+", choices=known, help="formats to measure (default: all)")
    parser.add_argument("--size", type=int, default=640, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=4, help="number of images")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds")
    parser.add_argument(
        "--files", default="", help="folder of exported files, which are reused (default: a temporary one)"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of every runtime; 0: the default of PyTorch")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and report it."""
    options = build_parser().parse_args(command_arguments(arguments))
    text = report("Runtimes", NAME, command_arguments(arguments), compare(options), None)
    publish(text, f"{NAME}_{Path(options.weights).stem}", options.write)


if __name__ == "__main__":
    run_script(main)
