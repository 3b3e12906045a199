"""Options of a hyperparameter search, and how they start, resume or join one."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tools.search.program import PLAN_FILE, Plan, search
from utils.core.contracts import Logger
from utils.core.errors import UserError
from utils.core.files import newest_file
from utils.programs.train import EVOLUTION_OPTIONS, TASKS, task_parser

_CHANGEABLE = ("device", "workers", "trials", "confirm", "noplots")  # options that may differ when resuming
_SEARCH_OPTIONS = ("trials", "sampler", "pruner", "maximize", "keys", "space", "storage", "study")


def tuning_parser(description: str | None, task: str = "detect") -> argparse.ArgumentParser:
    """Create the parser of tune.py: options of a search and of the training runs.

    Args:
        description: Module docstring of the script.
        task: Task of the training runs.
    """
    from tools.search.shared_study import MUTATION, PRUNERS, SAMPLER_NAMES  # not loaded by training scripts

    parser = task_parser(task, description)
    for action in parser._actions:
        if action.dest == "resume":
            action.help = "folder of a search to resume or join; without a value the newest below --project"
        if action.dest == "noplots":
            action.help = "draw no plots of the search; its training runs never draw any"
    add = parser.add_argument_group("search").add_argument
    add("--task", default="detect", choices=TASKS, help="task of the training runs; adds the options of its train.py")
    text = "number of training runs of all processes that share the search"
    add("--trials", type=int, default=50, metavar="N", help=text)
    text = f"sampler of hyperparameters: {', '.join(SAMPLER_NAMES)} ({MUTATION}: that of YOLOv5)"
    add("--sampler", default="tpe", metavar="NAME", help=text)
    add("--pruner", default="median", metavar="NAME", help=f"pruner of bad trials: {', '.join(PRUNERS)}")
    add("--maximize", nargs="+", default=["fitness"], metavar="NAME", help="objectives: metrics in results.json")
    text = "hyperparameters to search (default: depends on the task)"
    add("--keys", nargs="+", default=[], metavar="KEY", help=text)
    text = "YAML of ranges (default: `search:` in the hyp file, else built-in ranges)"
    add("--space", default="", metavar="FILE", help=text)
    text = "database shared by the processes (default: an SQLite file in the run folder)"
    add("--storage", default="", metavar="URL", help=text)
    add("--study", default="polyolo", metavar="NAME", help="name of the search in the database")
    text = "number of other seeds for a final comparison of the best trial with the defaults"
    add("--confirm", type=int, default=0, metavar="N", help=text)
    parser.set_defaults(project="runs/tune")
    return parser


def find_task(arguments: Sequence[str]) -> str:
    """Find the value of --task on a command line, which determines the other options."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--task", default="detect")
    try:
        task = str(parser.parse_known_args(arguments)[0].task)
    except argparse.ArgumentError:
        return "detect"  # the complete parser reports the error
    return task if task in TASKS else "detect"


def tune(parser: argparse.ArgumentParser, options: Mapping[str, Any]) -> dict[str, float]:
    """Start, resume or join a search as tune.py does.

    Args:
        parser: Parser of tune.py, for the defaults.
        options: Explicit options by name.

    Returns:
        Metrics of the best trial.
    """
    options = dict(options)
    confirm, resume = int(options.pop("confirm", 0)), str(options.pop("resume", ""))
    if confirm < 0:
        raise UserError(f"--confirm {confirm}: must be a number of seeds from 0")
    if resume:
        folder = _find_search(resume, Path(str(options.pop("project", parser.get_default("project")))))
        return search(_update(Plan.read(folder), options, folder), folder, confirm=confirm)
    task = str(options.pop("task", "detect"))
    search_options = {name: options.pop(name) for name in _SEARCH_OPTIONS if name in options}
    return search(Plan(task, options, search_options), confirm=confirm)


def evolve(
    task: str, parser: argparse.ArgumentParser, options: Mapping[str, Any], loggers: Sequence[Logger] = ()
) -> dict[str, float]:
    """Start or resume a search with YOLOv5's options and files (`--evolve`).

    Args:
        task: Task of the training runs.
        parser: Unused; training functions have the same arguments.
        options: Explicit options by name.
        loggers: Loggers of the training runs, beside those of `--log`.

    Returns:
        Metrics of the best trial.
    """
    training = {name: value for name, value in options.items() if name not in EVOLUTION_OPTIONS}
    trials, population, resumed = (options.get(name) for name in EVOLUTION_OPTIONS)
    if trials is None and not resumed:
        raise UserError("--evolve_population: has no effect without --evolve")
    if training.get("resume"):
        raise UserError("--resume: resumes a training run; resume a search with --resume_evolve FOLDER")
    if resumed:
        folder = Path(str(resumed)) if Path(str(resumed)).is_dir() else Path(str(resumed)).parent
        plan = _update(Plan.read(folder), training | ({"trials": trials} if trials else {}), folder)
        return search(plan, folder, loggers)
    if int(trials or 0) < 1:
        raise UserError(f"--evolve {trials}: must be a number of training runs, at least 1")
    first = _find_population(Path(str(population))) if population else []
    search_options = {"trials": trials, "sampler": "mutation", "pruner": "none", "first": first}
    return search(Plan(task, training, search_options, evolves=True), loggers=loggers)


def _find_population(folder: Path) -> list[str]:
    files = sorted(str(path) for path in folder.glob("*.yaml")) if folder.is_dir() else []
    if not files:
        raise UserError(f"--evolve_population {folder}: no hyperparameter YAMLs in this folder")
    return files


def _find_search(text: str, project: Path) -> Path:
    """Find the folder that --resume names."""
    if text != "newest":
        folder = Path(text)
    else:
        plan = newest_file(project, PLAN_FILE)
        if plan is None:
            raise UserError(f"--resume: no search under {project}; give its folder")
        folder = plan.parent
    if not (folder / PLAN_FILE).is_file():
        raise UserError(f"--resume {text}: contains no {PLAN_FILE}; give the folder of a search")
    return folder


def _update(plan: Plan, options: Mapping[str, Any], folder: Path) -> Plan:
    """Apply the options that may differ when a search is resumed or joined."""
    if others := sorted(set(options) - set(_CHANGEABLE) - {"task"}):
        name = others[0].replace("_", "-")
        raise UserError(
            f"--{name}: cannot change when a search is resumed, only {', '.join(_CHANGEABLE)} can; the other options "
            f"come from {folder / PLAN_FILE}"
        )
    training = {name: value for name, value in options.items() if name in ("device", "workers", "noplots")}
    trials = {"trials": options["trials"]} if "trials" in options else {}
    return replace(plan, training={**plan.training, **training}, search={**plan.search, **trials})
