"""The options of the classification scripts, and how they become what the other programs use."""

from __future__ import annotations

import argparse
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
)
from utils.core.errors import UserError
from utils.core.train_options import (
    add_batch_size,
    add_cache,
    add_freeze,
    add_hardware,
    add_label_smoothing,
    add_optimizer,
    add_output,
    add_patience,
    add_schedule,
    add_slimming,
)

CHECKPOINTS = {".pt", ".pth", ".safetensors"}
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def class_training_parser(description: str | None) -> argparse.ArgumentParser:
    """Create the parser of a program that trains classifiers."""
    parser = new_parser(description)
    _add_model(parser.add_argument_group("model"))
    group = parser.add_argument_group("data")
    text = "folder with train/<class> and val/<class>, or data-set YAML"
    group.add_argument("--data", default="data/shapes-cls.yaml", metavar="FILE", help=text)
    add_image_size(group, [224], "image size in pixels; a second number is the size for validation")
    add_cache(group)
    add_download(group, "official or published weights")
    _add_optimisation(parser.add_argument_group("optimisation"))
    add_schedule(parser.add_argument_group("learning-rate schedule"))
    add_output(parser)
    add_flag(parser, "--verbose", "print the accuracy of every class, however many there are")
    add_hardware(parser.add_argument_group("hardware and precision"))
    parser.set_defaults(project="runs/train-cls")
    return parser


def _add_model(group: Options) -> None:
    add = group.add_argument
    text = "checkpoint of a classifier or detector, or a name: yolov5s-cls, yolov5s, resnet50"
    add("--model", default="", metavar="NAME", help=f"{text} (default: from --cfg)")
    add("--weights", default="", metavar="FILE", help="initial checkpoint (default: none, train from scratch)")
    text = "model YAML or name (default: from the checkpoint, else yolov5n-cls)"
    add("--cfg", default="", metavar="FILE", help=text)
    text = "True: start from the weights of --model; False: from scratch; or a file of weights"
    add("--pretrained", nargs="?", const="True", default="True", metavar="VALUE", help=text)
    text = "number of layers of a detector that are retained, the last one replaced (default: 10)"
    add("--cutoff", type=int, default=None, metavar="N", help=text)
    text = "probability of all dropout layers (default: from the model)"
    add("--dropout", type=float, default=None, metavar="P", help=text)
    add_freeze(group)


def _add_optimisation(group: Options) -> None:
    add = group.add_argument
    add("--epochs", type=int, default=10, metavar="N", help="number of training epochs")
    add_batch_size(group, 64)
    add("--hyp", default="hyp.classify.yaml", metavar="FILE", help="hyperparameter YAML")
    add_optimizer(group, "Adam")
    add("--lr0", type=float, default=None, metavar="LR", help="initial learning rate (default: from --hyp, 0.001)")
    add("--decay", type=float, default=None, metavar="W", help="weight decay (default: from --hyp, 0.00005)")
    add_label_smoothing(group)
    add_slimming(group)
    add_patience(group)


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
