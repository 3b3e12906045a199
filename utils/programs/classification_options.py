"""The options of the classification scripts, and how they become what the other programs use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from utils.core.cli import (
    add_batch_size,
    add_device,
    add_download,
    add_image_size,
    add_optimizer,
    add_regime,
    add_run_folder,
    add_running,
    add_runtime,
    new_parser,
    switches,
)
from utils.core.errors import UserError

CHECKPOINTS = {".pt", ".pth", ".safetensors"}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def class_training_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of a script that trains classifiers (cli.md 2.10, and what all training scripts have)."""
    parser = new_parser(description)
    group = parser.add_argument_group("model and data")
    add, switch = group.add_argument, switches(group)
    add("--model", default="", help="checkpoint of a classifier or detector, or a name: yolov5s-cls, yolov5s, resnet50")
    add("--weights", default="", help="checkpoint to start from; empty: from scratch")
    add("--cfg", default="", help="model YAML or name; empty: the checkpoint's own, else yolov5n-cls")
    add("--pretrained", nargs="?", const="True", default="True", help="False: take no weights over; or a file of them")
    add("--cutoff", type=int, default=None, help="rows of a detector that are kept, the last one replaced; empty: 10")
    add("--dropout", type=float, default=None, help="probability of all dropout layers; empty: the model's own")
    add("--data", default="data/shapes-cls.yaml", help="folder with train/<class> and val/<class>, or a data-set YAML")
    add("--hyp", default="hyp.classify.yaml", help="hyper-parameter YAML")
    add_image_size(group, [224], "image size in pixels; a second number is the size for validation")  # type: ignore[arg-type]
    add("--cache", nargs="?", const="ram", choices=["ram", "disk", "val"], help="keep decoded images in ram or on disk")
    switch("--download", "fetch official or published weights that are not on disk")
    group = parser.add_argument_group("schedule")
    add, switch = group.add_argument, switches(group)
    add("--epochs", type=int, default=10, help="passes over the training images")
    add_batch_size(group, 64)
    add_optimizer(group, "Adam")
    add("--lr0", type=float, default=None, help="learning rate at the start; empty: the hyp file's (0.001)")
    add("--decay", type=float, default=None, help="weight decay; empty: the hyp file's (0.00005)")
    add("--label-smoothing", type=float, default=None, help="label smoothing epsilon; empty: the hyp file's (0.1)")
    add("--patience", type=int, default=100, help="epochs without a better result before stopping; 0: never stop")
    add("--freeze", nargs="+", type=int, default=[0], help="one number n: layers 0 to n-1; several: exactly those")
    switch("--freeze-bn", "keep BatchNorm statistics as they are")
    add_regime(parser)
    add_running(parser)
    parser.add_argument("--verbose", action="store_true", help="print every class also when there are many")
    parser.set_defaults(project="runs/train-cls")
    return parser


def class_training_options(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the `chosen` options with --model and --pretrained put as --weights, --cfg and a yes or no."""
    options = {name: value for name, value in chosen.items() if name not in ("model", "pretrained")}
    model = str(chosen.get("model") or "").strip()
    pretrained = str(chosen.get("pretrained", "True")).strip()
    if model:
        name = "weights" if Path(model).suffix in CHECKPOINTS else "cfg"
        if str(options.get(name) or "").strip():
            raise UserError(f"--model {model} and --{name} {options[name]}: give one of them")
        options[name] = model
    if pretrained.lower() in _WORDS:
        return options | {"pretrained": _WORDS[pretrained.lower()]}
    if Path(pretrained).suffix not in CHECKPOINTS:
        raise UserError(
            f"--pretrained {pretrained}: True, False or a file of weights ({' '.join(sorted(CHECKPOINTS))})"
        )
    if str(options.get("weights") or "").strip():
        raise UserError(f"--pretrained {pretrained}: the weights come from {options['weights']} already")
    return options | {"weights": pretrained}


def class_scoring_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of a script that scores classifiers (cli.md 2.11)."""
    parser = new_parser(description)
    add = parser.add_argument
    add(
        "--weights", nargs="+", default=[], help="checkpoints; several form an ensemble; none: the newest run's best.pt"
    )
    add("--data", default="", help="folder with val/<class>, or a data-set YAML; empty: the checkpoint's own")
    add("--batch-size", type=int, default=128, help="images per step in each process")
    add_image_size(parser, [], "image size in pixels; empty: the one the checkpoint was trained with, else 224")
    add("--task", choices=["train", "val", "test"], default="val", help="the split to score")
    add("--verbose", nargs="?", type=yes_or_no, const=True, default=True, help="print the accuracy of every class")
    add("--augment", action="store_true", help="average over the image and its mirror image")
    add_runtime(parser, "half precision (GPUs)")
    add("--workers", type=int, default=8, help="data-loading processes per process, at most one a core")
    add("--noplots", action="store_true", help="draw no pictures")
    add_device(parser)
    add_run_folder(parser, "runs/val-cls")
    add_download(parser)
    return parser


def yes_or_no(text: str) -> bool:
    """Return what a word like True or no means; any other raises ValueError."""
    if text.lower() not in _WORDS:
        raise ValueError(text)
    return _WORDS[text.lower()]
