"""Command lines that continue with the weights of a training or an export."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.log import LOGGER

_PROGRAMS = {  # that run and that validate weights, by task; all others have those of detection
    "classify": ("python classify/predict.py", "python classify/val.py"),
    "segment": ("python segment/predict.py", "python segment/val.py"),
}
_DETECTION = ("python detect.py", "python val.py")


def prediction_command(task: str, weights: Path) -> str:
    """Return the command line that runs `weights` on images."""
    return f"{_PROGRAMS.get(task, _DETECTION)[0]} --weights {shlex.quote(str(weights))}"


def validation_command(task: str, weights: Path) -> str:
    """Return the command line that validates `weights`."""
    return f"{_PROGRAMS.get(task, _DETECTION)[1]} --weights {shlex.quote(str(weights))}"


class NextCommands:
    """Logger that keeps the best checkpoint of a completed run, for the commands that continue with it."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.best: Path | None = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Do nothing."""

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Do nothing."""

    def image(self, path: Path, epoch: int) -> None:
        """Do nothing."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Keep the first checkpoint, the best one; an interrupted run has none."""
        self.best = next(iter(checkpoints), None)

    def log(self) -> None:
        """Log the commands, one per line; after an interrupted run there are none."""
        if self.best is not None:
            predict, validate = prediction_command(self.task, self.best), validation_command(self.task, self.best)
            export = f"python export.py --weights {shlex.quote(str(self.best))} --include onnx"
            LOGGER.info(f"next:\n  {predict} --source IMAGES\n  {validate}\n  {export}")
