"""Whole trainings for measuring programs: the options they share, one run, and what came of it."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from utils.core.cli import add_image_size
from utils.core.data_config import load_data
from utils.core.timing import Stopwatch
from utils.core.train_options import resolve_training, training_parser
from utils.engine.fit import fit
from utils.loggers.csv_file import read_results
from utils.tasks.task_selection import task_for

LOSSES = ("train/box_loss", "train/obj_loss", "train/cls_loss")
SCORE = "metrics/mAP_0.5:0.95"


@dataclass(frozen=True)
class Training:
    """What one run gave."""

    losses: list[float]  # per epoch, the sum of the training terms
    scores: list[float]  # per epoch, mAP50-95
    numbers: dict[str, float]  # of the best checkpoint at the end
    seconds: float


def add_training_options(parser: argparse.ArgumentParser, data: str, epochs: int | None) -> None:
    """Add the options that are handed on to the training; what is not given is what train.py takes."""
    add = parser.add_argument
    add("--data", default=data, help="data-set YAML")
    add("--weights", default=None, help="checkpoint to start from; none: from scratch")
    add("--cfg", default=None, help="model YAML or name; none: the checkpoint's own, else yolov5n")
    add("--hyp", default=None, help="hyper-parameter YAML")
    add("--epochs", type=int, default=epochs, help="epochs of each run; none: what the data YAML recommends")
    add("--batch-size", type=int, default=None)
    add_image_size(parser, (), "image size in pixels")
    add("--workers", type=int, default=None)
    add("--device", default=None)
    add("--seeds", type=int, nargs="+", default=[0, 1], help="each setting is trained once with every seed")


def train_once(options: argparse.Namespace, **chosen: Any) -> Training:
    """Train as train.py would with `options` and `chosen`, in a folder that is removed afterwards."""
    names = ("data", "weights", "cfg", "hyp", "epochs", "batch_size", "imgsz", "workers", "device")
    values = {name: value for name in names if (value := getattr(options, name)) not in (None, ())}
    data = load_data(options.data)
    with tempfile.TemporaryDirectory() as folder:
        place = {"project": folder, "name": "run", "noplots": True}
        settings, _ = resolve_training(training_parser(None), values | chosen | place, data.defaults, data.source)
        with Stopwatch() as watch:
            numbers = fit(partial(task_for, "detect", settings), settings)
        rows = read_results(Path(folder) / "run" / "results.csv")
    epochs = [rows[epoch] for epoch in sorted(rows)]
    return Training(
        losses=[sum(row[name] for name in LOSSES) for row in epochs],
        scores=[row[SCORE] for row in epochs],
        numbers=numbers,
        seconds=watch.seconds,
    )
