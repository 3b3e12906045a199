"""Validation as a program: open model and data, evaluate, write the results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from models.semantic_inference import MultiScaleRunner, SemanticOverride, SlidingWindowRunner
from utils.core import distributed as dist
from utils.core.contracts import (
    Batch,
    EvalSettings,
    HeadSpec,
    Loader,
    Outputs,
    Results,
    Runner,
    SelectTask,
    Task,
)
from utils.core.data_config import DataConfig, load_data, load_semantic_data
from utils.core.device import configure_gpu, select_device
from utils.core.errors import UserError
from utils.core.files import remove_if_empty, run_folder, write_text
from utils.core.hyp import Hyp
from utils.core.known_data import data_of_classes
from utils.core.load_request import LoadRequest, SemanticRequest, evaluation_batch
from utils.core.log import LOGGER
from utils.core.segment_types import MergeSettings
from utils.core.val_settings import ValSettings
from utils.engine.evaluate import MANY_CLASSES, Report, evaluate, log_report
from utils.engine.run_outputs import BatchPlotter, write_results
from utils.engine.trainable_network import require_heads
from utils.metrics import EVALUATORS
from utils.ops.label_text import box_lines

_SPEED_CONFIDENCE, _SPEED_IOU = 0.25, 0.45  # thresholds of --task speed, those of prediction
_CPU_MASK_PX = 8 * 640**2  # pixels of a batch with instance masks on the CPU, where large batches are no faster
_FINE_MASK_PX = 2 * 640**2  # the same with label masks of the size of the network input


class OpenedModel(Protocol):
    """Model to validate: a runner and the metadata of its checkpoint."""

    @property
    def runner(self) -> Runner:
        """The network."""
        ...

    @property
    def name(self) -> str:
        """Stem of the weights file."""
        ...

    @property
    def meta(self) -> dict[str, Any]:
        """Training metadata of the checkpoint."""
        ...


OpenModel = Callable[[ValSettings, torch.device], OpenedModel]


def validate(select_task: SelectTask, settings: ValSettings, open_model: OpenModel) -> dict[str, float]:
    """Evaluate a checkpoint, or an ensemble, on one split. Works under torchrun.

    Args:
        select_task: Chooses the task from the names of the model's heads.
        settings: Options of the validation script.
        open_model: Opens the weights.

    Returns:
        Metrics by name.
    """
    device = select_device(settings.device)
    dist.start(device)
    task, model, data = open_model_and_data(select_task, settings, open_model, device)
    folder = results_folder(settings)
    try:
        report = evaluate_at_size(task, settings, model, data, device, folder, _image_size(settings, model))
        if dist.is_main():
            header = {
                "weights": list(settings.weights),
                "data": _data_name(task, settings, model),
                "task": settings.task,
            }
            write_results(folder / "results.json", report, header)
            LOGGER.info(f"results are in {folder}")
        return report.metrics
    finally:
        if dist.is_main():
            remove_if_empty(folder)  # after an error


def open_model_and_data(
    select_task: SelectTask, settings: ValSettings, open_model: OpenModel, device: torch.device
) -> tuple[Task, OpenedModel, DataConfig]:
    """Open the weights and the data set of a validation.

    Returns:
        The task of the model, the model and the data.

    Raises:
        UserError: If the model cannot be evaluated on the data.
    """
    model = open_model(settings, device)
    configure_gpu(device, fixed_sizes=model.runner.fixed_hw is not None, tf32=not settings.no_tf32)
    task = select_task(model.runner.specs)
    require_heads(task.name, set(task.heads), set(model.runner.specs), model.name)
    for head in model.runner.specs:
        if head not in EVALUATORS:
            known = ", ".join(EVALUATORS.names())
            raise UserError(f"{model.name}: evaluation of the head {head!r} is not supported (known: {known})")
    if settings.save_hybrid and any(spec.num_masks for spec in model.runner.specs.values()):
        raise UserError("--save-hybrid: not supported by segmentation models, whose labels have no mask coefficients")
    data = _load_data(task, settings, model)
    return task.for_data(task, data), model, data


def results_folder(settings: ValSettings) -> Path:
    """Create the folder of the results on the first rank; return its path on all."""
    return Path(dist.run_on_main(lambda: run_folder(Path(settings.project), settings.name, settings.exist_ok)))


def _data_name(task: Task, settings: ValSettings, model: OpenedModel) -> str:
    """Return the data YAML that the user named, now or for the training of the checkpoint."""
    return str(settings.data or model.meta.get("data") or task.data)


def _load_data(task: Task, settings: ValSettings, model: OpenedModel) -> DataConfig:
    """Load the data set and check its classes against those of the model."""
    text = _data_name(task, settings, model)
    data = load_data(text)
    if not settings.data and not model.meta.get("data") and not _has_classes(data, model):
        text = data_of_classes(model.name, model.runner.names)
        data = load_data(text)
        LOGGER.info(f"data: {text} (has the classes of {model.name}, which names no data set)")
    elif not settings.data:
        LOGGER.info(f"data: {text} (training data of {model.name})")
    if data.is_class_folders and set(data.names) <= set(model.runner.names):
        data = replace(data, names=tuple(model.runner.names))  # there may be no folder for some classes
    elif data.is_class_folders:
        LOGGER.warning(
            f"{data.source}: folder names differ from the classes of {model.name} ({data.names[0]}, "
            f"{model.runner.names[0]}, …); matching them by order"
        )
    data = data.single_class() if settings.single_cls else data
    if settings.segdata:
        data = replace(data, semantic=load_semantic_data(settings.segdata))
    for spec in model.runner.specs.values():
        _check_classes(data, model.name, spec, settings.single_cls)
    return data


def _has_classes(data: DataConfig, model: OpenedModel) -> bool:
    """Check whether a data set has as many classes as every head of a model."""
    known = [(data.names_for(spec.name), spec.num_classes) for spec in model.runner.specs.values()]
    return all(names is None or len(names) == count for names, count in known)


def _check_classes(data: DataConfig, name: str, spec: HeadSpec, single: bool) -> None:
    """Check the number of classes of a head; heads without labels are not evaluated."""
    names = data.names_for(spec.name)
    if names is None or len(names) == spec.num_classes or (single and names == data.names):
        return
    hint = ", or give --single-cls" if spec.num_classes == 1 else ""
    raise UserError(
        f"{data.source}: {len(names)} classes, but the {spec.name} head of {name} has {spec.num_classes}; validate it "
        f"on the data it was trained on{hint}"
    )


def _image_size(settings: ValSettings, model: OpenedModel) -> int:
    runner = model.runner
    if fixed := runner.fixed_hw:
        return _fixed_size(settings, model, fixed)
    default = max(spec.usual_px for spec in runner.specs.values())
    size = int(settings.imgsz[0] if settings.imgsz else model.meta.get("imgsz") or default)
    step = max(runner.stride, 32)
    rounded = math.ceil(size / step) * step
    if rounded != size:
        LOGGER.warning(f"--imgsz {size} is not a multiple of {step}; using {rounded}")
    return rounded


def _fixed_size(settings: ValSettings, model: OpenedModel, fixed_hw: tuple[int, int]) -> int:
    """Return the side of the square input of a model with a fixed size."""
    height, width = fixed_hw
    wanted = settings.imgsz[0] if settings.imgsz else height
    if (wanted, wanted) != (height, width):
        asked = "validation needs squares" if height != width else f"--imgsz asks for {wanted} x {wanted}"
        raise UserError(f"{model.name}: only takes {height} x {width} pixels, {asked}; export it with --dynamic")
    if any(spec.fit == "letterbox" for spec in model.runner.specs.values()):
        LOGGER.info(
            f"{model.name}: only takes {height} x {width} pixels, so images are padded to squares and scores differ "
            "from those of a checkpoint, which uses rectangles; files exported with --dynamic use rectangles too"
        )
    return height


def _open_loader(
    task: Task, settings: ValSettings, data: DataConfig, size: int, runner: Runner, device: torch.device
) -> Loader:
    speed = settings.task == "speed"
    square = speed or runner.fixed_hw is not None
    return task.load(
        LoadRequest(
            data=data,
            split="val" if speed else settings.task,
            training=False,
            image_size=size,
            batch_size=_batch_size(runner, settings, size, device),
            rect_group=settings.batch_size,
            stride=max(runner.stride, 32),
            hyp=Hyp(),
            workers=settings.workers,
            pin=device.type == "cuda",
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


def _batch_size(runner: Runner, settings: ValSettings, size: int, device: torch.device) -> int:
    """Choose the number of images per batch: fewer than asked for where batches of masks need too much memory."""
    classes = max((spec.num_classes for spec in runner.specs.values() if spec.strides), default=0)
    batch = evaluation_batch(settings.batch_size, size, classes)
    if settings.task == "speed" or not any(spec.num_masks for spec in runner.specs.values()):
        return batch
    if settings.save_json:
        return max(1, min(batch, _FINE_MASK_PX // size**2))
    return max(1, min(batch, _CPU_MASK_PX // size**2)) if device.type == "cpu" else batch


def _eval_settings(settings: ValSettings, data: DataConfig, name: str, folder: Path) -> EvalSettings:
    """Build the settings of post-processing and evaluators.

    Raises:
        UserError: If the COCO JSON does not exist.
    """
    speed = settings.task == "speed"
    annotations = data.annotations.get("val" if speed else settings.task)
    annotations = None if data.is_panoptic else annotations  # another kind of JSON
    annotations = Path(settings.annotations) if settings.annotations else annotations
    if annotations is not None and not annotations.is_file():
        raise UserError(f"{annotations}: no such COCO JSON")
    return EvalSettings(
        names=data.names,
        confidence=_SPEED_CONFIDENCE if speed else settings.conf_thres,
        iou=_SPEED_IOU if speed else settings.iou_thres,
        max_detections=settings.max_det,
        agnostic=settings.single_cls,
        single_class=settings.single_cls,
        fine_masks=settings.save_json,  # masks in the JSON have the original resolution
        native_masks=settings.save_json,
        annotations=annotations,
        merge=MergeSettings(settings.panoptic_conf, settings.panoptic_overlap, settings.min_stuff_area),
        absent_as_zero=settings.absent_as_zero,
        save_json=folder / f"{name}_predictions.json" if settings.save_json else None,
    )


def evaluate_at_size(
    task: Task,
    settings: ValSettings,
    model: OpenedModel,
    data: DataConfig,
    device: torch.device,
    folder: Path,
    size: int,
) -> Report:
    """Evaluate a model at one image size, log the results and write plots to `folder`."""
    eval_settings = _eval_settings(settings, data, model.name, folder)
    loader = _open_loader(task, settings, data, size, model.runner, device)
    plotter = BatchPlotter(task, folder, data, enabled=not settings.noplots)

    def on_batch(batch: Batch, results: list[Results]) -> None:
        if settings.save_txt or settings.save_hybrid:
            for result in results:
                _write_labels(result, folder / "labels", settings.save_conf)
        plotter(batch, results)

    modify_outputs = add_labels if settings.save_hybrid else None
    runner, semantic_runner = model.runner, _semantic_runner(model.runner, settings)
    if semantic_runner and any("panoptic" in part.heads for part in loader.parts):  # needs all heads at once
        runner, semantic_runner = SemanticOverride(model.runner, semantic_runner), None
    skip_heads = semantic_runner.specs if semantic_runner else ()
    report = evaluate(
        runner,
        loader,
        eval_settings,
        device,
        on_batch=on_batch,
        modify_outputs=modify_outputs,
        skip_heads=skip_heads,
    )
    if semantic_runner:
        report = report.merged(evaluate(semantic_runner, loader, eval_settings, device, on_batch=on_batch))
    verbose = data.num_classes < MANY_CLASSES if settings.verbose is None else settings.verbose
    log_report(report, (settings.batch_size, 3, size, size), verbose)
    if dist.is_main() and not settings.noplots and settings.task != "speed":
        list(task.draw_scores(report.scores, folder, data))
    return report


def _semantic_runner(runner: Runner, settings: ValSettings) -> Runner | None:
    """Wrap the runner for semantic segmentation at several scales, mirrored, or in a sliding window, if asked for."""
    wrapped = SlidingWindowRunner(runner, (settings.seg_window,) * 2) if settings.seg_window else None
    if settings.seg_scales or settings.seg_flip:
        return MultiScaleRunner(wrapped or runner, settings.seg_scales or (1.0,), settings.seg_flip)
    return wrapped


def _write_labels(result: Results, folder: Path, with_scores: bool) -> None:
    if result.boxes is None or result.classes is None:
        return
    scores = result.scores if with_scores else None
    lines = box_lines(result.boxes, result.classes, scores, result.info.geometry.original_hw)
    write_text(folder / f"{Path(result.info.path).stem}.txt", "".join(line + "\n" for line in lines))


def add_labels(outputs: Outputs, batch: Batch) -> None:
    """Append the labels to the decoded boxes as detections with score 1 (`--save-hybrid`).

    Args:
        outputs: Outputs with `predictions` of shape (B, N, 5 + C), changed in place.
        batch: Labels on the same device.
    """
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
