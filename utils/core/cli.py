"""Option groups that scripts share, and the frame around every script."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.core import distributed as dist
from utils.core.errors import UserError
from utils.core.log import LOGGER, set_up_console
from utils.core.train_settings import (
    DESIGNS,
    MINDSPORE_SCHEDULES,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    SEG_MODES,
    SERVICES,
    TrainSettings,
)

_MISSING = object()
_USERS_FAULT = {errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EMFILE, errno.ENAMETOOLONG}


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the description's lines and show defaults, but not the empty ones."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", False, [], ()) or action.help is argparse.SUPPRESS:
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Report a wrong command line like everything else the user can put right."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def new_parser(description: str | None) -> argparse.ArgumentParser:
    """Return an empty parser with the house's layout; abbreviations of options are accepted.

    What it cannot understand raises UserError.
    """
    return _Parser(description=description, formatter_class=_Help)


def add_subparser(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    """Return the parser of a command, with the house's layout; `commands` is what `add_subparsers` returned."""
    added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
    return added


def add_image_size(parser: argparse.ArgumentParser, default: Sequence[int], text: str) -> None:
    """Add --imgsz with its old names; one or two numbers."""
    parser.add_argument("--imgsz", "--img", "--img-size", nargs="+", type=int, default=default, metavar="PX", help=text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device", default="", help="cpu, mps, a GPU number or a list of them; empty: first GPU or CPU"
    )


def add_runtime(parser: argparse.ArgumentParser, half: str) -> None:
    """Add how `--weights` are computed with."""
    parser.add_argument("--half", action="store_true", help=half)
    parser.add_argument("--dnn", action="store_true", help="run .onnx files by OpenCV instead of onnxruntime")


def add_run_folder(parser: argparse.ArgumentParser, project: str) -> None:
    """Add where results go."""
    parser.add_argument("--project", default=project, help="folder of the runs")
    parser.add_argument("--name", default="exp", help="name of this run; a number is added when it exists")
    parser.add_argument("--exist-ok", action="store_true", help="write into the run folder even when it exists")


def add_download(parser: argparse.ArgumentParser, what: str = "official weights") -> None:
    """Add --download, the only option that lets a script use the network for weights and data."""
    parser.add_argument("--download", action="store_true", help=f"fetch {what} that are not on disk")


def training_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return the options that every training script has; `defaults` replaces their defaults."""
    parser = new_parser(description)
    _add_model_and_data(parser)
    _add_semantic(parser)
    _add_schedule(parser)
    add_regime(parser)
    add_running(parser)
    parser.set_defaults(**defaults)
    return parser


def _add_model_and_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and data")
    add, switch, alias = group.add_argument, switches(group), aliases(group)
    add("--weights", default="", help="checkpoint to start from; empty: from scratch")
    add("--cfg", default="", help="model YAML or name (yolov5n.yaml); empty: the checkpoint's own, else the smallest")
    add("--data", default="data/shapes.yaml", help="data-set YAML")
    add("--hyp", default="hyp.scratch-low.yaml", help="hyper-parameter YAML")
    add_image_size(group, [640], "image size in pixels; a second number is the size for validation")  # type: ignore[arg-type]
    switch("--rect", "rectangular batches sorted by shape, without mosaic")
    switch("--quad", "join four images into one of twice the size")
    switch("--single-cls", "treat all objects as one class")
    switch("--image-weights", "draw images by class weight and current accuracy")
    add("--cache", nargs="?", const="ram", choices=["ram", "disk", "val"], help="keep decoded images in ram or on disk")
    alias("--cache-images", "cache", "ram", "the same as --cache ram")
    add("--mosaic-window", type=int, default=64, help="mosaic partners come from this many neighbours in the epoch")
    switch("--allow-label-faults", "go on when more than 1 %% of the label files are faulty")
    add_download(group, "official weights, and data that the YAML has addresses of,")  # type: ignore[arg-type]


def _add_semantic(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("classes of pixels")
    add = group.add_argument
    add("--semantic", default="", choices=["", *DESIGNS], metavar="DESIGN", help="add a head for classes of pixels")
    add_semantic_size(group)
    add("--seg-share", type=float, default=0.5, help="of a batch, when boxes and pixels come from two data sets")
    add("--seg-mosaic", action="store_true", help="boxes and pixels of the same images: train both on mosaics")
    add("--seg-interval", type=int, default=10, help="epochs between scorings beside boxes; the last 40 have all")


def add_semantic_size(parser: Any) -> None:
    """Add how whole images are scored for their classes of pixels."""
    add = parser.add_argument
    add("--base-size", type=int, default=0, metavar="PX", help="long side of images with pixel labels; 0: --imgsz")
    add(
        "--seg-mode", default="whole", choices=SEG_MODES, help="score at --base-size, at the file's size, or its centre"
    )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule")
    add, switch, alias = group.add_argument, switches(group), aliases(group)
    add("--epochs", type=int, default=100, help="passes over the training images")
    add_batch_size(group, 16)
    add_optimizer(group, "SGD")
    alias("--adam", "optimizer", "Adam", "the same as --optimizer Adam")
    add("--label-smoothing", type=float, default=None, help="label smoothing epsilon; replaces the hyp file's")
    add("--patience", type=int, default=100, help="epochs without a better result before stopping; 0: never stop")
    add("--fitness", nargs="+", type=float, default=[], metavar="WEIGHT", help="of the scores that rank epochs")
    add("--freeze", nargs="+", type=int, default=[0], help="one number n: layers 0 to n-1; several: exactly those")
    switch("--freeze-bn", "keep BatchNorm statistics as they are")
    add(
        "--multi-scale", nargs="*", type=int, action=_SwitchOrSizes, default=False, metavar="PX",
        help="random image size per batch, 0.5 to 1.5 times, or one of these",
    )  # fmt: skip
    add("--resize-rate", "--resize_rate", type=int, default=1, metavar="N", help="batches of one size in a row")
    switch("--noautoanchor", "keep the anchors whatever the labels look like")
    switch("--autobalance", "balance the objectness loss of the levels during training")


def add_batch_size(group: Any, default: int) -> None:
    """Add --batch-size of a training, which may be left to the device."""
    text = "images per step over all processes; -1: what suits the device; 0.6: what fits 60 %% of its free memory"
    group.add_argument("--batch-size", type=batch_size, default=default, help=text)


def batch_size(text: str) -> float:
    """Return what --batch-size says, a whole number where it can be one."""
    number = float(text)
    return int(number) if number == int(number) else number


def add_optimizer(group: Any, default: str) -> None:
    """Add the optimizer, the learning-rate curve, and how fast layers of a trained network learn."""
    add, switch, alias = group.add_argument, switches(group), aliases(group)
    add("--optimizer", default=default, metavar="NAME", help=f"one of {', '.join(OPTIMIZERS)}")
    add("--schedule", default="", metavar="NAME", help=f"learning-rate curve: {', '.join(SCHEDULES)}; empty: linear")
    switch("--cos-lr", "the same as --schedule cosine")
    alias("--linear-lr", "cos_lr", False, "linear learning-rate curve (the default)")
    group.add_argument(
        "--lr_scheduler", dest="schedule", action=_MindSporeName, default=argparse.SUPPRESS, metavar="NAME",
        help="learning-rate curve by MindSpore's names; its exponential is multi-step",
    )  # fmt: skip
    add("--lr-epochs", nargs="+", type=int, default=[], metavar="N", help="epochs at which multi-step falls")
    group.add_argument(
        "--lr_epochs", dest="lr_epochs", type=_comma_list, default=argparse.SUPPRESS, metavar="N,N",
        help="the same in MindSpore's spelling",
    )  # fmt: skip
    add("--lr-gamma", "--lr_gamma", type=float, default=0.1, help="factor of multi-step")
    add("--lr-cycles", type=int, default=3, help="cycles of cosine-restarts")
    add("--lr-power", type=float, default=0.9, help="exponent of polynomial")
    add("--layer-decay", type=float, default=1.0, help="each layer learns so many times as fast as the next; 1: alike")
    add("--backbone-warmup", type=float, default=0.0, help="epochs in which the backbone's rate rises from 0")
    add("--slimming", type=float, default=0.0, help="weight of the L1 norm of BatchNorm's factors in the loss (1e-4)")


class _SwitchOrSizes(argparse.Action):
    """Take an option alone for a yes, or the numbers behind it."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values or True)


class _MindSporeName(argparse.Action):
    """Put MindSpore's name of a schedule down as ours."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if values not in MINDSPORE_SCHEDULES:
            raise argparse.ArgumentError(self, f"{values!r}: one of {', '.join(MINDSPORE_SCHEDULES)}")
        setattr(namespace, self.dest, MINDSPORE_SCHEDULES[values])


def _comma_list(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers of epochs like 220,250") from error


def add_regime(parser: argparse.ArgumentParser) -> None:
    """Add precision, processes and seed of a training."""
    group = parser.add_argument_group("precision and processes")
    add, switch = group.add_argument, switches(group)
    add_device(group)  # type: ignore[arg-type]
    add("--amp", choices=PRECISIONS, default="auto", help="precision; auto: mixed where the device has it in hardware")
    switch("--compile", "compile the network with torch.compile")
    switch("--checkpointing", "less memory: compute what is between layers again when gradients need it")
    switch("--sync-bn", "share BatchNorm statistics between GPUs")
    add("--workers", type=int, default=8, help="data-loading processes per process, at most one a core")
    add("--seed", type=int, default=0, help="seed of everything random")
    for old in ("--bbox_iou_optim", "--multi_tensor_optimizer"):
        switch(old, "one-yolov5's switch; what it turned on is always on here")
    add("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)  # launchers pass it


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add where a training writes, what it keeps and whom it tells."""
    group = parser.add_argument_group("run, checkpoints and logs")
    add, switch = group.add_argument, switches(group)
    add("--resume", nargs="?", const="newest", default="", help="continue the newest run under --project, or a last.pt")
    add_run_folder(group, "runs/train")  # type: ignore[arg-type]
    switch("--nosave", "keep only the final checkpoint")
    add("--noval", "--notest", action="store_true", help="validate only after the last epoch")
    add("--val-start", "--eval_start_epoch", type=int, default=1, metavar="N", help="first epoch that is validated")
    add(
        "--val-interval",
        "--eval_epoch_interval",
        type=int,
        default=1,
        metavar="N",
        help="epochs from one validation to the next; the last epoch always is",
    )
    switch("--noplots", "draw no pictures")
    add(
        "--save-period",
        "--save_period",
        "--save_ckpt_interval",
        type=int,
        default=-1,
        help="keep a checkpoint every so many epochs; below 1: off",
    )
    add("--save-keep", "--save_ckpt_max_num", type=int, default=0, metavar="N", help="of these the newest N; 0: all")
    add("--save-steps", type=int, default=1000, help="also write last.pt every so many steps; 0: off")
    switch("--profile", "time what the training does: a table, and a trace of a few steps")
    add("--log", nargs="+", default=[], metavar="NAME", help=f"also log to: {', '.join(SERVICES)}")
    add("--entity", default=None, help="W&B entity")
    text = "draw what is found in validation images every so many epochs, and show it to the loggers; below 1: off"
    add("--picture-interval", "--bbox_interval", type=int, default=-1, help=text)


def switches(group: Any) -> Callable[[str, str], None]:
    """Return a function that adds an option without value to `group`."""

    def switch(name: str, text: str) -> None:
        group.add_argument(name, action="store_true", help=text)

    return switch


def aliases(group: Any) -> Callable[[str, str, object, str], None]:
    """Return a function that adds another spelling of an option's value to `group`."""

    def alias(name: str, dest: str, value: object, text: str) -> None:
        group.add_argument(name, dest=dest, action="store_const", const=value, default=argparse.SUPPRESS, help=text)

    return alias


def given(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the options that stand on the command line, without the defaults."""
    blank = argparse.Namespace(**{action.dest: _MISSING for action in parser._actions if action.dest != "help"})
    found = vars(parser.parse_args(arguments, namespace=blank))
    return {name: value for name, value in found.items() if value is not _MISSING}


def resolve_training(
    parser: argparse.ArgumentParser, chosen: dict[str, Any], recommended: dict[str, Any], source: Path
) -> tuple[TrainSettings, dict[str, str]]:
    """Merge defaults, the data set's recommendation and the user's choices, each over the one before.

    Returns the settings and, per name, where the value came from. A recommendation for the model (weights, cfg) or for
    training time holds only while the user chose no model: someone fine-tuning a network wants the usual schedule.
    """
    values = vars(parser.parse_args([]))
    origin = dict.fromkeys(values, "default")
    if unknown := sorted(recommended.keys() - values.keys()):
        raise UserError(f"{source}: `defaults:` has the unknown key {unknown[0]!r}")
    actions = {action.dest: action for action in reversed(parser._actions)}  # of several with one name, the first
    recommended = {name: _recommended(actions[name], value, source) for name, value in recommended.items()}
    if not {"weights", "cfg", "hyp"} & {name for name, value in chosen.items() if str(value).strip()}:
        values |= recommended
        origin |= dict.fromkeys(recommended, str(source))
    for one, other in (("schedule", "cos_lr"), ("cos_lr", "schedule")):  # two ways to say the same thing
        if one in chosen and other not in chosen:
            values[other] = parser.get_default(other)
    values |= chosen
    origin |= dict.fromkeys(chosen, "command line")
    for name in ("weights", "cfg"):
        values[name] = str(values[name] or "").strip()
    if not isinstance(values["imgsz"], (list, tuple)):
        values["imgsz"] = [values["imgsz"]]
    settings = TrainSettings.from_dict(values)
    return settings, {name: place for name, place in origin.items() if name in settings.to_dict()}


def _recommended(action: argparse.Action, value: Any, source: Path) -> Any:
    """Return a value of `defaults:` as the option would give it; one the option does not take is a UserError."""
    several = isinstance(action.nargs, str) and action.nargs in "+*" and not isinstance(value, bool)
    values = value if several and isinstance(value, list) else [value]
    if action.nargs == 0 or (isinstance(action, _SwitchOrSizes) and not several):
        fits = isinstance(value, bool)
    else:
        kinds: Any = {int: int, float: (int, float), batch_size: (int, float)}.get(action.type, str)
        fits = all(isinstance(one, kinds) and not isinstance(one, bool) for one in values)
        fits = fits and (action.choices is None or all(one in action.choices for one in values))
    if not fits:
        option = action.option_strings[0]
        raise UserError(f"{source}: `defaults:` has `{action.dest}: {value}`, which {option} does not take")
    return list(values) if several else value


def explain(settings: TrainSettings, origin: Mapping[str, str]) -> str:
    """Return one line per source of settings: where each value that matters came from."""
    lines: dict[str, list[str]] = {}
    for name, value in settings.to_dict().items():
        if origin.get(name, "default") != "default":
            lines.setdefault(origin[name], []).append(f"{name}={value}")
    shown = [f"  from {source}: {', '.join(values)}" for source, values in lines.items()]
    main = ("data", "epochs", "batch_size", "imgsz", "optimizer", "hyp")
    defaults = ", ".join(f"{name}={settings.to_dict()[name]}" for name in main if origin.get(name) == "default")
    return "\n".join(["settings", *shown, *([f"  defaults: {defaults}"] if defaults else [])])


def to_namespace(parser: argparse.ArgumentParser, overrides: dict[str, Any]) -> argparse.Namespace:
    """Return the parser's defaults with `overrides` by option name, for callers from Python."""
    known = {action.dest for action in parser._actions} - {"help"}
    if unknown := sorted(overrides.keys() - known):
        raise TypeError(f"no such option: {unknown[0]} (known: {', '.join(sorted(known))})")
    parser.set_defaults(**overrides)
    return parser.parse_args([])


def run_script(main: Callable[[], object]) -> None:
    """Run `main` as a program: what the user caused is one line on stderr and status 2, Ctrl-C is status 130."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        set_up_console()
        main()
        dist.stop()
    except UserError as error:
        LOGGER.error(one_line(str(error)))
        _leave(2)
    except KeyboardInterrupt:
        LOGGER.error("interrupted")
        _leave(130)
    except OSError as error:
        if error.errno not in _USERS_FAULT:
            raise
        LOGGER.error(one_line(f"{error.filename or 'files'}: {error.strerror}"))
        _leave(2)


def one_line(text: str) -> str:
    """Return `text` with what would break the line, or play tricks on a terminal, written out as in `\\n`."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_launched():
        os._exit(status)  # the other ranks may wait in a collective; the launcher ends them when this one is gone
    sys.exit(status)
