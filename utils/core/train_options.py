"""Options of the training programs, and how they become `TrainSettings`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.core.cli import (
    Options,
    add_alias,
    add_compile,
    add_device,
    add_download,
    add_flag,
    add_image_size,
    add_no_tf32,
    add_run_folder,
    new_parser,
)
from utils.core.errors import UserError, did_you_mean
from utils.core.log import LOGGER
from utils.core.registry import registered_names
from utils.core.train_settings import MINDSPORE_SCHEDULES, PRECISIONS, SEG_MODES, TrainSettings

_SEMANTIC_PREFIX = "segmask"  # of the registered names of semantic heads


def training_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Create the parser of a program that trains networks with boxes.

    Args:
        description: Usually the module docstring of the program.
        **defaults: Defaults that differ from `TrainSettings`.
    """
    parser = new_parser(description)
    _add_model(parser.add_argument_group("model"))
    _add_data(parser.add_argument_group("data"))
    _add_optimisation(parser.add_argument_group("optimisation"))
    add_schedule(parser.add_argument_group("learning-rate schedule"))
    _add_augmentation(parser.add_argument_group("augmentation"))
    _add_semantic(parser.add_argument_group("semantic segmentation"))
    add_output(parser)
    add_hardware(parser.add_argument_group("hardware and precision"))
    parser.set_defaults(**defaults)
    return parser


def _add_model(group: Options) -> None:
    add = group.add_argument
    add("--weights", default="", metavar="FILE", help="initial checkpoint (default: none, train from scratch)")
    add(
        "--cfg", default="", metavar="FILE",
        help="model YAML or name such as yolov5s (default: from the checkpoint, else the smallest network of the task)",
    )  # fmt: skip
    add_freeze(group)
    add_flag(group, "--noautoanchor", "do not fit the anchors to the labels")
    text = "checkpoint of a trained teacher of the same family, whose outputs the network also learns"
    add("--distill", default="", metavar="FILE", help=text)
    add_flag(group, "--end-to-end", "also train a filter of duplicates that replaces NMS (anchor-free families)")


def add_freeze(group: Options) -> None:
    """Add --freeze and --freeze-bn."""
    text = "frozen layers: one number n for layers 0 to n-1, several for exactly those"
    group.add_argument("--freeze", nargs="+", type=int, default=[0], metavar="N", help=text)
    add_flag(group, "--freeze-bn", "freeze the running statistics of BatchNorm")


def _add_data(group: Options) -> None:
    add = group.add_argument
    add("--data", default="data/shapes.yaml", metavar="FILE", help="data-set YAML or folder")
    add_image_size(group, [640], "image size in pixels; a second number is the size for validation")
    add_flag(group, "--single-cls", "treat all objects as one class")
    add_flag(group, "--rect", "train on rectangular batches of similar aspect ratio, without mosaic")
    add_flag(group, "--image-weights", "sample images by class frequency and current AP")
    add_cache(group)
    add_alias(group, "--cache-images", "cache", "ram", "same as --cache ram")
    add_flag(group, "--allow-label-faults", "continue when more than 1 %% of the label files are faulty")
    add_download(group, "official weights, and data with addresses in the YAML,")


def add_cache(group: Options) -> None:
    """Add --cache."""
    text = "cache of decoded images (ram without a value; val: in memory, validation only) (default: none)"
    group.add_argument("--cache", nargs="?", const="ram", choices=["ram", "disk", "val"], help=text)


def _add_optimisation(group: Options) -> None:
    add = group.add_argument
    add("--epochs", type=int, default=100, metavar="N", help="number of training epochs")
    add_batch_size(group, 16)
    add("--hyp", default="hyp.scratch-low.yaml", metavar="FILE", help="hyperparameter YAML")
    add_optimizer(group, "SGD")
    add_alias(group, "--adam", "optimizer", "Adam", "same as --optimizer Adam")
    add_label_smoothing(group)
    add_flag(group, "--autobalance", "balance the objectness loss between feature levels during training")
    add(
        "--slimming",
        type=float,
        default=0.0,
        metavar="W",
        help="weight of an L1 penalty on BatchNorm scales, e.g. 1e-4",
    )
    add_patience(group)
    text = "weights of the scores in the fitness that ranks epochs (default: those of the task)"
    add("--fitness", nargs="+", type=float, default=[], metavar="WEIGHT", help=text)


def add_batch_size(group: Options, default: int) -> None:
    """Add --batch-size, which may depend on the memory of the device."""
    text = "images per step over all processes; -1: chosen for the device; 0.6: fills 60 %% of its free memory"
    group.add_argument("--batch-size", type=batch_size, default=default, metavar="N", help=text)


def batch_size(text: str) -> float:
    """Parse --batch-size, as an int if the number is whole."""
    number = float(text)
    return int(number) if number == int(number) else number


def add_optimizer(group: Options, default: str) -> None:
    """Add --optimizer."""
    names = ", ".join(registered_names("utils.engine.optimizers"))
    group.add_argument("--optimizer", default=default, metavar="NAME", help=f"optimizer: {names}")


def add_label_smoothing(group: Options) -> None:
    """Add --label-smoothing."""
    text = "label-smoothing epsilon, 0 to below 1 (default: from --hyp)"
    group.add_argument("--label-smoothing", type=float, default=None, metavar="EPS", help=text)


def add_slimming(group: Options) -> None:
    """Add --slimming."""
    text = "weight of an L1 penalty on BatchNorm scales, such as 1e-4"
    group.add_argument("--slimming", type=float, default=0.0, metavar="W", help=text)


def add_patience(group: Options) -> None:
    """Add --recipe and --patience."""
    text = "auto: optimizer, rates, batch, EMA, mosaic and class weights that fit the data (default: as in YOLOv5)"
    group.add_argument("--recipe", default="", choices=["", "auto"], metavar="NAME", help=text)
    text = "epochs without improvement before training stops; 0: never"
    group.add_argument("--patience", type=int, default=100, metavar="N", help=text)


def add_schedule(group: Options) -> None:
    """Add the learning-rate schedule, and the rates of single layers."""
    add = group.add_argument
    names = ", ".join(registered_names("utils.engine.schedules"))
    add("--schedule", default="", metavar="NAME", help=f"schedule: {names} (default: linear)")
    add_flag(group, "--cos-lr", "same as --schedule cosine")
    add_alias(group, "--linear-lr", "cos_lr", False, "linear schedule, the default")
    add(
        "--lr_scheduler", dest="schedule", action=_MindSporeName, default=argparse.SUPPRESS, metavar="NAME",
        help="schedule by its MindSpore name, where exponential means multi-step",
    )  # fmt: skip
    text = "epochs at which multi-step lowers the rate (default: at 220/300 and 250/300 of --epochs)"
    add("--lr-epochs", nargs="+", type=int, default=[], metavar="N", help=text)
    add(
        "--lr_epochs", dest="lr_epochs", type=_comma_list, default=argparse.SUPPRESS, metavar="N,N",
        help="same as --lr-epochs, separated by commas",
    )  # fmt: skip
    add("--lr-gamma", "--lr_gamma", type=float, default=0.1, metavar="F", help="factor of multi-step")
    add("--lr-cycles", type=int, default=3, metavar="N", help="number of cycles of cosine-restarts")
    add("--lr-power", type=float, default=0.9, metavar="P", help="exponent of polynomial")
    text = "ratio between the learning rates of consecutive layers; 1: equal rates"
    add("--layer-decay", type=float, default=1.0, metavar="F", help=text)
    text = "epochs in which the learning rate of the backbone rises from 0"
    add("--backbone-warmup", type=float, default=0.0, metavar="N", help=text)


def _add_augmentation(group: Options) -> None:
    add = group.add_argument
    add(
        "--multi-scale", nargs="*", type=int, action=_FlagOrSizes, default=False, metavar="PX",
        help="random image size per batch: 0.5 to 1.5 times --imgsz, or one of the given sizes (default: off)",
    )  # fmt: skip
    text = "consecutive batches with the same random image size"
    add("--resize-rate", "--resize_rate", type=int, default=1, metavar="N", help=text)
    text = "neighbours in the order of the epoch from which mosaic partners are drawn; 0: the whole data set"
    add("--mosaic-window", type=int, default=64, metavar="N", help=text)
    add_flag(group, "--quad", "join four images into one of twice the size")


def _add_semantic(group: Options) -> None:
    add = group.add_argument
    heads = registered_names("models.heads")
    designs = [name.removeprefix(_SEMANTIC_PREFIX) for name in heads if name.startswith(_SEMANTIC_PREFIX)]
    text = f"semantic head to add: {', '.join(designs)} (default: none)"
    add("--semantic", default="", choices=["", *designs], metavar="DESIGN", help=text)
    add_semantic_size(group)
    text = "fraction of each batch with semantic labels, when boxes and semantic maps come from two data sets"
    add("--seg-share", type=float, default=0.5, metavar="F", help=text)
    add_flag(group, "--seg-mosaic", "train both on mosaics, when boxes and semantic maps have the same images")
    text = "epochs between validations of the semantic head beside boxes; every epoch in the last 39"
    add("--seg-interval", type=int, default=10, metavar="N", help=text)


def add_semantic_size(group: Options) -> None:
    """Add the options for the image size of semantic validation."""
    text = "long side of images with semantic labels in pixels (default: --imgsz)"
    group.add_argument("--base-size", type=int, default=0, metavar="PX", help=text)
    text = "validation images: whole at --base-size, native at the size of the file, or a centre crop"
    group.add_argument("--seg-mode", default="whole", choices=SEG_MODES, help=text)


def add_output(parser: argparse.ArgumentParser) -> Options:
    """Add the options for the run folder, checkpoints, loggers and validation; return the group of validation."""
    group = parser.add_argument_group("output")
    add = group.add_argument
    add_run_folder(group, "runs/train")
    text = "last.pt or run to resume; without a value the newest run below --project (default: none)"
    add("--resume", nargs="?", const="newest", default="", metavar="PATH", help=text)
    add_flag(group, "--nosave --no-save", "save only the final checkpoint")
    text = "epochs between checkpoints that are not overwritten; below 1: off"
    add("--save-period", "--save_period", "--save_ckpt_interval", type=int, default=-1, metavar="N", help=text)
    text = "number of newest checkpoints of --save-period to retain; 0: all"
    add("--save-keep", "--save_ckpt_max_num", type=int, default=0, metavar="N", help=text)
    add("--save-steps", type=int, default=1000, metavar="N", help="steps between additional writes of last.pt; 0: off")
    add_flag(group, "--noplots --no-plots", "draw no plots")
    add_flag(group, "--profile", "measure the phases of training: a table, and a trace of a few steps")
    add = parser.add_argument_group("loggers").add_argument
    names = [name for name in registered_names("utils.loggers") if name != "csv"]  # results.csv is always written
    add("--log", nargs="+", default=[], metavar="NAME", help=f"additional loggers: {', '.join(names)}")
    add("--entity", default=None, help="W&B entity (default: from the W&B account)")
    text = "epochs between plots of predictions on validation images, also logged; below 1: off"
    add("--picture-interval", "--bbox_interval", type=int, default=-1, metavar="N", help=text)
    group = parser.add_argument_group("validation")
    add = group.add_argument
    add_flag(group, "--noval --no-val --notest", "validate only after the last epoch")
    add("--val-start", "--eval_start_epoch", type=int, default=1, metavar="N", help="first epoch that is validated")
    text = "epochs between validations; the last epoch is always validated"
    add("--val-interval", "--eval_epoch_interval", type=int, default=1, metavar="N", help=text)
    return group


def add_hardware(group: Options) -> None:
    """Add the device, precision, processes and seed of a training."""
    add = group.add_argument
    add_device(group)
    text = "data-loading processes per training process, at most one per core"
    add("--workers", type=int, default=8, metavar="N", help=text)
    text = "precision; auto: mixed precision where the device supports it in hardware"
    add("--amp", choices=PRECISIONS, default="auto", help=text)
    add("--seed", type=int, default=0, metavar="N", help="seed of all random numbers")
    add_compile(group)
    add_flag(group, "--deterministic", "use deterministic GPU operations: exact repetition and resuming, but slower")
    add_no_tf32(group)
    add_flag(group, "--checkpointing", "recompute activations in the backward pass to save memory")
    add_flag(group, "--sync-bn", "synchronise BatchNorm statistics between GPUs")
    for old in ("--bbox_iou_optim", "--multi_tensor_optimizer"):
        add_flag(group, old, "no effect: an optimisation of One-YOLOv5 that is always on")
    add("--lr", action=_LearningRate, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)  # passed by launchers


class _FlagOrSizes(argparse.Action):
    """Store True for an option without values, otherwise its values."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values or True)


class _LearningRate(argparse.Action):
    """Refuse --lr of multiyolov5 and others, which would count as an ambiguous abbreviation."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        raise UserError(
            f"--lr {values}: no such option; set `lr0: {values}` in a copy of a hyperparameter file and name it with "
            "--hyp; see docs/coming-from-yolov5.md"
        )


class _MindSporeName(argparse.Action):
    """Translate MindSpore's name of a schedule."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if values not in MINDSPORE_SCHEDULES:
            raise argparse.ArgumentError(self, f"{values!r}: choose from {', '.join(MINDSPORE_SCHEDULES)}")
        setattr(namespace, self.dest, MINDSPORE_SCHEDULES[values])


def _comma_list(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected epochs separated by commas like 220,250, got {text!r}") from error


# ----------------------------------------------------------------------------------------------------------------------
# From options to settings


def resolve_training(
    parser: argparse.ArgumentParser, chosen: dict[str, Any], recommended: dict[str, Any], source: Path
) -> tuple[TrainSettings, dict[str, str]]:
    """Merge defaults, the recommendation of the data set and explicit options, the later over the earlier.

    A recommendation is ignored if the user chose weights, a model or hyperparameters: someone who fine-tunes a
    network expects the usual schedule.

    Args:
        parser: The parser of the training program.
        chosen: Explicit options by destination name.
        recommended: The `defaults:` of the data-set YAML.
        source: The data-set YAML, for messages.

    Returns:
        The settings, and for each of them where its value comes from.

    Raises:
        UserError: If a recommended option is unknown or has an invalid value, or if a setting is out of range.
    """
    values = vars(parser.parse_args([]))
    origin = dict.fromkeys(values, "default")
    if unknown := sorted(recommended.keys() - values.keys()):
        raise UserError(f"{source}: unknown key {unknown[0]!r} in `defaults:`{did_you_mean(unknown[0], values)}")
    actions = {action.dest: action for action in reversed(parser._actions)}  # of several with one name, the first
    recommended = {name: _checked_recommendation(actions[name], value, source) for name, value in recommended.items()}
    own = {"weights", "cfg", "hyp"} & {name for name, value in chosen.items() if str(value).strip()}
    if not own:
        values |= recommended
        origin |= dict.fromkeys(recommended, str(source))
    elif unused := ", ".join(f"{name}={value}" for name, value in recommended.items() if name not in chosen):
        LOGGER.info(f"--{min(own)} is given, so the defaults of {source} are not used: {unused}")
    for one, other in (("schedule", "cos_lr"), ("cos_lr", "schedule")):  # two options for the same setting
        if one in chosen and other not in chosen:
            values[other] = parser.get_default(other)
    values |= chosen | {"explicit": sorted(chosen)}
    origin |= dict.fromkeys(chosen, "command line")
    values |= {name: str(values[name] or "").strip() for name in ("weights", "cfg")}
    if not isinstance(values["imgsz"], (list, tuple)):
        values["imgsz"] = [values["imgsz"]]
    settings = TrainSettings.from_dict(values)
    return settings, {name: place for name, place in origin.items() if name in settings.to_dict()}


def _checked_recommendation(action: argparse.Action, value: Any, source: Path) -> Any:
    """Convert a value of `defaults:` to the type that the option would give it."""
    several = isinstance(action.nargs, str) and action.nargs in "+*" and not isinstance(value, bool)
    values = value if several and isinstance(value, list) else [value]
    if action.nargs == 0 or (isinstance(action, _FlagOrSizes) and not several):
        valid = isinstance(value, bool)
    else:
        kinds: Any = {int: int, float: (int, float), batch_size: (int, float)}.get(action.type, str)
        valid = all(isinstance(one, kinds) and not isinstance(one, bool) for one in values)
        valid = valid and (action.choices is None or all(one in action.choices for one in values))
    if not valid:
        option = action.option_strings[0]
        raise UserError(f"{source}: `defaults:` sets `{action.dest}: {value}`, which is not a value of {option}")
    return list(values) if several else value


def format_origins(settings: TrainSettings, origin: Mapping[str, str]) -> str:
    """Format the settings by origin: command line, data-set YAML, and the most important defaults."""
    lines: dict[str, list[str]] = {}
    for name, value in settings.to_dict().items():
        if origin.get(name, "default") != "default":
            lines.setdefault(origin[name], []).append(f"{name}={value}")
    shown = [f"  from {source}: {', '.join(values)}" for source, values in lines.items()]
    main = ("data", "epochs", "batch_size", "imgsz", "optimizer", "hyp")
    defaults = ", ".join(f"{name}={settings.to_dict()[name]}" for name in main if origin.get(name) == "default")
    return "\n".join(["settings", *shown, *([f"  defaults: {defaults}"] if defaults else [])])
