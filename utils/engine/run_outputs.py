"""Files and plots of a run: options, results.csv columns, results.json, sample batches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.class_names import count_text
from models.summary import summarize
from utils.core import distributed as dist
from utils.core.contracts import Batch, Loss, Results, Task
from utils.core.data_config import DataConfig
from utils.core.files import write_text
from utils.core.log import LOGGER
from utils.core.yaml_file import write_yaml
from utils.engine.evaluate import Report
from utils.engine.progress_text import progress_header
from utils.engine.run import Run

PLOTTED_BATCHES = 3  # of training and validation images


def start_outputs(run: Run) -> None:
    """Start the loggers, write options and hyperparameters, and plot labels and training batches (first rank)."""
    if not dist.is_main():
        return
    run.loggers.start(run.folder, {**run.settings.to_dict(), **{f"hyp/{k}": v for k, v in run.hyp.to_dict().items()}})
    write_yaml(run.folder / "args.yaml", run.settings.to_dict())
    write_yaml(run.folder / "hyp.yaml", run.hyp.to_dict())
    LOGGER.info(str(summarize(run.network, run.settings.imgsz[0]).line))
    LOGGER.info(
        f"{run.train_loader.num_images} training and {run.val_loader.num_images} validation images, "
        f"{count_text(run.network.specs)}; results go to {run.folder}"
    )
    if not run.settings.noplots and not run.resumed:
        run.task.draw_labels(run.train_loader, run.folder, run.data)
        _plot_training_batches(run)
    columns = csv_columns(run.task, run.losses).values()
    LOGGER.info(progress_header([name.removeprefix("train/") for name in columns if name.startswith("train/")]))


def _plot_training_batches(run: Run) -> None:
    for index, batch in enumerate(run.train_loader.epoch(0)):
        if index == PLOTTED_BATCHES:
            break
        path = run.folder / f"train_batch{index}.jpg"
        run.task.draw_batch(batch, path, run.data, None)
        run.loggers.image(path, 0)


def csv_columns(task: Task, losses: Mapping[str, Loss]) -> dict[str, str]:
    """Map the columns of results.csv to metric names: those of the task and of optional loss terms."""
    terms = [(head, term) for head, loss in losses.items() for term in loss.extra_terms]
    training = [(head, term) for head, loss in losses.items() for term in loss.training_terms]
    omitted = [(head, term) for head, loss in losses.items() for term in loss.omitted_terms]
    absent = {f"{part}/{head}/{term}" for part in ("train", "val") for head, term in omitted}
    extra = {f"{part}/{term}_loss": f"{part}/{head}/{term}" for part in ("train", "val") for head, term in terms}
    extra |= {f"train/{term}_loss": f"train/{head}/{term}" for head, term in training}
    return {column: name for column, name in task.columns.items() if name not in absent} | extra


class BatchPlotter:
    """Callback that plots labels and predictions of the first batches, counting those with semantic maps separately.

    Args:
        task: Task that draws a batch.
        folder: Folder of the plots, created on demand.
        data: Data set with the class names.
        enabled: False disables all plots; ranks other than the first never plot.

    Attributes:
        paths: Files written so far.
    """

    def __init__(self, task: Task, folder: Path, data: DataConfig, enabled: bool = True) -> None:
        self.task, self.folder, self.data, self.enabled = task, folder, data, enabled and dist.is_main()
        self.paths: list[Path] = []
        self._counts: dict[str, int] = {}

    def __call__(self, batch: Batch, results: list[Results]) -> None:
        """Plot one batch unless enough batches of its kind are plotted."""
        prefix = "" if batch.semantic is None else "semantic_"
        index = self._counts.setdefault(prefix, 0)
        if not self.enabled or index >= PLOTTED_BATCHES:
            return
        self._counts[prefix] += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        for kind, predictions in (("labels", None), ("pred", [result.cpu() for result in results])):
            path = self.folder / f"{prefix}val_batch{index}_{kind}.jpg"
            self.task.draw_batch(batch, path, self.data, predictions)
            self.paths.append(path)


def write_results(path: Path, report: Report, header: Mapping[str, Any]) -> None:
    """Write an evaluation as JSON.

    Args:
        path: Output file.
        report: Metrics, and speeds in milliseconds per image. NaN is written as null.
        header: Further keys, written first.
    """
    speeds = {f"speed/{name}_ms": round(value, 3) for name, value in report.milliseconds.items()}
    metrics = {name: None if value != value else value for name, value in report.metrics.items()}
    write_text(path, json.dumps({**header, "images": report.images, **metrics, **speeds}, indent=2) + "\n")
