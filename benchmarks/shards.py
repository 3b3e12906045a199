"""Tar shards against folders: time to open a large index, and throughput of a training loader.

python benchmarks/shards.py
python benchmarks/shards.py --images 1000 --side 640 --rounds 9 --write
python benchmarks/shards.py --indexed 1000000 --shards 1000

The index is synthetic: tar files without content whose cached index, and the cached scan beside it, list the images,
each with a label file and seven boxes. It is opened by a new process like training opens it; memory is the peak
resident set size on Linux. The throughput is that of reading and decoding the same images from a folder and from
shards, alternating in one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse

import cv2
import numpy as np

from benchmarks.machine import alternate, command_arguments, new_parser, publish, ratios, report, spread
from tools.converters.convert_settings import ShardSettings
from tools.converters.shards import write_shards
from utils.core.cli import run_script
from utils.core.data_config import load_data
from utils.core.files import ROOT
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest
from utils.core.yaml_file import write_yaml
from utils.datasets.labels.label_index import Index
from utils.datasets.labels.label_scan import FORMAT_VERSION as SCAN_VERSION
from utils.datasets.labels.readers.shards import read_shards
from utils.datasets.labels.scan_cache import files_key, save_scan
from utils.datasets.pipeline.box_samples import open_box_loader
from utils.datasets.shards import shard_index

NAME = "shards"
BOXES_PER_IMAGE = 7
MEASURE = """
import sys, time
from utils.core.data_config import load_data
from utils.datasets.labels.label_scan import build_index
def memory(name):
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))
before, started, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
index = build_index(load_data(sys.argv[1]), "train")
print(time.perf_counter() - started, time.process_time() - cpu, memory("VmHWM") - before, len(index), len(index.boxes))
"""


def make_index(folder: Path, images: int, shards: int) -> Path:
    """Write tar files without content, their indices and the cached scan; return the data YAML."""
    folder.mkdir(parents=True)
    paths: list[str] = []
    for shard, numbers in enumerate(np.array_split(np.arange(images), shards)):
        path = folder / f"train-{shard:06d}.tar"
        path.write_bytes(bytes(1024))
        state = path.stat()
        names = [f"{number:09d}.{suffix}".encode() for number in numbers for suffix in ("jpg", "txt")]
        index = shard_index.ShardIndex.build([shard_index.Member(name, 512, 100_000) for name in names])
        key = f"polyolo shard {shard_index.FORMAT_VERSION} {state.st_size} {state.st_mtime_ns}"
        save_scan([Path(f"{path}{shard_index.CACHE_SUFFIX}")], key, index.arrays(), [])
        paths += [f"{path}{os.sep}{number:09d}.jpg" for number in numbers]
    yaml = folder / "data.yaml"
    write_yaml(yaml, {"train": "train-*.tar", "val": "train-*.tar", "names": ["thing"]})
    files = read_shards(load_data(str(yaml)), "train")
    blobs = [path.encode() for path in paths]
    box = np.array([[0, 0.5, 0.5, 0.2, 0.2]], np.float32)
    count = images * BOXES_PER_IMAGE
    scan = Index(
        path_bytes=np.frombuffer(b"".join(blobs), np.uint8),
        path_starts=np.concatenate(([0], np.cumsum([len(blob) for blob in blobs]))).astype(np.int64),
        shapes_hw=np.full((images, 2), 480, np.int32),
        boxes=np.repeat(box, count, 0),
        box_starts=np.arange(images + 1, dtype=np.int64) * BOXES_PER_IMAGE,
        points=np.zeros((0, 2), np.float32),
        point_starts=np.zeros(count + 1, np.int64),
        counts=np.array([images, 0, 0, 0, 0, 0, 0], np.int64),
    )
    header = f"polyolo index {SCAN_VERSION}\n{files.fingerprint}\n".encode()
    save_scan([files.cache], files_key(header, files.stamped or []), scan.arrays(), [])
    return yaml


def open_index(yaml: Path) -> tuple[float, float, float, int, int]:
    """Open the index in a new process: seconds, CPU seconds, GiB above the imports, images and boxes."""
    line = [sys.executable, "-c", MEASURE, str(yaml)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    seconds, cpu, memory, images, boxes = done.stdout.split()[-5:]
    return float(seconds), float(cpu), float(memory) / 2**30, int(images), int(boxes)


def make_images(folder: Path, count: int, side: int) -> Path:
    """Write JPEG files with boxes; return the data YAML."""
    rng = np.random.default_rng(0)
    for number in range(count):
        small = rng.integers(0, 255, (side // 16, side // 12, 3), np.uint8)
        image = cv2.resize(small, (side * 4 // 3, side), interpolation=cv2.INTER_CUBIC)
        for kind, content in (("images", cv2.imencode(".jpg", image)[1].tobytes()), ("labels", b"0 .5 .5 .2 .2\n")):
            path = folder / kind / "train" / f"{number:06d}{'.jpg' if kind == 'images' else '.txt'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    write_yaml(folder / "data.yaml", {"train": "images/train", "val": "images/train", "names": ["thing"]})
    return folder / "data.yaml"


def reading(yaml: Path, side: int, workers: int) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return functions that measure images per second: of reading and decoding, and of a training epoch."""
    hyp = Hyp()
    loader = open_box_loader(LoadRequest(load_data(str(yaml)), "train", True, side, 16, 32, hyp, workers=workers))

    def decode() -> float:
        started = time.perf_counter()
        for number in np.random.default_rng(0).permutation(loader.num_images):
            loader.maker.images.read(int(number))
        return loader.num_images / (time.perf_counter() - started)

    def train() -> float:
        started = time.perf_counter()
        count = sum(len(batch) for batch in loader.epoch(0))
        return count / (time.perf_counter() - started)

    return decode, train


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--indexed", type=int, default=1_000_000, help="images of the synthetic index")
    parser.add_argument("--shards", type=int, default=200, help="tar files of the synthetic index")
    parser.add_argument("--images", type=int, default=400, help="images whose reading is measured")
    parser.add_argument("--side", type=int, default=320, help="height of these images, and the training size")
    parser.add_argument("--workers", type=int, default=0, help="data-loading processes of the training epoch")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of alternation")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return seconds, GiB and the ratios of throughput."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, cpu, memory, images, boxes = open_index(make_index(folder / "index", options.indexed, options.shards))
        if (images, boxes) != (options.indexed, options.indexed * BOXES_PER_IMAGE):
            raise RuntimeError(f"{options.indexed} images were expected, found {images} with {boxes} boxes")
        plain = make_images(folder / "plain", options.images, options.side)
        packed = write_shards(ShardSettings(plain, folder / "packed", shard_mb=10))
        of_folder, of_shards = (reading(yaml, options.side, options.workers) for yaml in (plain, packed))
        rows: list[str] = []
        medians: dict[str, float] = {}
        for row, text in enumerate(("reading and decoding", "training loader")):
            sides: dict[str, Callable[[], float]] = {"folder": of_folder[row], "shards": of_shards[row]}
            found = alternate(sides, options.rounds)
            ratio = ratios(found["shards"], found["folder"])
            medians[text] = ratio.median
            values = " | ".join(spread(rates).text(0) for rates in found.values())
            rows.append(f"| {text} | {values} | {ratio.text()} |")
    body = [
        f"Opening {images} images with {boxes} boxes in {options.shards} shards: {seconds:.2f} s, {cpu:.2f} s of CPU, "
        f"{memory:.2f} GiB.",
        "",
        "| images per second | folder | shards | shards / folder, round by round |",
        "|---|---|---|---|",
        *rows,
    ]
    publish(report("Tar shards", NAME, line, body, None), NAME, options.write)
    return {"seconds": seconds, "CPU seconds": cpu, "GiB": memory} | medians


if __name__ == "__main__":
    run_script(main)
