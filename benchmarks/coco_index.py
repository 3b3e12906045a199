"""Time and memory of a large COCO JSON: the first scan, a start with the cache, and the epochs of the workers.

python benchmarks/coco_index.py
python benchmarks/coco_index.py --images 10000 --boxes 100000 --polygons
python benchmarks/coco_index.py --folder ../coco-index --write

The JSON and its images are generated (small noise images, hard links to one of eight where the file system supports
them) and removed unless `--folder` is given. Each measurement is a new process that opens the data like training does;
its memory is the peak resident set size on Linux. Then the workers load all batches of some epochs; after each epoch
their private memory is read, which they do not share with the main process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from benchmarks.machine import command_arguments, new_parser, publish, report
from utils.core.cli import run_script
from utils.core.files import ROOT
from utils.core.yaml_file import write_yaml

NAME = "coco_index"
CLASSES, SIDES_HW = 80, (96, 128)
MEASURE = """
import sys, time
from utils.core.data_config import load_data
from utils.datasets.labels.label_scan import build_index
started = time.perf_counter()
index = build_index(load_data(sys.argv[1]), "train")
seconds = time.perf_counter() - started
with open("/proc/self/status", encoding="ascii") as file:  # rusage would include the memory of the parent
    memory = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
print(seconds, time.process_time(), memory, len(index), len(index.boxes))
"""

EPOCHS = """
import multiprocessing, sys
from utils.core.data_config import load_data
from utils.core.load_request import LoadRequest
from utils.core.hyp import Hyp
from utils.datasets.pipeline.box_samples import open_box_loader
yaml, workers, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
request = LoadRequest(load_data(yaml), "train", True, 64, 64, 32, Hyp(), workers=workers)
loader = open_box_loader(request)
def own(process):
    with open(f"/proc/{process.pid}/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Private_"))
for epoch in range(epochs):
    objects = sum(len(batch.boxes) for batch in loader.epoch(epoch))
    print("epoch", objects, *map(own, multiprocessing.active_children()))
"""


def make(folder: Path, images: int, boxes: int, polygons: bool) -> Path:
    """Write images, JSON and data-set YAML unless they exist; return the YAML."""
    yaml = folder / "data.yaml"
    if yaml.exists():
        return yaml
    image_folder = folder / "images"
    image_folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    originals = []
    for number in range(8):
        originals.append(folder / f"original{number}.jpg")
        cv2.imwrite(str(originals[-1]), rng.integers(0, 255, (*SIDES_HW, 3), dtype=np.uint8))
    for number in range(images):
        path = image_folder / f"{number:012d}.jpg"
        try:
            os.link(originals[number % 8], path)
        except OSError:
            path.write_bytes(originals[number % 8].read_bytes())
    (folder / "instances.json").write_text("".join(_json(rng, images, boxes, polygons)), encoding="ascii")
    names = [f"class {number}" for number in range(CLASSES)]
    values = {"format": "coco", "train": "images", "annotations": {"train": "instances.json"}, "names": names}
    write_yaml(yaml, values)
    return yaml


def _json(rng: np.random.Generator, images: int, boxes: int, polygons: bool) -> Iterator[str]:
    height, width = SIDES_HW
    sizes = {"height": height, "width": width}
    yield '{"images": ['
    yield ", ".join(json.dumps({"id": 7 * n + 1, "file_name": f"{n:012d}.jpg", **sizes}) for n in range(images))
    yield '], "categories": ['
    yield ", ".join(json.dumps({"id": n + 1 + n // 10, "name": f"class {n}"}) for n in range(CLASSES))
    yield '], "annotations": ['
    owners, classes = rng.integers(0, images, boxes), rng.integers(0, CLASSES, boxes)
    places = (rng.uniform(0, 0.5, (boxes, 4)) * (width, height, width, height) + 1).round(2)
    for number, (owner, label, place) in enumerate(zip(owners, classes, places.tolist(), strict=True)):
        x, y, w, h = place
        item = {"id": number + 1, "image_id": 7 * int(owner) + 1, "category_id": int(label + 1 + label // 10)}
        item |= {"bbox": place, "area": round(w * h, 2), "iscrowd": 0}
        item["segmentation"] = [_outline(x, y, w, h)] if polygons else []
        yield (", " if number else "") + json.dumps(item)
    yield "]}"


def _outline(x: float, y: float, w: float, h: float) -> list[float]:
    """Draw a polygon of 25 points, the average of COCO."""
    angles = np.linspace(0, 2 * np.pi, 25, endpoint=False)
    points = np.stack((x + w * (1 + np.cos(angles)) / 2, y + h * (1 + np.sin(angles)) / 2), 1)
    return [round(value, 2) for value in points.ravel().tolist()]


def _run(code: str, cache: Path, *words: str) -> str:
    """Run `code` in a new process with `cache` as the user's cache; return its output."""
    environment = os.environ | {"POLYOLO_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", code, *words]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout


def measure(yaml: Path, cache: Path) -> tuple[float, float, float, int, int]:
    """Measure one start in a new process: seconds, CPU seconds, peak GiB, images and objects."""
    seconds, cpu, memory, images, objects = _run(MEASURE, cache, str(yaml)).split()[-5:]
    return float(seconds), float(cpu), float(memory) / 2**30, int(images), int(objects)


def follow(yaml: Path, cache: Path, workers: int, epochs: int) -> list[tuple[int, float]]:
    """Measure for every epoch the number of boxes and the mean private memory of a worker in MiB."""
    lines = [line.split()[1:] for line in _run(EPOCHS, cache, str(yaml), str(workers), str(epochs)).splitlines()
             if line.startswith("epoch ")]  # fmt: skip
    return [(int(boxes), sum(map(int, own)) / len(own) / 2**20) for boxes, *own in lines]


@contextmanager
def _place(text: str) -> Iterator[Path]:
    if text:
        yield Path(text)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "set"


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--images", type=int, default=100_000, help="images in the JSON")
    parser.add_argument("--boxes", type=int, default=1_000_000, help="annotations in the JSON")
    parser.add_argument("--polygons", action="store_true", help="give every object a polygon of 25 points")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of the workers")
    parser.add_argument("--workers", type=int, default=2, help="data-loading processes")
    parser.add_argument("--folder", default="", help="folder of the data (default: a temporary one)")
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return the seconds and GiB of both starts."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    with _place(options.folder) as folder:
        yaml = make(folder, options.images, options.boxes, options.polygons)
        size = (folder / "instances.json").stat().st_size / 2**20
        for kept in folder.glob("*.polyolo-cache.*"):
            kept.unlink()
        found = {name: measure(yaml, folder / "cache") for name in ("first start", "start from the cache")}
        epochs = follow(yaml, folder / "cache", options.workers, options.epochs)
    if any(row[3:] != (options.images, options.boxes) for row in found.values()):
        raise RuntimeError(f"{options.images} images and {options.boxes} objects were expected, found {found}")
    body = [
        f"{options.images} images, {options.boxes} objects, a JSON of {size:.0f} MiB.",
        "",
        "| | seconds | of CPU, with imports | GiB of memory |",
        "|---|---|---|---|",
        *(f"| {name} | {row[0]:.1f} | {row[1]:.1f} | {row[2]:.2f} |" for name, row in found.items()),
        "",
        "| epoch | boxes in its batches | MiB of each worker's own |",
        "|---|---|---|",
        *(f"| {number} | {boxes} | {own:.1f} |" for number, (boxes, own) in enumerate(epochs, 1)),
    ]
    publish(report("Index of a COCO JSON", NAME, line, body, None), NAME, options.write)
    numbers = {f"{name}, {unit}": row[at] for name, row in found.items() for at, unit in ((0, "seconds"), (2, "GiB"))}
    return numbers | {f"epoch {number}, MiB": own for number, (_, own) in enumerate(epochs, 1)}


if __name__ == "__main__":
    run_script(main)
