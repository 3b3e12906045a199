"""Peak memory and time of the validation of instance masks, by the number of images.

    python benchmarks/segment_memory.py --images 100 300 1000 --write
    python benchmarks/segment_memory.py --images 100 300 --save-json

The images are generated, with as many objects as asked for, and the detections of an untrained network fill --max-det.
Memory is the proportional set size of segment/val.py and its data-loading processes together, sampled four times a
second: pages that processes share count once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

from benchmarks.machine import command_arguments, new_parser, publish, report
from benchmarks.memory import children
from utils.core.cli import run_script
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.yaml_file import write_yaml

NAME = "segment_memory"
INTERVAL_S = 0.25
CORNERS, CLASSES = 24, ("a", "b")


@dataclass(frozen=True)
class Peak:
    """Highest memory of one validation."""

    images: int
    main_mb: float  # of the program without its data-loading processes
    total_mb: float
    seconds: float


def write_data(folder: Path, images: int, objects: int, size: int) -> Path:
    """Write a data set of noise images with polygons of `CORNERS` corners; return its YAML."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    for number in range(images):
        pixels = cv2.resize(rng.integers(0, 255, (24, 32, 3), np.uint8), (size, size * 3 // 4))
        cv2.imwrite(str(folder / "images" / f"{number:06d}.jpg"), pixels)
        lines = []
        for centre, radius, label in zip(
            rng.uniform(0.1, 0.9, (objects, 2)),
            rng.uniform(0.02, 0.1, objects),
            rng.integers(0, 2, objects),
            strict=True,
        ):
            points = centre + radius * rng.uniform(0.7, 1, CORNERS)[:, None] * np.stack(
                (np.cos(angles), np.sin(angles)), 1
            )
            lines.append(f"{label} " + " ".join(f"{value:.5f}" for value in points.ravel()))
        (folder / "labels" / f"{number:06d}.txt").write_text("\n".join(lines), encoding="utf-8")
    write_yaml(folder / "data.yaml", {"path": str(folder), "train": "images", "val": "images", "names": list(CLASSES)})
    return folder / "data.yaml"


def write_weights(path: Path) -> Path:
    """Write a checkpoint of an untrained network whose objectness is high everywhere; return its path."""
    from models.builder import build_network, read_architecture
    from models.checkpoint import save_checkpoint

    network = build_network(read_architecture("yolov5n-seg"), len(CLASSES), CLASSES)
    with torch.no_grad():
        for name, tensor in network.heads["segment"].named_parameters():
            if tensor.ndim == 1 and tensor.numel() % 3 == 0 and name.endswith("bias"):
                tensor.view(3, -1)[:, 4] += 6  # objectness of three anchors
    save_checkpoint(path, network, {"task": "segment", "imgsz": 640})
    return path


def proportional_mb(pid: int) -> float:
    """Read the proportional set size of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0) / 1024


def measure(line: Sequence[str], images: int) -> Peak:
    """Run a validation and sample its memory."""
    start, main, total = time.monotonic(), 0.0, 0.0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *line], cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            found = [proportional_mb(pid) for pid in (process.pid, *children(process.pid))]
            main, total = max(main, found[0]), max(total, sum(found))
            time.sleep(INTERVAL_S)
        if process.returncode:
            said.seek(0)
            raise UserError(f"{line[0]} exited with status {process.returncode}: {said.read()[-500:]}")
    return Peak(images, main, total, time.monotonic() - start)


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--images", type=int, nargs="+", default=[100, 300, 1000], help="numbers of images")
    parser.add_argument("--objects", type=int, default=100, help="objects per image")
    parser.add_argument("--imgsz", type=int, default=640, help="image size")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch")
    parser.add_argument("--workers", type=int, default=2, help="data-loading processes")
    parser.add_argument("--save-json", action="store_true", help="write predictions in COCO format")
    parser.add_argument("--device", default="cpu", help="device of the validation")
    return parser


def main(arguments: Sequence[str] | None = None) -> list[Peak]:
    """Run the benchmark and report it; return the peak for each number of images."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        weights = write_weights(Path(name) / "two.pt")
        for images in options.images:
            data = write_data(Path(name) / str(images), images, options.objects, options.imgsz)
            command = ["segment/val.py", "--weights", str(weights), "--data", str(data), "--img", str(options.imgsz)]
            command += ["--batch-size", str(options.batch_size), "--workers", str(options.workers), "--noplots"]
            command += ["--project", name, "--device", options.device, *(["--save-json"] if options.save_json else [])]
            rows.append(measure(command, images))
            print(rows[-1], flush=True)
    body = [
        f"Peak memory of segment/val.py with {options.objects} objects per image.",
        "",
        "| images | MiB, program alone | MiB, with data loading | s |",
        "|---|---|---|---|",
        *(f"| {row.images} | {row.main_mb:.0f} | {row.total_mb:.0f} | {row.seconds:.0f} |" for row in rows),
    ]
    publish(report("Memory of mask validation", NAME, line, body, None), NAME, options.write)
    return rows


if __name__ == "__main__":
    run_script(main)
