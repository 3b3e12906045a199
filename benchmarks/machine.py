"""Helpers of the benchmarks: alternating measurements, their statistics, and reports with machine and versions."""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from utils.core.device import usable_cpus
from utils.core.files import ROOT, write_text

Value = TypeVar("Value")
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Spread:
    """Median and range of repeated measurements."""

    median: float
    low: float
    high: float

    def scaled(self, factor: float) -> Spread:
        """Convert the values to another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def text(self, digits: int = 2) -> str:
        """Format as `median (low to high)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Compute median, minimum and maximum."""
    return Spread(statistics.median(values), min(values), max(values))


def alternate(actions: Mapping[str, Callable[[], Value]], rounds: int, warm_up: int = 1) -> dict[str, list[Value]]:
    """Call every action once per round, reversing their order each round.

    Drifts of the machine then affect all actions alike; compare the values of one round.

    Args:
        actions: Functions to call, by name.
        rounds: Number of rounds whose results are returned.
        warm_up: Number of rounds before them.

    Returns:
        The results of each action, one per round.
    """
    found: dict[str, list[Value]] = {name: [] for name in actions}
    for number in range(warm_up + rounds):
        order = list(actions) if number % 2 == 0 else list(reversed(actions))
        for name in order:
            value = actions[name]()
            if number >= warm_up:
                found[name].append(value)
    return found


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Compute the ratios of two series, round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def processor() -> str:
    """Get the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """Get the short hash of the commit, marked if tracked files differ from it."""
    try:
        name, changed = (
            subprocess.run(["git", *line], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
            for line in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except OSError:
        return "unknown"
    return f"{name or 'unknown'}{' with changes' if changed else ''}"


def machine(device: torch.device | None = None) -> str:
    """Describe processor, cores, threads, GPU, versions, commit and date in one line."""
    import cv2
    import numpy as np

    where = [f"{processor()}, {usable_cpus()} cores, {torch.get_num_threads()} thread(s)"]
    if device is not None and device.type == "cuda":
        where.append(torch.cuda.get_device_name(device))
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, OpenCV {cv2.__version__}"
    today = datetime.date.today().isoformat()
    return "; ".join([*where, f"{versions}, numpy {np.__version__}", f"commit {commit()}", today])


def command(script: str, arguments: Sequence[str]) -> str:
    """Format the command line of a benchmark; of paths outside the project only the last component is shown."""
    shown = []
    for argument in arguments:
        option, equals, value = argument.rpartition("=")
        outside = Path(value).is_absolute() or Path(value).parts[:1] == ("..",)
        shown.append(f"{option}{equals}{Path(value).name}" if outside else argument)
    return " ".join([f"python benchmarks/{script}.py", *shown])


def report(title: str, script: str, arguments: Sequence[str], body: Sequence[str], device: torch.device | None) -> str:
    """Format a report as Markdown: title, machine, command and body."""
    head = [f"# {title}", "", machine(device), "", f"`{command(script, arguments)}`", ""]
    return "\n".join([*head, *body]) + "\n"


def publish(text: str, script: str, write: bool) -> None:
    """Print a report; with `write`, also save it as benchmarks/results/<script>.md."""
    print(text)
    if write:
        write_text(RESULTS / f"{script}.md", text)


def new_parser(description: str | None, script: str) -> argparse.ArgumentParser:
    """Create a parser with the option that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write benchmarks/results/{script}.md")
    return parser


def command_arguments(arguments: Sequence[str] | None) -> list[str]:
    """Copy the arguments of a benchmark: those of the caller, else those of the command line."""
    return list(sys.argv[1:] if arguments is None else arguments)
