"""What does the service stand: throughput and latency with one client and with several, batches formed, memory.

python benchmarks/serve_load.py --weights yolov5n.pt --write
python benchmarks/serve_load.py --weights yolov5n.pt --clients 8 --seconds 60

The program starts serve.py on loopback. Clients keep their connection and send the next image when the answer is there.
Phases with one and with all clients take turns, so that what drifts falls on both.
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

from benchmarks.machine import given, new_parser, publish, report, spread
from utils.core.cli import run_script
from utils.core.errors import UserError
from utils.core.files import ROOT

NAME = "serve_load"
HOST = "127.0.0.1"


@dataclass
class Phase:
    """What happened while some clients sent images."""

    clients: int
    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    batches: dict[str, int] = field(default_factory=dict)  # images per batch -> how many batches
    memory_mb: list[float] = field(default_factory=list)  # every other second

    @property
    def per_second(self) -> float:
        """Return answers per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile(self, percent: int) -> float:
        """Return the latency that `percent` of the answers do not exceed."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else float("nan")


def measures(port: int) -> dict[str, float]:
    """Return what the service counts, by name with labels."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def batch_sizes(now: dict[str, float], before: dict[str, float]) -> dict[str, int]:
    """Return how many batches of each size were formed between two looks at the measures."""
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
    """Send images one after the other; note how long each took, and everything that is no proper answer."""
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
    """Return what `clients` clients got in `seconds` seconds."""
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
    """Note what memory the service holds every other second, and at the end."""
    while True:
        last = done.wait(2)
        found_mb.append(measures(port).get("process_resident_memory_bytes", float("nan")) / 2**20)
        if last:
            return


def started(options: argparse.Namespace) -> tuple[subprocess.Popen[str], int]:
    """Return the process of the service and its port, once it listens."""
    line = [sys.executable, str(ROOT / "serve.py"), "--port", "0", "--device", options.device]
    line += ["--weights", options.weights, *(["--imgsz", str(options.imgsz)] if options.imgsz else [])]
    line += ["--max-batch", str(options.max_batch)] if options.max_batch else []
    line += ["--level-memory"] if options.level_memory else []
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
    """Read what else a process says, so that it never waits for its reader."""
    with output:
        output.read()


def bodies_of(folder: str, count: int = 16) -> list[bytes]:
    """Return the JPEG files of a folder; without one, images of blocks in usual sizes."""
    if folder:
        files = sorted(Path(folder).rglob("*.jpg"))[:64]
        if not files:
            raise UserError(f"--images {folder}: no .jpg files there")
        return [file.read_bytes() for file in files]
    bodies = []
    for number in range(count):
        rng = np.random.default_rng(number)
        width, height = ((640, 480), (480, 640))[number % 4 == 3]
        blocks = cv2.resize(rng.integers(0, 255, (24, 32, 3), np.uint8), (width, height))
        bodies.append(cv2.imencode(".jpg", blocks)[1].tobytes())
    return bodies


def table(phases: Sequence[Phase]) -> list[str]:
    """Return a row per number of clients, over all rounds."""
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
    """Return the options."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--weights", required=True, help="checkpoint to serve")
    parser.add_argument("--images", default="", help="folder of JPEG files to send; none: generated ones")
    parser.add_argument("--clients", type=int, default=8, help="clients at the same time, compared with one")
    parser.add_argument("--seconds", type=float, default=60, help="of each phase")
    parser.add_argument("--rounds", type=int, default=2, help="of both phases")
    parser.add_argument("--device", default="cpu", help="of the service")
    parser.add_argument("--imgsz", type=int, default=0, help="of the service; 0: the checkpoint's")
    parser.add_argument("--level-memory", action="store_true", help="of the service")
    parser.add_argument("--max-batch", type=int, default=0, help="of the service; 0: its default")
    return parser


def main(arguments: Sequence[str] | None = None) -> list[Phase]:
    """Measure, print a table, return the phases."""
    line = given(arguments)
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
        raise UserError(f"serve.py left with status {status}")
    for fault in sorted({fault for phase in phases for fault in phase.faults})[:10]:
        print(f"fault: {fault}")
    body = [
        f"{options.rounds} rounds of {options.seconds:g} s with each number of clients, turn about; latencies are "
        "medians over the rounds. Memory (RSS) is the service's, looked at every other second of each round: "
        "the middle and the extremes. It includes what a batch needs while it is in the network.",
        "",
        "| clients | images per second, each round | p50 ms | p95 ms | images per batch | MiB, each round | faults |",
        "|---|---|---|---|---|---|---|",
        *table(phases),
    ]
    place = f"{NAME}_level" if options.level_memory else NAME
    publish(report("The service under load", NAME, line, body, None), place, options.write)
    return phases


if __name__ == "__main__":
    run_script(main)
