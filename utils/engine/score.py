"""Scoring as a program: open the data and the runner, evaluate, write what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from utils.core import dist
from utils.core.config import DataConfig, find_data, load_data
from utils.core.contracts import Batch, EvalSettings, Loader, LoadRequest, Outputs, Results, Runner, Task
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.files import drop_if_empty, run_folder, write_text
from utils.core.hyp import Hyp
from utils.core.log import LOGGER
from utils.core.settings import ScoreSettings
from utils.engine.assemble import require_heads
from utils.engine.evaluate import Report, evaluate, speed_line, table
from utils.engine.fit import write_results
from utils.metrics import EVALUATORS
from utils.ops.text import box_lines

STUDY_SIZES = range(256, 1537, 128)
DRAWN_BATCHES = 3


class Subject(Protocol):
    """What is scored: a runner, and what its checkpoint says about itself."""

    @property
    def runner(self) -> Runner:
        """Return what computes."""
        ...

    @property
    def name(self) -> str:
        """Return the stem of the weights file."""
        ...

    @property
    def meta(self) -> dict[str, Any]:
        """Return what the checkpoint says about its training."""
        ...


DrawStudy = Callable[[Sequence[Sequence[float]], Sequence[str], Path], object]
OpenSubject = Callable[[ScoreSettings, torch.device], Subject]


def score(task: Task, settings: ScoreSettings, open_subject: OpenSubject, draw_study: DrawStudy) -> dict[str, float]:
    """Score one checkpoint, or an ensemble, on one split; return the numbers. Works under torchrun."""
    device = select_device(settings.device)
    dist.start(device)
    subject = open_subject(settings, device)
    require_heads(task.name, set(task.heads), set(subject.runner.specs), subject.name)
    for head in subject.runner.specs:
        if head not in EVALUATORS:
            known = ", ".join(EVALUATORS.names())
            raise UserError(f"{subject.name}: its head {head!r} cannot be scored here (known: {known})")
    data = _data(settings, subject)
    folder = _folder(settings)
    try:
        if settings.task == "study":
            return _study(task, settings, subject, data, device, folder, draw_study)
        report = _score_at(task, settings, subject, data, device, folder, _size(settings, subject))
        if dist.is_main():
            about = {"weights": list(settings.weights), "data": _data_name(settings, subject), "task": settings.task}
            write_results(folder / "results.json", report, about)
            LOGGER.info(f"results are in {folder}")
        return report.numbers
    finally:
        if dist.is_main():
            drop_if_empty(folder)  # nothing came of it


def _folder(settings: ScoreSettings) -> Path:
    return dist.made_by_main(lambda: run_folder(Path(settings.project), settings.name, settings.exist_ok))


def _data_name(settings: ScoreSettings, subject: Subject) -> str:
    """Return the data YAML as the user wrote it, here or when the checkpoint was trained."""
    return str(settings.data or subject.meta.get("data") or "data/shapes.yaml")


def _data(settings: ScoreSettings, subject: Subject) -> DataConfig:
    """Return the data to score on; it must have the classes the network knows."""
    text = _data_name(settings, subject)
    if not settings.data:
        LOGGER.info(f"data: {text} (what {subject.name} was trained on)")
    data = load_data(text)
    data = data.single_class() if settings.single_cls else data
    for head, spec in subject.runner.specs.items():
        if spec.num_classes != data.num_classes and not settings.single_cls:
            hint = ", or give --single-cls" if spec.num_classes == 1 else ""
            raise UserError(
                f"{data.source}: {data.num_classes} classes, but the {head} head of {subject.name} knows "
                f"{spec.num_classes}; score it on the data it was trained for{hint}"
            )
    return data


def _size(settings: ScoreSettings, subject: Subject) -> int:
    size = int(settings.imgsz[0] if settings.imgsz else subject.meta.get("imgsz") or 640)
    step = max(subject.runner.stride, 32)
    fitting = math.ceil(size / step) * step
    if fitting != size:
        LOGGER.warning(f"--imgsz {size} is no multiple of {step}; using {fitting}")
    return fitting


def _loader(task: Task, settings: ScoreSettings, data: DataConfig, size: int, stride: int) -> Loader:
    speed = settings.task == "speed"
    return task.load(
        LoadRequest(
            data=data,
            split="val" if speed else settings.task,
            training=False,
            image_size=size,
            batch_size=settings.batch_size,
            stride=max(stride, 32),
            hyp=Hyp(),
            workers=settings.workers,
            rect=not speed,
            pad=0.0 if speed else 0.5,
            single_class=settings.single_cls,
            mask_ratio=1 if settings.save_json else LoadRequest.mask_ratio,
            allow_label_faults=settings.allow_label_faults,
        )
    )


def _score_at(
    task: Task,
    settings: ScoreSettings,
    subject: Subject,
    data: DataConfig,
    device: torch.device,
    folder: Path,
    size: int,
) -> Report:
    split = "val" if settings.task == "speed" else settings.task
    given = Path(settings.annotations) if settings.annotations else data.annotations.get(split)
    if given is not None and not given.is_file():
        raise UserError(f"{given}: no such COCO JSON")
    loader = _loader(task, settings, data, size, subject.runner.stride)
    speed = settings.task == "speed"
    how = EvalSettings(
        names=data.names,
        confidence=0.25 if speed else settings.conf_thres,
        iou=0.45 if speed else settings.iou_thres,
        max_detections=settings.max_det,
        agnostic=settings.single_cls,
        single_class=settings.single_cls,
        fine_masks=settings.save_json,  # what is saved has the originals' resolution
        native_masks=settings.save_json,
        annotations=given,
        save_json=folder / f"{subject.name}_predictions.json" if settings.save_json else None,
    )
    watcher = _Watcher(task, settings, folder, data.names)
    alter = add_labels if settings.save_hybrid else None
    report = evaluate(subject.runner, loader, how, device, on_batch=watcher, alter=alter)
    verbose = settings.verbose or data.num_classes < 50
    for scores in report.scores.values():
        LOGGER.info(table(scores, verbose=verbose))
    LOGGER.info(coco_line(report.numbers))
    LOGGER.info(speed_line(report, (settings.batch_size, 3, size, size)))
    if dist.is_main() and not settings.noplots and not speed:
        list(task.draw_scores(report.scores, folder, data.names))
    return report


def coco_line(numbers: dict[str, float]) -> str:
    """Return COCO's numbers as one line."""
    found = {name.removeprefix("coco/"): value for name, value in numbers.items() if name.startswith("coco/")}
    return "COCO: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items())


class _Watcher:
    """Draw the first batches and write label files as batches go by."""

    def __init__(self, task: Task, settings: ScoreSettings, folder: Path, names: tuple[str, ...]) -> None:
        self.task, self.settings, self.folder, self.names = task, settings, folder, names
        self._drawn = 0

    def __call__(self, batch: Batch, results: list[Results]) -> None:
        if self.settings.save_txt or self.settings.save_hybrid:
            for result in results:
                self._write(result)
        if dist.is_main() and not self.settings.noplots and self._drawn < DRAWN_BATCHES:
            for kind, found in (("labels", None), ("pred", results)):
                path = self.folder / f"val_batch{self._drawn}_{kind}.jpg"
                self.task.draw_batch(batch, path, self.names, found)
            self._drawn += 1

    def _write(self, result: Results) -> None:
        if result.boxes is None or result.classes is None:
            return
        scores = result.scores if self.settings.save_conf else None
        lines = box_lines(result.boxes, result.classes, scores, result.info.geometry.original_hw)
        path = self.folder / "labels" / f"{Path(result.info.path).stem}.txt"
        write_text(path, "".join(line + "\n" for line in lines))


def add_labels(outputs: Outputs, batch: Batch) -> None:
    """Add the labels to the boxes as certain detections (`--save-hybrid`, behaviour.md 5.1 step 2)."""
    for decoded in outputs.decoded.values():
        if "predictions" not in decoded:
            continue
        predictions = decoded["predictions"]
        height, width = batch.images.shape[2:]
        counts = torch.bincount(batch.boxes[:, 0].long(), minlength=len(batch))
        extra = predictions.new_zeros(len(batch), int(counts.max()) if len(counts) else 0, predictions.shape[2])
        size = batch.boxes.new_tensor([width, height, width, height])
        for image in range(len(batch)):
            rows: Tensor = batch.boxes[batch.boxes[:, 0] == image]
            extra[image, : len(rows), :4] = (rows[:, 2:] * size).to(extra)
            extra[image, : len(rows), 4] = 1.0
            extra[image, torch.arange(len(rows)), 5 + rows[:, 1].long()] = 1.0
        decoded["predictions"] = torch.cat([predictions, extra], dim=1)


def _study(
    task: Task,
    settings: ScoreSettings,
    subject: Subject,
    data: DataConfig,
    device: torch.device,
    folder: Path,
    draw_study: DrawStudy,
) -> dict[str, float]:
    """Score over a range of image sizes; write one row per size."""
    rows: list[Sequence[float]] = []
    numbers: dict[str, float] = {}
    plain = replace(settings, task="val", noplots=True)
    for size in STUDY_SIZES:
        LOGGER.info(f"size {size}")
        report = _score_at(task, plain, subject, data, device, folder, size)
        numbers, times = report.numbers, report.milliseconds
        scores = [numbers[name] for column, name in task.columns.items() if column.startswith("metrics/")]
        rows.append([size, *scores, times["preprocess"], times["inference"], times["postprocess"]])
    if dist.is_main():
        path = folder / f"study_{find_data(str(data.source)).stem}_{subject.name}.txt"
        write_text(path, "".join("".join(f"{value:10.4g}" for value in row) + "\n" for row in rows))
        columns = [column.removeprefix("metrics/") for column in task.columns if column.startswith("metrics/")]
        LOGGER.info(f"{path}: size, {', '.join(columns)}, milliseconds before, in and after the network")
        if not settings.noplots:
            draw_study(rows, columns, path.with_name("study.png"))
    return numbers
