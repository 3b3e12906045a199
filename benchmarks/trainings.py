"""Training runs for benchmarks: common options, one run and its results."""

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
from utils.tasks.task_selection import select_training_task

LOSSES = ("train/box_loss", "train/obj_loss", "train/cls_loss")
SCORE = "metrics/mAP_0.5:0.95"


@dataclass(frozen=True)
class Training:
    """Results of one training run."""

    losses: list[float]  # sum of the training losses, per epoch
    scores: list[float]  # mAP50-95 per epoch
    numbers: dict[str, float]  # scores of the best checkpoint
    seconds: float


def add_training_options(parser: argparse.ArgumentParser, data: str, epochs: int | None) -> None:
    """Add the options of the training runs; their defaults are those of train.py.

    Args:
        parser: Parser of the benchmark.
        data: Default data-set YAML.
        epochs: Default number of epochs; None: the recommendation of the data set.
    """
    add = parser.add_argument
    add("--data", default=data, help="data-set YAML")
    add("--weights", default=None, help="initial checkpoint (default: none, train from scratch)")
    add("--cfg", default=None, help="model YAML or name (default: from the checkpoint, else yolov5n)")
    add("--hyp", default=None, help="hyperparameter YAML")
    add("--epochs", type=int, default=epochs, help="epochs of each run (default: from the data YAML)")
    add("--batch-size", type=int, default=None)
    add_image_size(parser, (), "image size in pixels")
    add("--workers", type=int, default=None)
    add("--device", default=None)
    add("--seeds", type=int, nargs="+", default=[0, 1], help="seeds; each setting is trained once with every seed")


def train_once(options: argparse.Namespace, **chosen: Any) -> Training:
    """Train in a temporary folder.

    Args:
        options: Options of `add_training_options`.
        **chosen: Further options of train.py by name.
    """
    names = ("data", "weights", "cfg", "hyp", "epochs", "batch_size", "imgsz", "workers", "device")
    values = {name: value for name in names if (value := getattr(options, name)) not in (None, ())}
    data = load_data(options.data)
    with tempfile.TemporaryDirectory() as folder:
        place = {"project": folder, "name": "run", "noplots": True}
        settings, _ = resolve_training(training_parser(None), values | chosen | place, data.defaults, data.source)
        with Stopwatch() as watch:
            numbers = fit(partial(select_training_task, "detect", settings.fitness), settings)
        rows = read_results(Path(folder) / "run" / "results.csv")
    epochs = [rows[epoch] for epoch in sorted(rows)]
    return Training(
        losses=[sum(row[name] for name in LOSSES) for row in epochs],
        scores=[row[SCORE] for row in epochs],
        numbers=numbers,
        seconds=watch.seconds,
    )
