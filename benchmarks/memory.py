"""Growth of the memory of long runs: training with its workers, prediction on images and on a video, the service.

python benchmarks/memory.py --epochs 200 --images 10000 --frames 20000 --requests 20000 --write
python benchmarks/memory.py --parts service --requests 2000

Each part is a process of its own, whose resident memory and that of its children is sampled. After a warm-up, which is
the first third, a line is fitted; its slope is reported per epoch, per 1000 images or frames, and per 1000 requests.
For the service it reports the CPU time per request as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from benchmarks.machine import command_arguments, new_parser, publish, report
from benchmarks.serve_load import Phase, client, started
from utils.core.cli import run_script
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.yaml_file import write_yaml

NAME = "memory"
PARTS = ("train", "images", "video", "service")
INTERVAL_S = 0.1
WARM_UP = 1 / 3  # of the samples
PAGE_BYTES = 4096
CLOCK_HZ = 100  # of the times in /proc


@dataclass
class Growth:
    """Memory of one process over a part."""

    part: str
    process: str
    start_mb: float  # of the fitted line, after the warm-up
    slope_mb: float  # per unit
    unit: str
    cpu_ms: float = float("nan")  # per image, frame or request

    @property
    def percent(self) -> float:
        """Slope in percent of the memory after the warm-up."""
        return 100 * self.slope_mb / self.start_mb


def children(pid: int) -> list[int]:
    """List the direct children of a process."""
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def resident_mb(pid: int) -> float:
    """Read the resident memory of a process without the memory it shares, NaN if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return float("nan")
    return int(fields[1]) * PAGE_BYTES / 2**20


def cpu_seconds(pid: int) -> float:
    """Read the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_HZ


def watch(process: subprocess.Popen[str], done: threading.Event) -> dict[int, list[tuple[float, float]]]:
    """Sample the memory of a process and its children until it ends or `done` is set: by process, (time, MiB)."""
    samples: dict[int, list[tuple[float, float]]] = {}
    while process.poll() is None and not done.wait(INTERVAL_S):
        for pid in [process.pid, *children(process.pid)]:
            if (found := resident_mb(pid)) > 0:
                samples.setdefault(pid, []).append((time.monotonic(), found))
    return samples


def fitted(part: str, samples: dict[int, list[tuple[float, float]]], units: float, unit: str) -> list[Growth]:
    """Fit a line to the samples of every process that ran during most of a part of `units` units."""
    longest = max((len(found) for found in samples.values()), default=0)
    rows = []
    for number, found in enumerate(samples.values()):
        if len(found) < max(4, longest / 2):
            continue
        times, values = np.array(found).T
        progress = (times - times[0]) / (times[-1] - times[0]) * units
        late = progress >= units * WARM_UP
        slope, _ = np.polyfit(progress[late], values[late], 1)
        name = "main" if number == 0 else f"child {number}"
        rows.append(Growth(part, name, float(values[late][:3].mean()), float(slope), unit))
    return rows


def run_program(line: Sequence[str]) -> dict[int, list[tuple[float, float]]]:
    """Run a program to its end and return the samples of its memory."""
    process = subprocess.Popen(
        [sys.executable, *line], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    samples = watch(process, threading.Event())
    reader.join(10)
    process.stdout.close()
    if process.returncode:
        raise UserError(f"{line[0]} exited with status {process.returncode}: {''.join(said)[-500:]}")
    return samples


def measure_train(options: argparse.Namespace, folder: Path) -> list[Growth]:
    """Measure the trainer and its workers over tiny epochs."""
    names = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]
    generate = {"kind": "shapes", "train": 16, "val": 8, "size": 96, "seed": 3}
    write_yaml(
        folder / "tiny.yaml",
        {"path": "tiny", "train": "images/train", "val": "images/val", "names": names, "generate": generate},
    )
    line = ["train.py", "--data", str(folder / "tiny.yaml"), "--cfg", "yolov5n", "--img", "96", "--batch", "8"]
    line += ["--epochs", str(options.epochs), "--workers", "2", "--noplots", "--project", str(folder / "runs")]
    return fitted("train.py", run_program([*line, "--device", options.device]), options.epochs, "epoch")


def measure_images(options: argparse.Namespace, folder: Path) -> list[Growth]:
    """Measure detect.py on a folder of images of several shapes."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(options.images):
        path = folder / "images" / f"{number:06d}.jpg"
        if number < 20:
            height, width = int(rng.integers(60, 200)), int(rng.integers(60, 200))
            cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3), np.uint8))
        else:
            path.symlink_to(folder / "images" / f"{number % 20:06d}.jpg")
    line = ["detect.py", "--weights", options.weights, "--source", str(folder / "images"), "--img", "96", "--save-txt"]
    samples = run_program([*line, "--nosave", "--project", str(folder / "runs"), "--device", options.device])
    return fitted("detect.py, images", samples, options.images / 1000, "1000 images")


def measure_video(options: argparse.Namespace, folder: Path) -> list[Growth]:
    """Measure detect.py on a video, which it writes with annotations."""
    writer = cv2.VideoWriter(str(folder / "long.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 30.0, (96, 64))
    rng = np.random.default_rng(0)
    for _ in range(options.frames):
        writer.write(rng.integers(0, 255, (64, 96, 3), np.uint8))
    writer.release()
    line = ["detect.py", "--weights", options.weights, "--source", str(folder / "long.mp4"), "--img", "96"]
    samples = run_program([*line, "--project", str(folder / "runs"), "--device", options.device])
    return fitted("detect.py, video", samples, options.frames / 1000, "1000 frames")


def measure_service(options: argparse.Namespace, folder: Path) -> list[Growth]:
    """Measure the service under load from several clients, with images of many shapes."""
    rng = np.random.default_rng(0)
    bodies = []
    for _ in range(40):
        height, width = (int(side) for side in rng.integers(200, 640, 2))
        pixels = cv2.resize(rng.integers(0, 255, (24, 32, 3), np.uint8), (width, height))
        bodies.append(cv2.imencode(".jpg", pixels)[1].tobytes())
    settings = {"max_batch": 0, "imgsz": options.imgsz, "device": options.device}
    process, port = started(argparse.Namespace(weights=options.weights, **settings))
    done, found = threading.Event(), dict[int, list[tuple[float, float]]]()
    watcher = threading.Thread(target=lambda: found.update(watch(process, done)))
    phase = Phase(options.clients)
    try:
        before = cpu_seconds(process.pid)
        watcher.start()
        threads = [
            threading.Thread(target=_send, args=(port, bodies[i:] + bodies[:i], options.requests, phase))
            for i in range(options.clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        used = cpu_seconds(process.pid) - before
    finally:
        done.set()
        watcher.join()
        process.terminate()
        process.wait(60)
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if phase.faults:
        raise UserError(f"serve.py: {len(phase.faults)} requests failed, such as {phase.faults[0]}")
    rows = fitted("serve.py", found, len(phase.latencies_ms) / 1000, "1000 requests")
    for row in rows[:1]:
        row.cpu_ms = 1000 * used / max(1, len(phase.latencies_ms))
    return rows


def _send(port: int, bodies: Sequence[bytes], requests: int, phase: Phase) -> None:
    """Send images in short turns until all clients together have sent `requests`."""
    while len(phase.latencies_ms) < requests and len(phase.faults) < requests:
        client(port, bodies, time.perf_counter() + 1.0, phase)


MEASURE = {"train": measure_train, "images": measure_images, "video": measure_video, "service": measure_service}


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--weights", default="", help="checkpoint (default: an untrained yolov5n of two classes)")
    parser.add_argument("--epochs", type=int, default=200, help="epochs of the training")
    parser.add_argument("--images", type=int, default=10_000, help="images of the prediction")
    parser.add_argument("--frames", type=int, default=20_000, help="frames of the video")
    parser.add_argument("--requests", type=int, default=20_000, help="requests to the service")
    parser.add_argument("--clients", type=int, default=4, help="number of concurrent clients of the service")
    parser.add_argument("--imgsz", type=int, default=320, help="image size of the service")
    parser.add_argument("--device", default="cpu", help="device of the programs")
    return parser


def write_weights(path: Path) -> str:
    """Write an untrained checkpoint; return its path."""
    from models.builder import build_network, read_architecture
    from models.checkpoint import save_checkpoint

    save_checkpoint(path, build_network(read_architecture("yolov5n"), 2, ("a", "b")), meta={"imgsz": 96})
    return str(path)


def main(arguments: Sequence[str] | None = None) -> list[Growth]:
    """Run the benchmark and report it; return the growth of each process."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    rows: list[Growth] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.weights = options.weights or write_weights(folder / "two.pt")
        for part in options.parts:
            rows += MEASURE[part](options, folder)
    body = [
        "Resident memory after the first third of a part, and the slope of a line fitted to the rest.",
        "",
        "| program | process | MiB | slope in MiB | slope in % | per | CPU ms per request |",
        "|---|---|---|---|---|---|---|",
    ]
    body += [
        f"| {row.part} | {row.process} | {row.start_mb:.0f} | {row.slope_mb:+.3f} | {row.percent:+.3f} | {row.unit} | "
        f"{'' if row.cpu_ms != row.cpu_ms else f'{row.cpu_ms:.1f}'} |"
        for row in rows
    ]
    publish(report("Memory of long runs", NAME, line, body, None), NAME, options.write)
    return rows


if __name__ == "__main__":
    run_script(main)
