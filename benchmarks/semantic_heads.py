"""Cost of a class for every pixel beside the boxes: the four semantic heads, in time, memory and operations.

python benchmarks/semantic_heads.py
OMP_NUM_THREADS=2 python benchmarks/semantic_heads.py --size 512 1024 --rounds 15 --write
python benchmarks/semantic_heads.py --designs psp --device 0

`ours` ends in the class map from the logits at an eighth of the size. `plain` is the straightforward way: layers as
they are written down, all scores enlarged to the image's size, the greatest taken. What a head adds is the time of the
head and the class map over that of the rest of the very same pass, from the folded network in fp32 to the boxes left
by non-maximum suppression: shares of one pass hold where whole passes differ by a tenth. The ways run turn about in
one process, and for comparison also the network without a head. Weights are random, and random weights give maps no
camera sees; the class map is therefore made of prepared scores whose patches border in as many places as the classes
of a street scene do. Peak memory is measured in processes of their own, on a GPU by its allocator.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import given, new_parser, publish, ratios, report, spread, turn_about
from models.add_semantic_head import DESIGNS, with_semantic
from models.architecture import read_architecture
from models.builder import build_network
from models.fuse import fuse
from models.heads.semantic_head import SemanticHead
from models.kernels import conv_commute as coarse
from models.kernels import winograd
from models.layers import fusion, pool
from models.network import Network
from models.summary import summarize
from utils.core.cli import run_script
from utils.core.contracts import EvalSettings
from utils.core.device import select_device
from utils.core.seed import seed_everything
from utils.core.timing import Stopwatch
from utils.ops.nms import batched_nms
from utils.ops.semantic_maps import aligned_grid, class_map

NAME = "semantic_heads"
WAYS = ("boxes", "ours", "plain")
CLASSES = 10  # of boxes
AS_DETECT = EvalSettings(confidence=0.25, iou=0.45, max_detections=1000, multi_label=False)  # as detect.py does


@dataclass(frozen=True)
class Job:
    """What one measurement needs; plain values, so that other processes can be told."""

    cfg: str
    design: str
    size_hw: tuple[int, int]
    classes: int
    device: str


@contextlib.contextmanager
def plain_layers() -> Iterator[None]:
    """Switch the short cuts of the layers off."""
    separate = lambda x, sizes: [functional.max_pool2d(x, size, 1, size // 2) for size in sizes]  # noqa: E731
    with (
        mock.patch.object(coarse, "use_cpu_kernels", lambda x: False),
        mock.patch.object(fusion, "use_cpu_kernels", lambda x: False),
        mock.patch.object(winograd, "pays", lambda x, weight: False),
        mock.patch.object(pool, "max_pools", separate),
    ):
        yield


def network_of(job: Job, way: str) -> Network:
    """Return the folded network, with the semantic head unless only boxes are asked for."""
    seed_everything(0)
    description = read_architecture(job.cfg)
    if way != "boxes":
        description = with_semantic(description, job.design, job.classes)
    network = fuse(build_network(description, CLASSES)).eval().requires_grad_(False)
    return network.to(job.device, memory_format=torch.channels_last)


def patches(classes: int, height: int, width: int) -> Tensor:
    """Return (C, h, w) scores that give patches of several sizes, as scenes do.

    Of 64 x 128 cells with 19 classes 17 % have more than one at their corners; of a frame of Cityscapes 16 %.
    """
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(1, classes, height, width)
    for cells, strength in ((4, 3.0), (16, 0.5), (32, 0.2)):
        noise = torch.randn(1, classes, cells, cells, generator=generator)
        scores += strength * functional.interpolate(noise, size=(height, width), mode="bicubic")
    return scores[0]


@dataclass
class Pass:
    """One image's way through: the class map, and milliseconds of the head with that map and of everything else."""

    found: Tensor | None
    pixels: float
    rest: float


def action(job: Job, way: str) -> Callable[[], Pass]:
    """Return what is timed: one image through the network, its boxes, and its class map."""
    device = torch.device(job.device)
    network = network_of(job, way)
    image = torch.rand(1, 3, *job.size_hw, device=device).contiguous(memory_format=torch.channels_last)
    scores = patches(job.classes, job.size_hw[0] // 8, job.size_hw[1] // 8).to(device)
    head, mapping, whole = Stopwatch(device), Stopwatch(device), Stopwatch(device)

    def start(*_: object) -> None:
        head.__enter__()

    def stop(*_: object) -> None:
        head.__exit__()

    for module in network.modules():
        if isinstance(module, SemanticHead):
            module.register_forward_pre_hook(start)
            module.register_forward_hook(stop)

    def run() -> Pass:
        with torch.inference_mode():
            with whole, plain_layers() if way == "plain" else contextlib.nullcontext():
                decoded = network.decode(network(image))
                batched_nms(decoded["detect"]["predictions"], CLASSES, AS_DETECT)
            with mapping:
                found = mapped(scores, way, job.size_hw)
        return Pass(found, 1000 * (head.last + mapping.last), 1000 * (whole.last - head.last))

    return run


def mapped(scores: Tensor, way: str, size_hw: tuple[int, int]) -> Tensor | None:
    """Return the class of every pixel, (H, W) uint8, from (C, h, w) scores; none where only boxes are asked for."""
    if way == "boxes":
        return None
    if way == "plain":
        full = functional.interpolate(scores[None], size=size_hw, mode="bilinear", align_corners=True)
        return full.argmax(dim=1)[0].to(torch.uint8)
    return class_map(scores, *aligned_grid(size_hw, (scores.shape[1], scores.shape[2])))


def peak_megabytes(job: Job, way: str) -> float:
    """Return how much memory running takes at most on top of the network itself, in 1e6 bytes.

    On a CPU that includes what libraries allocate once, the same for all ways.
    """
    run = action(job, way)
    if job.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _kilobytes("VmRSS")
        run()
        run()
        return max(_kilobytes("VmHWM") - before, 0) * 1024 / 1e6  # pages may be given back meanwhile
    except OSError:  # only Linux says
        return float("nan")


def _kilobytes(key: str) -> int:
    """Return a number of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def memory(job: Job) -> dict[str, float]:
    """Return the peak of each way, measured in fresh processes."""
    found = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as workers:
            found[way] = workers.apply(peak_megabytes, (job, way))
    return found


def compare(job: Job, rounds: int) -> tuple[str, dict[str, float]]:
    """Return the table's row of a design, and the shares that it adds to the time of the rest."""
    actions = {way: action(job, way) for way in WAYS}
    ours, plain = actions["ours"]().found, actions["plain"]().found
    assert ours is not None and plain is not None
    differing = int((ours != plain).sum())
    assert differing <= 1e-4 * ours.numel(), f"{differing} pixels differ"
    passes = turn_about(actions, rounds, warm_up=2)
    added = {way: ratios([one.pixels for one in passes[way]], [one.rest for one in passes[way]]) for way in WAYS[1:]}
    with torch.device("meta"):
        summary = summarize(build_network(with_semantic(job.cfg, job.design, job.classes), CLASSES))
        alone = summarize(build_network(read_architecture(job.cfg), CLASSES))
    peaks = memory(job)
    cells = [
        job.design,
        f"{(summary.parameters - alone.parameters) / 1e6:.2f}",
        f"{summary.gflops - alone.gflops:.1f}",
        *(spread([one.rest for one in passes[way]]).text(1) for way in WAYS[:2]),
        *(spread([one.pixels for one in passes[way]]).text(1) for way in WAYS[1:]),
        f"**{added['ours'].scaled(100).text(1)}**",
        added["plain"].scaled(100).text(1),
        *(f"{peaks[way]:.0f}" for way in WAYS),
    ]
    return f"| {' | '.join(cells)} |", {way: share.median for way, share in added.items()}


def build_parser() -> argparse.ArgumentParser:
    """Return the options of this script."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--cfg", default="yolov5s-v5", help="network that the heads are added to")
    parser.add_argument("--designs", nargs="+", default=sorted(DESIGNS), choices=sorted(DESIGNS), help="heads")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 1024], metavar="PX", help="height and width")
    parser.add_argument("--classes", type=int, default=19, help="classes of pixels")
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each way; the median counts")
    parser.add_argument("--device", default="cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure, print and on request write the report; return the added shares of each design."""
    line = given(arguments)
    options = build_parser().parse_args(line)
    device = select_device(options.device)
    table, shares = [], {}
    for design in options.designs:
        job = Job(options.cfg, design, (options.size[0], options.size[1]), options.classes, str(device))
        row, shares[design] = compare(job, options.rounds)
        table.append(row)
    height, width = options.size
    head = ("head", "M parameters", "GFLOPs at 640", "ms without head", "ms of the rest", "ms ours", "ms plain",
            "% ours adds", "% plain adds", "MB without head", "MB ours", "MB plain")  # fmt: skip
    body = [
        f"{options.cfg}, one image of {height} x {width}, {options.classes} classes of pixels, fp32: median and range "
        f"of {options.rounds} rounds. Parameters, operations and ms are those of the head, ms with the "
        "class map; the rest is everything else in the same passes.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *table,
    ]
    publish(report("A class for every pixel", NAME, line, body, device), NAME, options.write)
    return shares


if __name__ == "__main__":
    run_script(main)
