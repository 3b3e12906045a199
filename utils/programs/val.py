"""Options and entry point of the validation scripts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from utils.core.cli import (
    Options,
    add_device,
    add_download,
    add_flag,
    add_image_size,
    add_run_folder,
    add_runtime,
    new_parser,
    to_namespace,
)
from utils.core.train_options import add_semantic_size
from utils.core.val_settings import ValSettings
from utils.datasets.fetch.dataset_download import resolve_dataset

DEFAULT_WEIGHTS = "default: best.pt of the newest run"


def val_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Create the parser of a script that validates networks with boxes.

    Args:
        description: Module docstring of the script.
        **defaults: Defaults that differ from `ValSettings`.
    """
    parser = new_parser(description)
    group = parser.add_argument_group("model")
    text = f"checkpoint or exported file; several form an ensemble ({DEFAULT_WEIGHTS})"
    group.add_argument("--weights", nargs="+", default=[], metavar="FILE", help=text)
    add_image_size(group, [], "inference size in pixels (default: from the checkpoint, else 640)")
    add_flag(group, "--augment", "test-time augmentation: three scales, one of them flipped")
    add_flag(group, "--end-to-end", "use the duplicate filter of an anchor-free model instead of NMS")
    add_runtime(group, "use half precision on GPUs")
    _add_data(parser.add_argument_group("data"))
    _add_evaluation(parser.add_argument_group("evaluation"))
    _add_semantic(parser.add_argument_group("semantic segmentation"))
    _add_output(parser.add_argument_group("output"))
    group = parser.add_argument_group("hardware")
    add_device(group)
    add_workers(group)
    parser.set_defaults(**defaults)
    return parser


def add_workers(group: Options) -> None:
    """Add --workers."""
    text = "data-loading processes per rank, at most one per CPU core"
    group.add_argument("--workers", type=int, default=8, metavar="N", help=text)


def _add_data(group: Options) -> None:
    add = group.add_argument
    add("--data", default="", metavar="FILE", help="data-set YAML (default: from the checkpoint)")
    text = "split to validate; or speed: measure time, study: accuracy and speed over image sizes"
    add("--task", choices=["train", "val", "test", "speed", "study"], default="val", help=text)
    add("--batch-size", type=int, default=32, metavar="N", help="images per batch and process")
    add_flag(group, "--single-cls", "treat all classes as one")
    add_flag(group, "--allow-label-faults", "continue when more than 1 %% of the label files are faulty")
    text = "COCO JSON with the ground truth (default: from the data YAML, else the label files)"
    add("--annotations", default="", metavar="FILE", help=text)
    add_download(group, "official weights, and data whose YAML has URLs,")


def _add_evaluation(group: Options) -> None:
    add = group.add_argument
    add("--conf-thres", type=float, default=0.001, metavar="P", help="minimum confidence of detections")
    text = "IoU threshold of NMS; of two boxes that overlap more, the lower-scoring one is removed"
    add("--iou-thres", type=float, default=0.6, metavar="IOU", help=text)
    add("--max-det", type=int, default=300, metavar="N", help="maximum number of detections per image")


def _add_semantic(group: Options) -> None:
    add = group.add_argument
    text = "data-set YAML or folder with semantic labels (default: --data)"
    add("--segdata", default="", metavar="PATH", help=text)
    add_semantic_size(group)
    text = "average over these scales, such as 0.75 1 1.25 (default: one scale)"
    add("--seg-scales", nargs="+", type=float, default=[], metavar="F", help=text)
    add_flag(group, "--seg-flip", "average with the mirrored image")
    add("--seg-window", type=int, default=0, metavar="PX", help="side of a sliding window; 0: whole images")
    add_flag(group, "--absent-as-zero", "count classes absent from the data set as 0 in the mean IoU")


def _add_output(group: Options) -> None:
    add_run_folder(group, "runs/val")
    group.add_argument(
        "--verbose", action="store_true", default=None, help="print a row per class (default: below 50 classes)"
    )
    add_flag(group, "--save-txt", "write a label file per image")
    add_flag(group, "--save-hybrid", "write label files with labels and detections; raises the metrics")
    add_flag(group, "--save-conf", "write confidences to the label files")
    add_flag(group, "--save-json", "write COCO-format predictions")
    add_flag(group, "--noplots --no-plots", "draw no plots")


def validate_task(
    task: str, parser: argparse.ArgumentParser, options: Mapping[str, Any], runs: str
) -> dict[str, float]:
    """Validate a checkpoint.

    Args:
        task: Name of the task of the script.
        parser: Parser of the script, for the defaults.
        options: Explicit options by name.
        runs: Folder of training runs; without `weights` the newest one is validated.

    Returns:
        Metrics by name.
    """
    settings = ValSettings.from_dict(vars(to_namespace(parser, dict(options))))
    if settings.data:
        resolve_dataset(settings.data, settings.download)

    from utils.backends.open_weights import open_model  # loads torch, which --help does not need
    from utils.engine.image_size_study import study_image_sizes
    from utils.engine.validate import validate
    from utils.plots.size_study import draw_study
    from utils.tasks.task_selection import select_task

    select, opener = partial(select_task, task), partial(open_model, runs=Path(runs))
    if settings.task == "study":
        return study_image_sizes(select, settings, opener, draw_study)
    return validate(select, settings, opener)
