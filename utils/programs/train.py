"""What the training scripts share: how their options become a training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from utils.core.contracts import Logger
from utils.core.data_config import DataConfig
from utils.core.errors import UserError
from utils.core.files import ROOT
from utils.core.log import LOGGER
from utils.core.train_options import format_origins, resolve_training, training_parser
from utils.datasets.fetch.dataset_download import resolve_dataset
from utils.programs.classification_options import class_training_parser

TASKS = ("detect", "segment", "classify", "semantic")  # by the names of their records in utils/tasks


def task_parser(task: str, description: str | None) -> argparse.ArgumentParser:
    """Return the options of a script that trains `task`."""
    if task == "classify":
        return class_training_parser(description)
    if task != "segment":
        return training_parser(description)
    parser = training_parser(description, project="runs/train-seg")
    group = parser.add_argument_group("masks")
    group.add_argument("--mask-ratio", type=int, default=4, help="the labels' masks are this many times smaller")
    group.add_argument("--no-overlap", action="store_true", help="a mask per object instead of one map per image")
    return parser


def train_task(
    task: str, parser: argparse.ArgumentParser, chosen: dict[str, Any], loggers: Sequence[Logger] = ()
) -> dict[str, float]:
    """Train with the options `chosen` by name, the others as the data set recommends or `parser` has them.

    `loggers` are told beside those of --log.
    """
    data = resolve_dataset(str(chosen.get("data", parser.get_default("data"))), bool(chosen.get("download")))
    settings, origin = resolve_training(parser, chosen, recommended_for(task, data), data.source)
    if not settings.resume:
        LOGGER.info(format_origins(settings, origin))

    from utils.engine.fit import fit  # torch is loaded here, so that --help answers at once
    from utils.tasks.task_selection import task_for

    return fit(partial(task_for, task, settings), settings, loggers)


def recommended_for(task: str, data: DataConfig) -> dict[str, Any]:
    """Return the options that the data set recommends: those for all tasks, over them the table of this one."""
    tables = {name: value for name, value in data.defaults.items() if isinstance(value, dict)}
    for name in tables:
        if not (ROOT / "utils" / "tasks" / f"{name}.py").is_file():
            raise UserError(f"{data.source}: `defaults:` has the unknown key {name!r}")
    general = {name: value for name, value in data.defaults.items() if name not in tables}
    return general | tables.get(task, {})
