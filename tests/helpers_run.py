"""Small training runs for tests: a tiny generated data set, and programs run on it in subprocesses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from utils.core.yaml_file import write_yaml

ROOT = Path(__file__).resolve().parents[1]


def tiny_data(folder: Path, train: int = 16, val: int = 8, size: int = 96) -> Path:
    """Write the YAML of a small shapes data set; its images are generated at first use."""
    path = folder / "tiny.yaml"
    names = ["circle", "square", "triangle", "star", "cross", "ring", "crescent"]
    generate = {"kind": "shapes", "train": train, "val": val, "size": size, "seed": 3}
    places = {"train": "images/train", "val": "images/val"}
    semantic = {"format": "shapes", **places}
    data = {"path": "tiny", **places, "names": names, "generate": generate, "semantic": semantic}
    write_yaml(path, data)
    return path


def command(script: str, *options: object, processes: int = 1) -> list[str]:
    """Build the command line of a program, under torchrun for several processes."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", free_port()]
    return [*start, script, *map(str, options)]


def free_port() -> str:
    """Find an unused TCP port."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment() -> dict[str, str]:
    """Build the environment of a subprocess: one thread, for bit-exact comparisons."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def script(name: str, *options: object, processes: int = 1, status: int = 0) -> str:
    """Run a program and return its output; fails the test if it exits with another status."""
    line = command(name, *options, processes=processes)
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == status, f"{' '.join(line)}: status {done.returncode}\n{text[-4000:]}"
    assert "Traceback" not in text or processes > 1, text[-4000:]
    return text


def results(folder: Path) -> dict[str, float]:
    """Read the results.json of a run."""
    return json.loads((folder / "results.json").read_text())


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Load the tensors of a checkpoint."""
    return torch.load(path, weights_only=True)["state"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Compare two state dicts bit by bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
