"""Throughput, latency, batch sizes and memory of the HTTP service, with one client and with several.

python benchmarks/serve_load.py --weights yolov5n.pt --write
python benchmarks/serve_load.py --weights yolov5n.pt --clients 8 --seconds 60

The program starts serve.py on the loopback interface. Clients keep their connection and send the next image after each
response. Phases with one and with all clients alternate, so that drifts of the machine affect both.
"""

from __future__ import annotations

import argparse
import http.client
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from benchmarks.machine import command_arguments, new_parser, publish, report, spread
from utils.core.cli import run_script
from utils.core.errors import UserError
from utils.core.files import ROOT

NAME = "serve_load"
HOST = "127.0.0.1"


@dataclass
class Phase:
    """Measurements of one phase with a number of clients."""

    clients: int
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)  # images per batch -> how many batches
    memory_mb: list[float] = field(default_factory=list)  # every other second

    @property
    def per_second(self) -> float:
        """Responses per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile(self, percent: int) -> float:
        """Compute a percentile of the latency in milliseconds."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else float("nan")


def measures(port: int) -> dict[str, float]:
    """Fetch the metrics of the service, by name with labels."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def batch_sizes(now: dict[str, float], before: dict[str, float]) -> dict[str, int]:
    """Count the batches of each size between two readings of the metrics."""
    sizes, below, last = {}, 0, 0
    for name, value in now.items():
        found = re.fullmatch(r'polyolo_batch_images_bucket\{le="([\d.]+)"\}', name)
        if not found:
            continue
        upto, size = int(value - before.get(name, 0)), int(float(found[1]))
        if upto > below:
            sizes[str(size) if size == last + 1 else f"{last + 1} to {size}"] = upto - below
        below, last = upto, size
    return sizes


def client(port: int, bodies: Sequence[bytes], until: float, phase: Phase) -> None:
    """Send images one after the other; record the latencies and all invalid responses."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    number = 0
    while time.perf_counter() < until:
        start = time.perf_counter()
        try:
            connection.request("POST", "/v1/predict", bodies[number % len(bodies)], {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            phase.faults.append(type(error).__name__)
            connection.close()
            continue
        if answer.status != 200 or not text.startswith(b"{"):
            phase.faults.append(f"{answer.status} {text[:80]!r}")
        phase.latencies_ms.append((time.perf_counter() - start) * 1000)
        number += 1
    connection.close()


def measured(port: int, bodies: Sequence[bytes], clients: int, seconds: float) -> Phase:
    """Run a phase of `seconds` seconds with `clients` clients."""
    phase = Phase(clients)
    before = measures(port)
    done = threading.Event()
    watcher = threading.Thread(target=watch_memory, args=(port, phase.memory_mb, done))
    start = time.perf_counter()
    watcher.start()
    threads = [
        threading.Thread(target=client, args=(port, bodies[i:] + bodies[:i], start + seconds, phase))
        for i in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    phase.seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    phase.batches = batch_sizes(measures(port), before)
    return phase


def watch_memory(port: int, found_mb: list[float], done: threading.Event) -> None:
    """Record the memory of the service every two seconds and at the end."""
    while True:
        last = done.wait(2)
        found_mb.append(measures(port).get("process_resident_memory_bytes", float("nan")) / 2**20)
        if last:
            return


def started(options: argparse.Namespace) -> tuple[subprocess.Popen[str], int]:
    """Start the service and wait until it listens; return its process and port."""
    line = [sys.executable, str(ROOT / "serve.py"), "--port", "0", "--device", options.device]
    line += ["--weights", options.weights, *(["--imgsz", str(options.imgsz)] if options.imgsz else [])]
    line += ["--max-batch", str(options.max_batch)] if options.max_batch else []
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = []
    for text in process.stdout:
        said.append(text)
        if found := re.search(rf"listening on http://{re.escape(HOST)}:(\d+)", text):
            threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()
            return process, int(found[1])
    raise UserError(f"serve.py did not start: {''.join(said)[-500:]}")


def _drain(output: IO[str]) -> None:
    """Read the remaining output of a process, so that it never blocks on a full pipe."""
    with output:
        output.read()


def bodies_of(folder: str, count: int = 16) -> list[bytes]:
    """Load the JPEG files of a folder; without one, generate images of common sizes."""
    if folder:
        files = sorted(Path(folder).rglob("*.jpg"))[:64]
        if not files:
            raise UserError(f"--images {folder}: no .jpg files in it")
        return [file.read_bytes() for file in files]
    bodies = []
    for number in range(count):
        rng = np.random.default_rng(number)
        width, height = ((640, 480), (480, 640))[number % 4 == 3]
        blocks = cv2.resize(rng.integers(0, 255, (24, 32, 3), np.uint8), (width, height))
        bodies.append(cv2.imencode(".jpg", blocks)[1].tobytes())
    return bodies


def table(phases: Sequence[Phase]) -> list[str]:
    """Format a table row per number of clients, over all rounds."""
    rows = []
    for clients in sorted({phase.clients for phase in phases}):
        mine = [phase for phase in phases if phase.clients == clients]
        sizes: dict[str, int] = {}
        for phase in mine:
            for size, count in phase.batches.items():
                sizes[size] = sizes.get(size, 0) + count
        total = sum(sizes.values()) or 1
        rates = " ".join(f"{phase.per_second:.1f}" for phase in mine)
        halves, tails = (statistics.median(phase.percentile(part) for phase in mine) for part in (50, 95))
        shares = ", ".join(f"{size}: {100 * count / total:.0f} %" for size, count in sizes.items())
        memory = ", ".join(spread(phase.memory_mb).text(0) for phase in mine)
        faults = sum(len(phase.faults) for phase in mine)
        rows.append(f"| {clients} | {rates} | {halves:.0f} | {tails:.0f} | {shares} | {memory} | {faults} |")
    return rows


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--weights", required=True, help="checkpoint to serve")
    parser.add_argument("--images", default="", help="folder of JPEG files to send (default: generated images)")
    parser.add_argument("--clients", type=int, default=8, help="number of concurrent clients, compared with one")
    parser.add_argument("--seconds", type=float, default=60, help="duration of each phase")
    parser.add_argument("--rounds", type=int, default=2, help="repetitions of both phases")
    parser.add_argument("--device", default="cpu", help="device of the service")
    parser.add_argument("--imgsz", type=int, default=0, help="image size of the service (default: from the checkpoint)")
    parser.add_argument("--max-batch", type=int, default=0, help="--max-batch of the service; 0: its default")
    return parser


def main(arguments: Sequence[str] | None = None) -> list[Phase]:
    """Run the benchmark and report it; return the phases."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    bodies = bodies_of(options.images)
    process, port = started(options)
    try:
        measured(port, bodies, options.clients, min(3.0, options.seconds))  # warm-up
        phases = []
        for number in range(options.rounds):
            order = (1, options.clients) if number % 2 == 0 else (options.clients, 1)
            phases += [measured(port, bodies, clients, options.seconds) for clients in order]
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    if status:
        raise UserError(f"serve.py exited with status {status}")
    for fault in sorted({fault for phase in phases for fault in phase.faults})[:10]:
        print(f"fault: {fault}")
    body = [
        f"{options.rounds} rounds of {options.seconds:g} s with each number of clients, alternately; latencies are "
        "medians over the rounds. Memory is the resident set size of the service, sampled every two seconds: median "
        "and range per round, including the memory of batches in progress.",
        "",
        "| clients | images per second, each round | p50 ms | p95 ms | images per batch | MiB, each round | faults |",
        "|---|---|---|---|---|---|---|",
        *table(phases),
    ]
    publish(report("Load test of the HTTP service", NAME, line, body, None), NAME, options.write)
    return phases


if __name__ == "__main__":
    run_script(main)
