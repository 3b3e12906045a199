"""What the validation scripts share: their options, and how they become a scoring."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from utils.core.cli import (
    add_device,
    add_download,
    add_image_size,
    add_run_folder,
    add_runtime,
    new_parser,
    to_namespace,
)
from utils.core.train_options import add_semantic_size
from utils.core.train_settings import ScoreSettings
from utils.datasets.fetch.dataset_download import resolve_dataset


def scoring_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return the options that every validation script has; `defaults` replaces their defaults."""
    parser = new_parser(description)
    add = parser.add_argument
    add(
        "--weights", nargs="+", default=[], help="checkpoints; several form an ensemble; none: the newest run's best.pt"
    )
    add("--data", default="", help="data-set YAML; empty: the one the checkpoint was trained on")
    add("--batch-size", type=int, default=32, help="images per step in each process")
    add_image_size(parser, [], "image size in pixels; empty: the one the checkpoint was trained with, else 640")
    add("--conf-thres", type=float, default=0.001, help="least confidence of a detection")
    add("--iou-thres", type=float, default=0.6, help="IoU above which suppression drops the lesser box")
    add("--max-det", type=int, default=300, help="most detections per image")
    add(
        "--task",
        choices=["train", "val", "test", "speed", "study"],
        default="val",
        help="the split to score, or a mode",
    )
    add("--single-cls", action="store_true", help="treat all objects as one class")
    add("--augment", action="store_true", help="test-time augmentation: three scales, one flip")
    add("--verbose", action="store_true", default=None, help="print every class also when there are many")
    add("--save-txt", action="store_true", help="write one label file per image")
    add(
        "--save-hybrid",
        action="store_true",
        help="write labels and detections joined (raises the scores); for labelling",
    )
    add("--save-conf", action="store_true", help="add the confidence to the label files")
    add("--save-json", action="store_true", help="write COCO-format predictions")
    add("--annotations", default="", help="COCO JSON to score against; empty: the data YAML's, else the labels")
    add_runtime(parser, "half precision (GPUs)")
    add("--workers", type=int, default=8, help="data-loading processes per process, at most one a core")
    add("--noplots", action="store_true", help="draw no pictures")
    _add_semantic(parser)
    add("--allow-label-faults", action="store_true", help="go on when more than 1 %% of the label files are faulty")
    add_device(parser)
    add_run_folder(parser, "runs/val")
    add_download(parser, "official weights, and data that the YAML has addresses of,")
    parser.set_defaults(**defaults)
    return parser


def _add_semantic(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("classes of pixels").add_argument
    add("--segdata", default="", help="data-set YAML or folder whose pixel labels are taken instead of those of --data")
    add_semantic_size(parser)
    add("--seg-scales", nargs="+", type=float, default=[], help="average over these sizes, as factors (0.75 1 1.25)")
    add("--seg-flip", action="store_true", help="average with the mirrored image")
    add("--seg-window", type=int, default=0, metavar="PX", help="slide a window of this size over the image; 0: whole")
    add("--absent-as-zero", action="store_true", help="classes that occur nowhere count as 0 in the mean IoU")


def score_task(task: str, parser: argparse.ArgumentParser, chosen: dict[str, Any], runs: str) -> dict[str, float]:
    """Score as the options `chosen` by name say, the others as `parser` has them; return the numbers.

    Without weights it is the newest training below `runs` that is scored.
    """
    settings = ScoreSettings.from_dict(vars(to_namespace(parser, chosen)))

    if settings.data:
        resolve_dataset(settings.data, settings.download)

    from utils.backends.open_weights import open_model  # torch is loaded here, so that --help answers at once
    from utils.engine.image_size_study import study
    from utils.engine.validate import score
    from utils.plots.size_study import draw_study
    from utils.tasks.task_selection import task_of

    choose, opener = partial(task_of, task), partial(open_model, runs=Path(runs))
    if settings.task == "study":
        return study(choose, settings, opener, draw_study)
    return score(choose, settings, opener)
