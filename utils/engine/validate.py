"""Scoring as a program: open the data and the runner, evaluate, write what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.semantic_inference import MultiScale, SlidingWindow
from utils.core import distributed as dist
from utils.core.contracts import Batch, EvalSettings, HeadSpec, Loader, Outputs, Results, Runner, Task
from utils.core.data_config import DataConfig, load_data, load_semantic_data
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.files import remove_if_empty, run_folder, write_text
from utils.core.hyp import Hyp
from utils.core.load_request import LoadRequest, SemanticRequest
from utils.core.log import LOGGER
from utils.core.train_settings import ScoreSettings
from utils.engine.build_run import require_heads
from utils.engine.evaluate import MANY_CLASSES, Report, coco_line, evaluate, speed_line, table
from utils.engine.fit import BatchPictures, write_results
from utils.metrics import EVALUATORS
from utils.ops.label_text import box_lines


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


OpenSubject = Callable[[ScoreSettings, torch.device], Subject]


def score(
    choose: Callable[[Collection[str]], Task], settings: ScoreSettings, open_subject: OpenSubject
) -> dict[str, float]:
    """Score one checkpoint, or an ensemble, on one split; return the numbers. Works under torchrun.

    `choose` returns the task of a network with certain heads.
    """
    device = select_device(settings.device)
    dist.start(device)
    task, subject, data = prepare(choose, settings, open_subject, device)
    folder = results_folder(settings)
    try:
        report = score_at(task, settings, subject, data, device, folder, _size(settings, subject))
        if dist.is_main():
            about = {
                "weights": list(settings.weights),
                "data": _data_name(task, settings, subject),
                "task": settings.task,
            }
            write_results(folder / "results.json", report, about)
            LOGGER.info(f"results are in {folder}")
        return report.metrics
    finally:
        if dist.is_main():
            remove_if_empty(folder)  # nothing came of it


def prepare(
    choose: Callable[[Collection[str]], Task], settings: ScoreSettings, open_subject: OpenSubject, device: torch.device
) -> tuple[Task, Subject, DataConfig]:
    """Open what `settings` name; return it with its task and data. What cannot be scored raises UserError."""
    subject = open_subject(settings, device)
    task = choose(subject.runner.specs)
    require_heads(task.name, set(task.heads), set(subject.runner.specs), subject.name)
    for head in subject.runner.specs:
        if head not in EVALUATORS:
            known = ", ".join(EVALUATORS.names())
            raise UserError(f"{subject.name}: its head {head!r} cannot be scored here (known: {known})")
    if settings.save_hybrid and any(spec.num_masks for spec in subject.runner.specs.values()):
        raise UserError("--save-hybrid joins boxes; labels cannot be joined with the masks this network finds")
    return task, subject, _data(task, settings, subject)


def results_folder(settings: ScoreSettings) -> Path:
    """Return the folder that the settings name; the first rank makes it."""
    return dist.run_on_main(lambda: run_folder(Path(settings.project), settings.name, settings.exist_ok))


def _data_name(task: Task, settings: ScoreSettings, subject: Subject) -> str:
    """Return the data YAML as the user wrote it, here or when the checkpoint was trained."""
    return str(settings.data or subject.meta.get("data") or task.data)


def _data(task: Task, settings: ScoreSettings, subject: Subject) -> DataConfig:
    """Return the data to score on; it must have the classes the network knows."""
    text = _data_name(task, settings, subject)
    if not settings.data:
        LOGGER.info(f"data: {text} (what {subject.name} was trained on)")
    data = load_data(text)
    if data.is_class_folders and set(data.names) <= set(subject.runner.names):
        data = replace(data, names=tuple(subject.runner.names))  # some classes may have no folder here
    elif data.is_class_folders:
        LOGGER.warning(
            f"{data.source}: its folders are not called as the classes of {subject.name} ({data.names[0]}, "
            f"{subject.runner.names[0]}, …); taken in this order"
        )
    data = data.single_class() if settings.single_cls else data
    if settings.segdata:
        data = replace(data, semantic=load_semantic_data(settings.segdata))
    for spec in subject.runner.specs.values():
        _check_classes(data, subject.name, spec, settings.single_cls)
    return data


def _check_classes(data: DataConfig, name: str, spec: HeadSpec, single: bool) -> None:
    """Raise UserError if the data has other classes than a head knows."""
    names = data.names_for(spec.name)
    if names is None or len(names) == spec.num_classes or (single and names == data.names):
        return  # without labels for it, it is not scored
    hint = ", or give --single-cls" if spec.num_classes == 1 else ""
    raise UserError(
        f"{data.source}: {len(names)} classes, but the {spec.name} head of {name} knows {spec.num_classes}; score it "
        f"on the data it was trained for{hint}"
    )


def _size(settings: ScoreSettings, subject: Subject) -> int:
    runner = subject.runner
    if fixed := runner.fixed_hw:
        return _fixed_size(settings, subject, fixed)
    usual = max(spec.usual_px for spec in runner.specs.values())
    size = int(settings.imgsz[0] if settings.imgsz else subject.meta.get("imgsz") or usual)
    step = max(subject.runner.stride, 32)
    fitting = math.ceil(size / step) * step
    if fitting != size:
        LOGGER.warning(f"--imgsz {size} is no multiple of {step}; using {fitting}")
    return fitting


def _fixed_size(settings: ScoreSettings, subject: Subject, fixed_hw: tuple[int, int]) -> int:
    """Return the side of the squares that an exported file without open sizes takes."""
    height, width = fixed_hw
    wanted = settings.imgsz[0] if settings.imgsz else height
    if (wanted, wanted) != (height, width):
        what = "scores squares" if height != width else f"asks for {wanted} x {wanted}"
        raise UserError(f"{subject.name}: takes {height} x {width} pixels only, {what}; export it with --dynamic")
    if any(spec.fit == "letterbox" for spec in subject.runner.specs.values()):
        LOGGER.info(
            f"{subject.name}: takes {height} x {width} pixels only, so images get wide borders and scores differ from "
            "a checkpoint's, which is scored on rectangles; files exported with --dynamic are, too"
        )
    return height


def _loader(task: Task, settings: ScoreSettings, data: DataConfig, size: int, runner: Runner) -> Loader:
    speed = settings.task == "speed"
    square = speed or runner.fixed_hw is not None
    return task.load(
        LoadRequest(
            data=data,
            split="val" if speed else settings.task,
            training=False,
            image_size=size,
            batch_size=settings.batch_size,
            stride=max(runner.stride, 32),
            hyp=Hyp(),
            workers=settings.workers,
            rect=not square,
            pad=0.0 if square else 0.5,
            single_class=settings.single_cls,
            mask_ratio=1 if settings.save_json else LoadRequest.mask_ratio,
            allow_label_faults=settings.allow_label_faults,
            semantic=SemanticRequest(
                settings.base_size, settings.seg_mode, fixed_hw=None if settings.seg_window else runner.fixed_hw
            ),
        )
    )


def score_at(
    task: Task,
    settings: ScoreSettings,
    subject: Subject,
    data: DataConfig,
    device: torch.device,
    folder: Path,
    size: int,
) -> Report:
    """Score one network at one image size; print and draw what was found."""
    split = "val" if settings.task == "speed" else settings.task
    given = Path(settings.annotations) if settings.annotations else data.annotations.get(split)
    if given is not None and not given.is_file():
        raise UserError(f"{given}: no such COCO JSON")
    loader = _loader(task, settings, data, size, subject.runner)
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
        absent_as_zero=settings.absent_as_zero,
        save_json=folder / f"{subject.name}_predictions.json" if settings.save_json else None,
    )
    watcher = _Watcher(task, settings, folder, data)
    alter = add_labels if settings.save_hybrid else None
    careful = _careful(subject.runner, settings)
    report = evaluate(
        subject.runner, loader, how, device, on_batch=watcher, alter=alter, without=careful.specs if careful else ()
    )
    if careful:
        report = report.joined(evaluate(careful, loader, how, device, on_batch=watcher))
    verbose = data.num_classes < MANY_CLASSES if settings.verbose is None else settings.verbose
    for scores in report.scores.values():
        LOGGER.info(table(scores, verbose=verbose))
    if line := coco_line(report.metrics):
        LOGGER.info(line)
    LOGGER.info(speed_line(report, (settings.batch_size, 3, size, size)))
    if dist.is_main() and not settings.noplots and not speed:
        list(task.draw_scores(report.scores, folder, data))
    return report


def _careful(runner: Runner, settings: ScoreSettings) -> Runner | None:
    """Return what looks at classes of pixels as the options ask: at several sizes, mirrored, through windows."""
    wrapped = SlidingWindow(runner, (settings.seg_window,) * 2) if settings.seg_window else None
    if settings.seg_scales or settings.seg_flip:
        return MultiScale(wrapped or runner, settings.seg_scales or (1.0,), settings.seg_flip)
    return wrapped


class _Watcher:
    """Draw the first batches and write label files as batches go by."""

    def __init__(self, task: Task, settings: ScoreSettings, folder: Path, data: DataConfig) -> None:
        self.settings, self.folder = settings, folder
        self.pictures = BatchPictures(task, folder, data, enabled=not settings.noplots)

    def __call__(self, batch: Batch, results: list[Results]) -> None:
        if self.settings.save_txt or self.settings.save_hybrid:
            for result in results:
                self._write(result)
        self.pictures(batch, results)

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
