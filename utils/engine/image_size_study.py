"""Accuracy against speed over image sizes: a table for each of several networks, and one picture of all."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utils.core import distributed as dist
from utils.core.contracts import Task
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.files import remove_if_empty, write_text
from utils.core.log import LOGGER
from utils.core.train_settings import ScoreSettings
from utils.engine.validate import OpenSubject, Subject, prepare, results_folder, score_at

SIZES = range(256, 1537, 128)
TIMES = ("preprocess", "inference", "postprocess")

Curves = dict[str, list[list[float]]]
DrawStudy = Callable[[Mapping[str, Sequence[Sequence[float]]], Sequence[str], Path], object]


def study(
    choose: Callable[[Collection[str]], Task], settings: ScoreSettings, open_subject: OpenSubject, draw_study: DrawStudy
) -> dict[str, float]:
    """Score every one of `settings.weights` over a range of image sizes; return the numbers of the last.

    A row is written as soon as it is known. In a folder that is used again (`--exist-ok`) sizes with a row are not
    scored again.
    """
    device = select_device(settings.device)
    dist.start(device)
    folder = results_folder(settings)
    curves: Curves = {}
    columns: list[str] = []
    numbers: dict[str, float] = {}
    try:
        for weights in settings.weights or ("",):
            one = replace(settings, weights=(weights,) if weights else (), task="val", noplots=True)
            task, subject, data = prepare(choose, one, open_subject, device)
            if subject.runner.fixed_hw is not None:
                raise UserError(f"{subject.name}: takes one size only, --task study needs many; export with --dynamic")
            columns = [column.removeprefix("metrics/") for column in task.columns if column.startswith("metrics/")]
            label = _label(subject, weights, curves)
            path = folder / f"study_{Path(data.source).stem}_{label}.txt"
            curves[label] = _known(path, len(columns))

            def run(size: int, one: ScoreSettings = one, found: tuple = (task, subject, data)) -> list[float]:
                nonlocal numbers
                report = score_at(found[0], one, found[1], found[2], device, folder, size)
                numbers = report.metrics
                scores = [numbers[name] for column, name in found[0].columns.items() if column.startswith("metrics/")]
                return [size, *scores, *(report.milliseconds[name] for name in TIMES)]

            _curve(label, path, curves[label], run)
        _report(folder, curves, columns, None if settings.noplots else draw_study)
        return numbers
    finally:
        if dist.is_main():
            remove_if_empty(folder)


def _label(subject: Subject, weights: str, taken: Collection[str]) -> str:
    """Return what a network is called: its file's stem, with the run's folder before it if that is taken."""
    if subject.name not in taken:
        return subject.name
    base = f"{Path(weights).resolve().parent.parent.name}-{subject.name}"
    return next(name for n in range(1, 1000) if (name := base if n == 1 else f"{base}-{n}") not in taken)


def _known(path: Path, scores: int) -> list[list[float]]:
    """Return the rows that a file has already."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if len(row) != 1 + scores + len(TIMES):
            raise UserError(f"{path}:{number}: no row of a study; delete the file, or leave out --exist-ok")
        rows.append(row)
    return rows


def _curve(label: str, path: Path, rows: list[list[float]], run: Callable[[int], list[float]]) -> None:
    """Add the rows of the sizes that have none to `rows` and to the file."""
    done = {int(row[0]) for row in rows}
    for place, size in enumerate(SIZES, start=1):
        if size in done:
            LOGGER.info(f"{label} at {size}: known already")
            continue
        LOGGER.info(f"{label} at {size} ({place} of {len(SIZES)})")
        rows.append(run(size))
        rows.sort()
        if dist.is_main():
            write_text(path, "".join("".join(f"{value:10.4g}" for value in row) + "\n" for row in rows))
    LOGGER.info(f"{path}: size, scores, milliseconds before, in and after the network")


def _report(folder: Path, curves: Curves, columns: Sequence[str], draw_study: DrawStudy | None) -> None:
    if not dist.is_main():
        return
    names = ["size", *columns, *(f"{name}_ms" for name in TIMES)]
    found = {label: [dict(zip(names, row, strict=True)) for row in rows] for label, rows in curves.items()}
    write_text(folder / "study.json", json.dumps(found, indent=1) + "\n")
    if draw_study is not None:
        draw_study(curves, columns, folder / "study.png")
    LOGGER.info(f"results are in {folder}")
