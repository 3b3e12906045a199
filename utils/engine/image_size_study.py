"""Accuracy and speed over a range of image sizes (`--task study`): a table per network and one plot."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from utils.core import distributed as dist
from utils.core.contracts import SelectTask
from utils.core.device import select_device
from utils.core.errors import UserError
from utils.core.files import remove_if_empty, write_text
from utils.core.log import LOGGER
from utils.core.val_settings import ValSettings
from utils.engine.validate import OpenedModel, OpenModel, evaluate_at_size, open_model_and_data, results_folder

SIZES = range(256, 1537, 128)
TIMES = ("preprocess", "inference", "postprocess")

Curves = dict[str, list[list[float]]]  # rows of size, scores and times by network
DrawStudy = Callable[[Mapping[str, Sequence[Sequence[float]]], Sequence[str], Path], object]


def study_image_sizes(
    select_task: SelectTask, settings: ValSettings, open_model: OpenModel, draw_study: DrawStudy
) -> dict[str, float]:
    """Evaluate each of `settings.weights` at all image sizes.

    Rows are written as they are computed. In an existing folder (`--exist-ok`), sizes with a row are skipped.

    Args:
        select_task: Chooses the task from the names of a model's heads.
        settings: Options of the validation script.
        open_model: Opens weights.
        draw_study: Plots the curves of all networks.

    Returns:
        Metrics of the last evaluation.
    """
    device = select_device(settings.device)
    dist.start(device)
    folder = results_folder(settings)
    curves: Curves = {}
    columns: list[str] = []
    metrics: dict[str, float] = {}
    try:
        for weights in settings.weights or ("",):
            one = replace(settings, weights=(weights,) if weights else (), task="val", noplots=True)
            task, model, data = open_model_and_data(select_task, one, open_model, device)
            if model.runner.fixed_hw is not None:
                raise UserError(f"{model.name}: has a fixed input size, --task study needs many; export with --dynamic")
            names = {column: name for column, name in task.columns.items() if column.startswith("metrics/")}
            columns = [column.removeprefix("metrics/") for column in names]
            label = _label(model, weights, curves)
            path = folder / f"study_{Path(data.source).stem}_{label}.txt"
            rows = curves[label] = _read_rows(path, len(columns))
            for index, size in enumerate(SIZES, start=1):
                if size in {int(row[0]) for row in rows}:
                    LOGGER.info(f"{label} at {size}: already evaluated")
                    continue
                LOGGER.info(f"{label} at {size} ({index} of {len(SIZES)})")
                report = evaluate_at_size(task, one, model, data, device, folder, size)
                metrics = report.metrics
                times = (report.milliseconds[name] for name in TIMES)
                rows.append([size, *(metrics[name] for name in names.values()), *times])
                rows.sort()
                _write_rows(path, rows)
            LOGGER.info(f"{path}: size, scores, milliseconds of pre-processing, inference and post-processing")
        _write_study(folder, curves, columns, None if settings.noplots else draw_study)
        return metrics
    finally:
        if dist.is_main():
            remove_if_empty(folder)


def _label(model: OpenedModel, weights: str, taken: Collection[str]) -> str:
    """Return a unique label for a network: the stem of its file, preceded by the folder of its run if necessary."""
    if model.name not in taken:
        return model.name
    base = f"{Path(weights).resolve().parent.parent.name}-{model.name}"
    return next(name for n in range(1, 1000) if (name := base if n == 1 else f"{base}-{n}") not in taken)


def _read_rows(path: Path, scores: int) -> list[list[float]]:
    """Read the rows of an earlier study, none if the file does not exist."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if len(row) != 1 + scores + len(TIMES):
            raise UserError(f"{path}:{number}: not a row of a study; delete the file, or omit --exist-ok")
        rows.append(row)
    return rows


def _write_rows(path: Path, rows: Sequence[Sequence[float]]) -> None:
    if dist.is_main():
        write_text(path, "".join("".join(f"{value:10.4g}" for value in row) + "\n" for row in rows))


def _write_study(folder: Path, curves: Curves, columns: Sequence[str], draw_study: DrawStudy | None) -> None:
    if not dist.is_main():
        return
    names = ["size", *columns, *(f"{name}_ms" for name in TIMES)]
    found = {label: [dict(zip(names, row, strict=True)) for row in rows] for label, rows in curves.items()}
    write_text(folder / "study.json", json.dumps(found, indent=1) + "\n")
    if draw_study is not None:
        draw_study(curves, columns, folder / "study.png")
    LOGGER.info(f"results are in {folder}")
