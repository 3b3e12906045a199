"""Options of the classification scripts, and their translation to those of the other scripts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
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
from utils.programs.val import DEFAULT_WEIGHTS, add_workers

CHECKPOINTS = {".pt", ".pth", ".safetensors"}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def class_training_parser(description: str | None) -> argparse.ArgumentParser:
    """Create the parser of a script that trains classifiers.

    Args:
        description: Module docstring of the script.
    """
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
    add_flag(add_output(parser), "--verbose", "print the accuracy of every class, however many there are")
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


def class_training_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Translate --model and --pretrained into --weights, --cfg and a boolean.

    Raises:
        UserError: If options contradict each other.
    """
    result = {name: value for name, value in options.items() if name not in ("model", "pretrained")}
    model = str(options.get("model") or "").strip()
    pretrained = str(options.get("pretrained", "True")).strip()
    if model:
        name = "weights" if Path(model).suffix in CHECKPOINTS else "cfg"
        if str(result.get(name) or "").strip():
            raise UserError(f"--model {model} and --{name} {result[name]}: exclude each other; give one of them")
        result[name] = model
    if pretrained.lower() in _BOOLEANS:
        return result | {"pretrained": _BOOLEANS[pretrained.lower()]}
    if Path(pretrained).suffix not in CHECKPOINTS:
        suffixes = " ".join(sorted(CHECKPOINTS))
        raise UserError(f"--pretrained {pretrained}: must be True, False or a file of weights ({suffixes})")
    if str(result.get("weights") or "").strip():
        raise UserError(f"--pretrained {pretrained}: excludes --weights {result['weights']}; give one of them")
    return result | {"weights": pretrained}


def class_val_parser(description: str | None) -> argparse.ArgumentParser:
    """Create the parser of a script that validates classifiers.

    Args:
        description: Module docstring of the script.
    """
    parser = new_parser(description)
    group = parser.add_argument_group("model")
    text = f"checkpoint; several form an ensemble ({DEFAULT_WEIGHTS})"
    group.add_argument("--weights", nargs="+", default=[], metavar="FILE", help=text)
    add_image_size(group, [], "inference size in pixels (default: from the checkpoint, else 224)")
    add_flag(group, "--augment", "average over the image and its mirror image")
    add_runtime(group, "use half precision on GPUs")
    group = parser.add_argument_group("data")
    text = "folder with val/<class>, or data-set YAML (default: from the checkpoint)"
    group.add_argument("--data", default="", metavar="PATH", help=text)
    group.add_argument("--task", choices=["train", "val", "test"], default="val", help="split to validate")
    group.add_argument("--batch-size", type=int, default=128, metavar="N", help="images per batch and process")
    add_download(group)
    group = parser.add_argument_group("output")
    add_run_folder(group, "runs/val-cls")
    text = "print the accuracy of every class; False: of all classes only"
    group.add_argument("--verbose", nargs="?", type=parse_boolean, const=True, default=True, metavar="BOOL", help=text)
    add_flag(group, "--noplots --no-plots", "draw no plots")
    group = parser.add_argument_group("hardware")
    add_device(group)
    add_workers(group)
    return parser


def parse_boolean(text: str) -> bool:
    """Parse a word such as True or no.

    Raises:
        ValueError: If it is neither true nor false.
    """
    if text.lower() not in _BOOLEANS:
        raise ValueError(text)
    return _BOOLEANS[text.lower()]
