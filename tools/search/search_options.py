"""The options of a search for hyper-parameters, and what is written down for those who join it or go on."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tools.search.program import PLAN, Plan, search
from utils.core.contracts import Logger
from utils.core.errors import UserError
from utils.core.files import newest_file
from utils.programs.train import TASKS, task_parser, train_task

_MAY_DIFFER = ("device", "workers", "trials", "confirm", "noplots")  # of those who do
_OF_SEARCH = ("trials", "sampler", "pruner", "maximize", "keys", "space", "storage", "study")
_EVOLVES = ("evolve", "evolve_population", "resume_evolve")
_GENERATIONS = 300  # of --evolve without a number (behaviour.md 3.14)


def add_evolution(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add YOLOv5's options of a search to those of a training; return the parser."""
    group = parser.add_argument_group("search for hyper-parameters (see also tune.py)")
    group.add_argument(
        "--evolve", nargs="?", type=int, const=_GENERATIONS, metavar="N",
        help="search in N trainings, each from a mutation of the best ones; 300 without a number",
    )  # fmt: skip
    group.add_argument(
        "--evolve_population", "--evolve-population", default="", metavar="FOLDER",
        help="hyper-parameter YAMLs in it are tried first",
    )  # fmt: skip
    group.add_argument(
        "--resume_evolve", "--resume-evolve", default="", metavar="PATH", help="go on: the folder of an --evolve"
    )
    return parser


def tuning_parser(description: str | None, task: str = "detect") -> argparse.ArgumentParser:
    """Return the options of tune.py: those of a training of `task`, and those of a search."""
    parser = task_parser(task, description)
    for action in parser._actions:
        if action.dest == "resume":
            action.help = "go on with a search, or join one: its folder; the newest under --project without a value"
        if action.dest == "noplots":
            action.help = "draw no pictures of the search; its trainings never do"
    group = parser.add_argument_group("search")
    add = group.add_argument
    add("--task", default="detect", choices=TASKS, help="what is trained, with the options of its own train.py")
    add("--trials", type=int, default=50, help="trainings in all, over all processes that share the search")
    add("--sampler", default="tpe", help="who proposes: tpe, cmaes, nsga2, random, or mutation (YOLOv5's)")
    add("--pruner", default="median", help="who ends bad trainings early: median, hyperband, none")
    add("--maximize", nargs="+", default=["fitness"], metavar="NAME", help="one or more numbers of results.json")
    add("--keys", nargs="+", default=[], metavar="KEY", help="hyper-parameters that vary; empty: the usual of the task")
    add("--space", default="", metavar="YAML", help="ranges; empty: `search:` in the hyp file, else the usual")
    add("--storage", default="", metavar="URL", help="database that processes share; empty: SQLite in the run's folder")
    add("--study", default="polyolo", metavar="NAME", help="of the search in the database")
    add("--confirm", type=int, default=0, metavar="N", help="train defaults and best again with N other seeds")
    parser.set_defaults(project="runs/tune")
    return parser


def task_in(arguments: Sequence[str]) -> str:
    """Return what --task on a command line says, before its options are known."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--task", default="detect")
    try:
        task = parser.parse_known_args(arguments)[0].task
    except argparse.ArgumentError:
        return "detect"  # the whole parser will complain
    return task if task in TASKS else "detect"


def tune(parser: argparse.ArgumentParser, chosen: dict[str, Any]) -> dict[str, float]:
    """Search with the options `chosen` by name; return the numbers of the best trial."""
    options = dict(chosen)
    confirm, resume = int(options.pop("confirm", 0)), str(options.pop("resume", ""))
    if confirm < 0:
        raise UserError(f"--confirm {confirm}: a number of seeds, from 0")
    if resume:
        folder = _folder_to_resume(resume, Path(str(options.pop("project", parser.get_default("project")))))
        plan = _with_changes(Plan.read(folder), options, folder)
        return search(plan, folder, confirm=confirm)
    task = str(options.pop("task", "detect"))
    goals = {name: options.pop(name) for name in _OF_SEARCH if name in options}
    return search(Plan(task, options, goals), confirm=confirm)


def train_or_evolve(
    task: str, parser: argparse.ArgumentParser, chosen: dict[str, Any], loggers: Sequence[Logger] = ()
) -> dict[str, float]:
    """Train as the options `chosen` say, or with --evolve search as YOLOv5 does (behaviour.md 3.14)."""
    options = {name: value for name, value in chosen.items() if name not in _EVOLVES}
    evolve, population, resumed = (chosen.get(name) for name in _EVOLVES)
    if evolve is None and not resumed:
        if population:
            raise UserError("--evolve_population: goes with --evolve")
        return train_task(task, parser, options, loggers)
    if options.get("resume"):
        raise UserError("--resume continues a training; a search goes on with --resume_evolve and its folder")
    if resumed:
        folder = Path(str(resumed)) if Path(str(resumed)).is_dir() else Path(str(resumed)).parent
        plan = _with_changes(Plan.read(folder), options | ({"trials": evolve} if evolve else {}), folder)
        return search(plan, folder, loggers)
    if int(evolve or 0) < 1:
        raise UserError(f"--evolve {evolve}: a number of trainings, at least 1")
    first = _population(Path(str(population))) if population else []
    goals = {"trials": evolve, "sampler": "mutation", "pruner": "none", "first": first}
    return search(Plan(task, options, goals, evolves=True), loggers=loggers)


def _population(folder: Path) -> list[str]:
    found = sorted(str(path) for path in folder.glob("*.yaml")) if folder.is_dir() else []
    if not found:
        raise UserError(f"--evolve_population {folder}: no folder with hyper-parameter YAMLs")
    return found


def _folder_to_resume(text: str, project: Path) -> Path:
    if text != "newest":
        folder = Path(text)
    else:
        plan = newest_file(project, PLAN)
        if plan is None:
            raise UserError(f"--resume: no search under {project}; give its folder")
        folder = plan.parent
    if not (folder / PLAN).is_file():
        raise UserError(f"--resume {text}: no {PLAN} in there; give the folder of a search")
    return folder


def _with_changes(plan: Plan, options: Mapping[str, Any], folder: Path) -> Plan:
    """Return the plan with what those who go on or join may choose for themselves."""
    if others := sorted(set(options) - set(_MAY_DIFFER) - {"task"}):
        name = others[0].replace("_", "-")
        raise UserError(f"--{name}: everything but {', '.join(_MAY_DIFFER)} comes from {folder / PLAN}")
    mine = {name: value for name, value in options.items() if name in ("device", "workers", "noplots")}
    goals = {**plan.search, **({"trials": options["trials"]} if "trials" in options else {})}
    return replace(plan, training={**plan.training, **mine}, search=goals)
