"""Accuracy per training time: several families and recipes, the same data, the same minutes on the same machine.

python benchmarks/accuracy.py --minutes 5 --imgsz 224 --batch-size 16 --recipes auto --cfgs yolov5n polyolo-n:end-to-end
python benchmarks/accuracy.py --minutes 2 --data bccd.yaml --weights yolov5n.pt --cfgs yolov5n polyolo-n --recipes auto
python benchmarks/accuracy.py --minutes 2 --data bccd.yaml --cfgs polyolo-n polyolo-n:distill --distill teacher.pt

For every family and recipe two runs of six epochs measure the time of the start, an epoch with and without mosaic, and
a validation. The number of epochs whose time is nearest to the minutes is the length of the schedule for all seeds.
Validation counts as training time, as it does for users. Run it on a quiet machine, and give --batch-size if
`--recipe auto` would choose a smaller one for six epochs than for the whole run. With --write, report and plot are
named after task, data, initial weights and time.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import machine
from benchmarks.mosaic_window import mean_and_deviation
from utils.core.cli import add_image_size, run_script
from utils.core.data_config import load_data
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.train_options import resolve_training, training_parser
from utils.engine.fit import fit
from utils.engine.recipe_auto import closed_epochs
from utils.plots.figure_io import new_figure, save_figure
from utils.tasks.task_selection import select_training_task

NAME = "accuracy"
DEFAULTS = "yolov5"  # the recipe without --recipe
PROBES, PROBED_EPOCHS = 2, 6  # rounds and epochs that measure the time of an epoch
END_TO_END, DISTILL = "end-to-end", "distill"  # suffixes of --cfgs, after a colon
SCORE_WITHOUT_NMS = "detect/map50_95_end_to_end"
SCORES = {  # name in results -> title, by task
    "detect": {"detect/map50": "mAP50", "detect/map50_95": "mAP50-95"},
    "segment": {"segment/box_map50_95": "mAP50-95", "segment/mask_map50_95": "mask mAP50-95"},
    "semantic": {"semantic/pixel_accuracy": "pixel accuracy", "semantic/miou": "mIoU"},
}


@dataclass
class Recorder:
    """Logger that records the fitness score against the time since it was started, and the ends of all epochs."""

    column: str
    ends: list[float] = field(default_factory=list)
    minutes: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    began: float = 0.0

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Record the end of an epoch and, if it was validated, the score."""
        self.ends.append((time.perf_counter() - self.began) / 60)
        if (score := numbers.get(self.column, float("nan"))) == score:
            self.minutes.append(self.ends[-1])
            self.scores.append(score)

    def image(self, path: Path, epoch: int) -> None:
        """Ignore plots."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Ignore the end."""


@dataclass(frozen=True)
class Outcome:
    """One training: its scores, the minutes until its last epoch, and the curve."""

    numbers: dict[str, float]
    minutes: float
    epochs: int
    curve: Recorder


def train_once(options: argparse.Namespace, cfg: str, recipe: str, epochs: int, seed: int, interval: int) -> Outcome:
    """Train in a temporary folder, with a validation every `interval` epochs."""
    names = ("data", "weights", "batch_size", "imgsz", "workers", "device")
    values: dict[str, Any] = {name: value for name in names if (value := getattr(options, name)) not in (None, (), [])}
    family, suffixes = split_suffixes(cfg)
    values |= {"cfg": family, "epochs": epochs, "seed": seed, "noplots": True, "patience": 0}
    values |= {"end_to_end": True} if END_TO_END in suffixes else {}
    values |= {"distill": options.distill} if DISTILL in suffixes else {}
    values |= {"val_interval": interval}
    values |= {} if recipe == DEFAULTS else {"recipe": recipe}
    data = load_data(options.data)
    probe = select_training_task(options.task, (), ())
    column = next(column for column, name in probe.columns.items() if name == list(SCORES[options.task])[-1])
    recorder = Recorder(column)
    with tempfile.TemporaryDirectory() as folder:
        place = {"project": folder, "name": "run"}
        settings, _ = resolve_training(training_parser(None), values | place, {}, data.source)
        numbers = fit(partial(select_training_task, options.task, settings.fitness), settings, [recorder])
    return Outcome(numbers, recorder.ends[-1], epochs, recorder)


@dataclass(frozen=True)
class Durations:
    """Minutes of the parts of a training."""

    start: float  # until the first step
    epoch: float
    closed_epoch: float  # without mosaic
    validation: float

    def total(self, epochs: int, closed: int, validations: int) -> float:
        """Add up a training whose last `closed` epochs have no mosaic."""
        steps = (epochs - closed) * self.epoch + closed * self.closed_epoch
        return self.start + steps + validations * self.validation


def fitting_epochs(options: argparse.Namespace, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Measure the parts of a training; compute how many epochs take the minutes for every family and recipe.

    The rounds alternate, so that a drift of the machine affects all of them alike.
    """
    ends: dict[tuple[str, str], list[list[float]]] = {pair: [] for pair in pairs}
    for _ in range(PROBES):
        for pair in pairs:
            ends[pair].append(train_once(options, *pair, PROBED_EPOCHS, seed=0, interval=3).curve.ends)
    return {
        (cfg, recipe): _fitting(_durations(ends[cfg, recipe]), options, recipe != DEFAULTS) for cfg, recipe in pairs
    }


def _durations(rounds: Sequence[Sequence[float]]) -> Durations:
    """Compute durations from the ends of six epochs: 1, 4 and 6 are validated, 4 to 6 may have no mosaic."""
    first, _, third, fourth, fifth, sixth = (statistics.fmean(ends) for ends in zip(*rounds, strict=True))
    epoch, closed = (third - first) / 2, fifth - fourth
    validation = max((fourth - third + sixth - fifth) / 2 - closed, 0)
    return Durations(max(first - epoch - validation, 0), epoch, closed, validation)


def _fitting(durations: Durations, options: argparse.Namespace, closes: bool) -> int:
    """Compute the number of epochs, at least 1, whose total is nearest to the minutes."""

    def total(epochs: int) -> float:
        validations = 1 + math.ceil((epochs - 1) / interval_of(options, epochs))  # the first, the last, those between
        return durations.total(epochs, closed_epochs(epochs) if closes else 0, validations)

    epochs = 1
    while total(epochs + 1) <= options.minutes:
        epochs += 1
    return epochs if options.minutes - total(epochs) <= total(epochs + 1) - options.minutes else epochs + 1


def interval_of(options: argparse.Namespace, epochs: int) -> int:
    """Get the number of epochs from one validation to the next, so that there are `validations` at most."""
    return max(math.ceil((epochs - 1) / max(options.validations - 1, 1)), 1)


def draw(runs: Mapping[tuple[str, str], Sequence[Outcome]], title: str, path: Path) -> None:
    """Plot the scores of every family and recipe against minutes, one line per seed."""
    figure = new_figure(8, 5)
    axes = figure.add_subplot()
    for index, ((cfg, recipe), outcomes) in enumerate(runs.items()):
        for number, outcome in enumerate(outcomes):
            label = f"{cfg}, {recipe}" if number == 0 else None
            curve = outcome.curve
            axes.plot(curve.minutes, curve.scores, color=f"C{index}", marker=".", linewidth=1, label=label)
    axes.set_xlabel("minutes")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def split_suffixes(cfg: str) -> tuple[str, set[str]]:
    """Split a value of --cfgs into the name and its suffixes.

    Raises:
        UserError: A suffix is unknown.
    """
    name, *suffixes = cfg.split(":")
    if unknown := set(suffixes) - {END_TO_END, DISTILL}:
        raise UserError(f"--cfgs {cfg}: unknown suffix {min(unknown)!r}; known: {END_TO_END}, {DISTILL}")
    return name, set(suffixes)


def report_name(options: argparse.Namespace) -> str:
    """Return the name of the report: `accuracy`, task, data set, initial weights and seconds of training."""
    weights = [Path(options.weights).stem] if options.weights else []
    return "_".join([NAME, options.task, Path(options.data).stem, *weights, f"{60 * options.minutes:.0f}s"])


def build_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = machine.new_parser(__doc__, f"{NAME}_TASK_DATA_TIME")
    add = parser.add_argument
    add("--minutes", type=float, default=5.0, help="training time of each run, with validation")
    add("--task", choices=list(SCORES), default="detect", help="task of the models")
    add("--data", default="data/shapes.yaml", help="data-set YAML")
    text = "model YAMLs or names; NAME:end-to-end is trained with a duplicate filter, NAME:distill with --distill"
    add("--cfgs", nargs="+", default=["yolov5n", "polyolo-n"], help=text)
    add("--recipes", nargs="+", choices=[DEFAULTS, "auto"], default=[DEFAULTS, "auto"])
    add("--weights", default="", help="initial checkpoint (default: none, train from scratch)")
    add("--distill", default="", metavar="FILE", help="teacher of every NAME:distill")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--validations", type=int, default=12, help="largest number of points of a curve")
    add("--batch-size", type=int, default=None)
    add_image_size(parser, (), "image size in pixels")
    add("--workers", type=int, default=None)
    add("--device", default=None)
    return parser


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Run the benchmark and report it; return the mean of the last score of every family and recipe."""
    line = machine.command_arguments(arguments)
    options = build_parser().parse_args(line)
    suffixes = set().union(*(split_suffixes(cfg)[1] for cfg in options.cfgs))
    if (DISTILL in suffixes) != bool(options.distill):
        raise UserError(f"--distill FILE and --cfgs NAME:{DISTILL} go together; one of them is missing")
    pairs = [(cfg, recipe) for cfg in options.cfgs for recipe in options.recipes]
    epochs = fitting_epochs(options, pairs)
    runs: dict[tuple[str, str], list[Outcome]] = {pair: [] for pair in pairs}
    for seed in options.seeds:  # a drift of the machine then affects all pairs alike
        for pair in pairs:
            runs[pair].append(train_once(options, *pair, epochs[pair], seed, interval_of(options, epochs[pair])))
    titles = SCORES[options.task]
    without_nms = END_TO_END in suffixes
    columns = [*titles.values(), *(["mAP50-95 without NMS"] if without_nms else [])]
    rows = []
    for (cfg, recipe), outcomes in runs.items():
        cells = [mean_and_deviation([outcome.numbers[name] for outcome in outcomes]) for name in titles]
        if without_nms:
            found = [outcome.numbers.get(SCORE_WITHOUT_NMS) for outcome in outcomes]
            scores = [score for score in found if score is not None]
            cells.append(mean_and_deviation(scores) if scores else "")
        minutes = statistics.fmean(outcome.minutes for outcome in outcomes)
        rows.append(f"| {cfg} | {recipe} | {epochs[cfg, recipe]} | {minutes:.2f} | " + " | ".join(cells) + " |")
    start = f"from {Path(options.weights).name}" if options.weights else "from nothing"
    name = report_name(options)
    body = [
        f"{Path(options.data).name}, {start}, {options.minutes:g} minutes, {len(options.seeds)} seed(s): mean ± "
        "standard deviation over seeds.",
        "",
        f"| model | recipe | epochs | minutes | {' | '.join(columns)} |",
        "|---|---|---|---|" + "---|" * len(columns),
        *rows,
    ]
    last, title = list(titles.items())[-1]
    if options.write:
        body += ["", f"![{title} against minutes]({name}.png)"]
    device = select_device(options.device or "")
    text = machine.report("Accuracy per training time", NAME, line, body, device)
    if options.write:  # after the report, which would take an overwritten plot for a change of the code
        draw(runs, title, machine.RESULTS / f"{name}.png")
    machine.publish(text, name, options.write)
    return {f"{a}/{b}": statistics.fmean(o.numbers[last] for o in outcomes) for (a, b), outcomes in runs.items()}


if __name__ == "__main__":
    run_script(main)
