"""Options and entry point of the training scripts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from utils.core.contracts import Logger
from utils.core.data_config import DataConfig, load_data
from utils.core.errors import UserError
from utils.core.log import LOGGER
from utils.core.registry import registered_names
from utils.core.train_options import format_origins, resolve_training, training_parser
from utils.core.train_settings import TrainSettings

TASKS = tuple(registered_names("utils.tasks"))
EVOLUTION_OPTIONS = ("evolve", "evolve_population", "resume_evolve")
_GENERATIONS = 300  # of --evolve without a number


def task_parser(task: str, description: str | None) -> argparse.ArgumentParser:
    """Create the parser of a script that trains `task`.

    Args:
        task: One of `TASKS`.
        description: Module docstring of the script.
    """
    if task == "classify":
        from utils.programs.classification_options import class_training_parser  # not part of training a detector

        return class_training_parser(description)
    if task != "segment":
        return training_parser(description)
    parser = training_parser(description, project="runs/train-seg")
    add = parser.add_argument_group("masks").add_argument
    add("--mask-ratio", type=int, default=4, metavar="N", help="input size divided by the size of training masks")
    add("--no-overlap", action="store_true", help="store one mask per object instead of one index map per image")
    return parser


def add_evolution(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add YOLOv5's options of a search to a training parser; return the parser."""
    add = parser.add_argument_group("hyperparameter search (see also tune.py)").add_argument
    text = f"search with N training runs, each with mutated hyperparameters ({_GENERATIONS} without a number)"
    add("--evolve", nargs="?", type=int, const=_GENERATIONS, metavar="N", help=text)
    text = "folder of hyperparameter YAMLs for the first trials"
    add("--evolve_population", "--evolve-population", default="", metavar="FOLDER", help=text)
    text = "folder of an --evolve search to resume"
    add("--resume_evolve", "--resume-evolve", default="", metavar="FOLDER", help=text)
    return parser


def wants_evolution(options: Mapping[str, Any]) -> bool:
    """Check whether the options of a training script ask for a search."""
    return options.get("evolve") is not None or bool(options.get("evolve_population") or options.get("resume_evolve"))


def train_task(
    task: str, parser: argparse.ArgumentParser, options: Mapping[str, Any], loggers: Sequence[Logger] = ()
) -> dict[str, float]:
    """Train a network.

    Args:
        task: One of `TASKS`.
        parser: Parser of the script, for the defaults.
        options: Explicit options by name; they override the recommendations of the data set, and these the defaults.
        loggers: Loggers beside those of `--log`.

    Returns:
        Metrics of the best checkpoint by name.
    """
    settings, origin = resolve_settings(task, parser, options)
    if not settings.resume:
        LOGGER.info(format_origins(settings, origin))

    from utils.engine.fit import fit  # loads torch, which --help does not need
    from utils.programs.next_commands import NextCommands
    from utils.tasks.task_selection import select_training_task

    commands = NextCommands(task)
    metrics = fit(partial(select_training_task, task, settings.fitness), settings, [*loggers, commands])
    commands.log()
    return metrics


def resolve_settings(
    task: str, parser: argparse.ArgumentParser, options: Mapping[str, Any]
) -> tuple[TrainSettings, dict[str, str]]:
    """Merge explicit options, recommendations of the data set and defaults; download the data set if asked for.

    Returns:
        The settings, and where each value comes from by name.
    """
    explicit = dict(options)
    if task == "classify":
        from utils.programs.classification_options import class_training_options

        explicit = class_training_options(options)
    name = str(explicit.get("data", parser.get_default("data")))
    if explicit.get("download"):
        from utils.datasets.fetch.dataset_download import resolve_dataset  # the HTTP client, loaded only if it is used

        data = resolve_dataset(name, download=True)
    else:
        data = load_data(name)
    return resolve_training(parser, explicit, recommended_for(task, data), data.source)


def recommended_for(task: str, data: DataConfig) -> dict[str, Any]:
    """Read the options that a data set recommends: those for all tasks, overridden by the table of this task.

    Raises:
        UserError: If there is a table for an unknown task.
    """
    tables = {name: value for name, value in data.defaults.items() if isinstance(value, dict)}
    for name in tables:
        if name not in TASKS:
            raise UserError(f"{data.source}: `defaults:` has the unknown key {name!r}; use one of {', '.join(TASKS)}")
    return {name: value for name, value in data.defaults.items() if name not in tables} | tables.get(task, {})
