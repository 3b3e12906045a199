"""Kill trainings at random moments, resume them, and compare their ends with undisturbed runs.

    python benchmarks/kill_campaign.py --runs 100 --seed 0 --write

Each run gets one SIGKILL in a random stage: start-up, training, conclusion. Its weights, results.csv, results.json
(without times) and list of files must then be those of the undisturbed run. A stopped campaign continues.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import command_arguments, new_parser, publish, report
from tools.converters.convert_settings import ShardSettings
from tools.converters.shards import write_shards
from utils.core.cli import run_script
from utils.core.files import ROOT
from utils.core.yaml_file import read_yaml, write_yaml

NAME = "kill_campaign"
EPOCHS, SETTLE_S, LIMIT_S = 3, 1.0, 400
STAGES = ("start-up", "training", "conclusion")
KINDS = {
    "detect": ("train.py", "--cfg", "yolov5n", "--img", "64"),
    "segment": ("segment/train.py", "--cfg", "yolov5n-seg", "--img", "64"),
    "classify": ("classify/train.py", "--cfg", "yolov5n-cls", "--img", "64"),
    "semantic": ("train.py", "--cfg", "yolov5n-sem", "--img", "64"),
    "joint": ("train.py", "--cfg", "yolov5n-psp", "--img", "64"),
    "panoptic": ("segment/train.py", "--cfg", "yolov5n-pan", "--img", "64"),
    "ddp": ("train.py", "--cfg", "yolov5n", "--img", "64"),
    "shards": ("train.py", "--cfg", "yolov5n", "--img", "64"),
}


def write_data(folder: Path) -> Path:
    """Write YAMLs of tiny data sets: generated, which is returned, panoptic, and the first one in tar shards."""
    names = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]
    places = {"train": "images/train", "val": "images/val"}
    generate = {"kind": "shapes", "train": 16, "val": 8, "size": 64, "seed": 3}
    semantic = {"format": "shapes", **places}
    folder.mkdir(parents=True, exist_ok=True)
    data = {"path": str(folder / "tiny"), **places, "names": names, "generate": generate, "semantic": semantic}
    write_yaml(folder / "tiny.yaml", data)
    panoptic = {
        "path": str(folder / "tiny-panoptic"), "format": "coco-panoptic", **places, "names": names,
        "annotations": {split: f"panoptic/panoptic_{split}.json" for split in places},
        "stuff": ["clouds", "stripes"], "generate": {**generate, "kind": "panoptic-shapes"},
    }  # fmt: skip
    write_yaml(folder / "panoptic.yaml", panoptic)
    if not (folder / "shards" / "data.yaml").exists():
        write_shards(ShardSettings(folder / "tiny.yaml", folder / "shards", shard_mb=0.02))
        shards = read_yaml(folder / "shards" / "data.yaml")
        write_yaml(folder / "shards" / "data.yaml", {**shards, "shuffle_window": 5})
    return folder / "tiny.yaml"


class Training:
    """A training of one kind in a folder of its own."""

    def __init__(self, kind: str, data: Path, project: Path, workers: int) -> None:
        self.kind, self.folder = kind, project / "run"
        self.last = self.folder / "weights" / "last.pt"
        shards = data.parent / "shards" / "data.yaml"
        places = {
            "classify": data.parent / "tiny" / "classes",
            "panoptic": data.with_name("panoptic.yaml"),
            "shards": shards,
        }
        place = places.get(kind, data)
        self.options = [
            *KINDS[kind], "--data", str(place), "--batch", "4", "--epochs", str(EPOCHS), "--save-steps", "2",
            "--save-period", "1", "--seed", "1", "--workers", str(workers), "--device", "cpu",
            "--project", str(project), "--name", "run", "--exist-ok",
        ]  # fmt: skip

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start the program with `options`, by default those of a new run."""
        line = [sys.executable]
        if self.kind == "ddp":
            port = str(20000 + random.SystemRandom().randrange(20000))
            line += ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
        line += [self.options[0], *(options or self.options[1:])]
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with (self.folder.parent / "log.txt").open("ab") as log:
            env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            return subprocess.Popen(line, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)

    def rows(self) -> int:
        """Count the epochs in results.csv."""
        path = self.folder / "results.csv"
        return max(0, len(path.read_text(encoding="utf-8").splitlines()) - 1) if path.is_file() else 0

    def reached(self, stage: str) -> bool:
        """Check whether a stage has begun."""
        if stage == "conclusion":
            return self.rows() == EPOCHS
        return stage == "start-up" or self.last.exists()

    def content(self) -> dict[str, Any]:
        """Read all that must be equal at the end."""
        results = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {
            "list of files": sorted(str(path.relative_to(self.folder)) for path in paths),
            "results.json": {name: value for name, value in results.items() if not name.startswith("speed/")},
            "results.csv": (self.folder / "results.csv").read_text(encoding="utf-8"),
            "weights": {
                path.name: torch.load(path, weights_only=True)["state"] for path in paths if path.suffix == ".pt"
            },
        }


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """List what differs between two ends."""
    found = [name for name in first if name != "weights" and json.dumps(first[name]) != json.dumps(second[name])]
    if first["weights"].keys() != second["weights"].keys():
        return [*found, "weights"]
    for name, state in first["weights"].items():
        other = second["weights"][name]
        if state.keys() != other.keys() or not all(torch.equal(state[key], other[key]) for key in state):
            found.append(f"weights of {name}")
    return found


def kill(process: subprocess.Popen[bytes], draw: random.Random) -> str:
    """Send SIGKILL to the process, or to it or a rank of it if it is a launcher; wait until all have ended."""
    ranks = []
    with contextlib.suppress(OSError):
        ranks = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    launched = "torch.distributed.run" in process.args  # type: ignore[operator]
    victim = draw.choice([process.pid, *ranks]) if launched else process.pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    process.wait(LIMIT_S)
    return "launcher" if launched and victim == process.pid else "rank" if launched else "process"


def one_run(number: int, seed: int, work: Path, data: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """Kill and resume one training; return its row."""
    draw = random.Random(f"{seed} {number}")
    kind, stage, workers = kinds[number % len(kinds)], draw.choice(STAGES), draw.choice([0, 1, 2])
    whole = Training(kind, data, work / f"whole-{kind}", 0)
    times = work / f"whole-{kind}" / "times.json"
    if not times.is_file():
        times.write_text(json.dumps(undisturbed(whole)))
    seconds = json.loads(times.read_text())
    training = Training(kind, data, work / f"run{number}", workers)
    shutil.rmtree(training.folder.parent, ignore_errors=True)
    process = training.start()
    while process.poll() is None and not training.reached(stage):
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(0, seconds[stage]))
    ended = process.poll() is not None
    victim = kill(process, draw)
    time.sleep(SETTLE_S)
    row = {"number": number, "kind": kind, "stage": "after the end" if ended else stage, "workers": workers}
    resumed = training.start("--resume", str(training.last)) if training.last.exists() else training.start()
    status = resumed.wait(LIMIT_S)
    concluded = status != 0 and (training.folder / "results.json").is_file()  # the run had finished before the kill
    faults = [] if status == 0 or concluded else [f"status {status}"]
    if not faults:
        faults = differences(whole.content(), training.content())
    if not faults:
        shutil.rmtree(training.folder.parent)
    return {**row, "victim": victim, "faults": faults}


def undisturbed(training: Training) -> dict[str, float]:
    """Run a training without a kill; return the seconds of each stage."""
    shutil.rmtree(training.folder, ignore_errors=True)  # of a campaign that was stopped
    start = time.monotonic()
    process, begun = training.start(), {}
    while process.poll() is None:
        for stage in STAGES:
            if stage not in begun and training.reached(stage):
                begun[stage] = time.monotonic()
        time.sleep(0.005)
    if process.returncode:
        raise RuntimeError(f"{training.folder}: the undisturbed run failed; see log.txt beside it")
    ends = [begun["training"] - start, begun["conclusion"] - begun["training"], time.monotonic() - begun["conclusion"]]
    return dict(zip(STAGES, ends, strict=True))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Format the rows as a table of kinds and stages."""
    stages = [*STAGES, "after the end"]
    lines = [f"| kind | {' | '.join(stages)} | equal ends |", "|---" * (len(stages) + 2) + "|"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        counts = Counter(row["stage"] for row in own)
        equal = sum(not row["faults"] for row in own)
        lines.append(f"| {kind} | {' | '.join(str(counts[stage]) for stage in stages)} | {equal} of {len(own)} |")
    equal = sum(not row["faults"] for row in rows)
    lines += ["", f"{equal} of {len(rows)} ends equal the undisturbed run.", ""]
    return lines + [
        f"- run {row['number']} ({row['kind']}, {row['stage']}): {row['faults']}" for row in rows if row["faults"]
    ]


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = new_parser(__doc__, NAME)
    parser.add_argument("--runs", type=int, default=100, help="number of killed trainings")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="trainings, in turn")
    parser.add_argument("--folder", default="runs/kill_campaign", help="folder of the runs and of finished rows")
    parser.add_argument("--seconds", type=float, default=0.0, help="start no further run after this time (0: no limit)")
    return parser


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run the campaign and report it; return its rows."""
    line = command_arguments(arguments)
    options = build_parser().parse_args(line)
    work = Path(options.folder).resolve() / f"seed{options.seed}"
    data, done, begin = write_data(work / "data"), work / "rows.jsonl", time.monotonic()
    rows = [json.loads(text) for text in done.read_text().splitlines()] if done.is_file() else []
    for number in range(len(rows), options.runs):
        if options.seconds and time.monotonic() - begin > options.seconds:
            break
        rows.append(one_run(number, options.seed, work, data, options.kinds))
        print(rows[-1], flush=True)
        with done.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    body = ["One SIGKILL each, then `--resume` (or a new start if there is no checkpoint yet).", "", *table(rows)]
    publish(report("Killed and resumed trainings", NAME, line, body, None), NAME, options.write)
    return rows


if __name__ == "__main__":
    run_script(main)
