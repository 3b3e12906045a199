"""Benchmark of export formats: export a checkpoint to each, then measure size, accuracy and speed."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.cli import add_device, add_download, add_flag, add_image_size, add_run_folder, new_parser
from utils.core.errors import UserError
from utils.core.files import run_folder, write_text
from utils.core.log import LOGGER

if TYPE_CHECKING:  # modules that load torch are imported after parsing, so that --help is fast
    import torch

    from utils.core.contracts import Runner


@dataclass(frozen=True)
class BenchmarkSettings:
    """Options of benchmark.py. The names are those of the options."""

    weights: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    data: str = ""
    imgsz: tuple[int, ...] = ()
    batch_size: int = 1
    runs: int = 20
    half: bool = False
    int8: bool = False
    speed_only: bool = False
    test: bool = False
    pt_only: bool = False
    hard_fail: float | None = None
    device: str = ""
    project: str = "runs/benchmark"
    name: str = "exp"
    exist_ok: bool = False
    download: bool = False

    def __post_init__(self) -> None:
        for option, number in (("--batch-size", self.batch_size), ("--runs", self.runs)):
            if number < 1:
                raise UserError(f"{option} expects a number of at least 1, got {number}")


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """Create the parser of benchmark.py."""
    parser = new_parser(description)
    group = parser.add_argument_group("model and data")
    add = group.add_argument
    add("--weights", nargs="+", default=[], metavar="FILE", help="checkpoint (default: the newest best.pt)")
    add("--include", nargs="+", default=[], metavar="FORMAT", help="formats to benchmark (default: all)")
    add("--data", default="", metavar="FILE", help="data-set YAML for the accuracy (default: from the checkpoint)")
    add_image_size(group, [], "input size in pixels (default: from the checkpoint, else 640)")
    add_download(group)
    group = parser.add_argument_group("measurement")
    add = group.add_argument
    add("--batch-size", type=int, default=1, metavar="N", help="images per run")
    add("--runs", type=int, default=20, metavar="N", help="timed runs of each format")
    add_flag(group, "--half", "use half precision in the formats that support it")
    add_flag(group, "--int8", "also measure INT8 in the formats that support it, calibrated on --data")
    add_flag(group, "--speed-only", "measure speed but not accuracy")
    add_flag(group, "--test", "only export and compare with PyTorch, without measuring speed and accuracy")
    add_flag(group, "--pt-only", "measure PyTorch only")
    text = "fail if an installed format cannot be exported or scores at most this; 0 without a value (default: never)"
    add("--hard-fail", nargs="?", const=0.0, type=float, default=None, metavar="X", help=text)
    group = parser.add_argument_group("hardware and output")
    add_device(group)
    add_run_folder(group, "runs/benchmark")
    return parser


@dataclass
class Row:
    """Results of one format; None for what was not measured."""

    format: str
    megabytes: float | None = None
    scores: dict[str, float] | None = None
    milliseconds: float | None = None  # per image, median
    fastest: float | None = None  # per image, minimum
    reason: str = ""  # why the format failed or was not run
    unavailable: bool = False  # a package or the hardware is missing


def benchmark_formats(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Benchmark the export formats of one checkpoint.

    Args:
        settings: Options of benchmark.py.

    Returns:
        The rows as plain values, that of the checkpoint first.

    Raises:
        UserError: More than one checkpoint, or --hard-fail applies.
    """
    from utils.backends.exported_runner import is_installed
    from utils.backends.open_weights import find_weights, open_weights
    from utils.core.device import describe, select_device
    from utils.programs.export import export_backends, size_bytes

    device = select_device(settings.device)
    paths = find_weights(settings.weights, settings.download)
    if len(paths) > 1:
        raise UserError(f"--weights expects one checkpoint, got {len(paths)}")
    folder = run_folder(Path(settings.project), settings.name, settings.exist_ok)
    opened = open_weights([str(paths[0])], device, half=settings.half)
    rows = [Row("PyTorch", size_bytes(paths[0]) / 1e6)]
    runners: dict[str, Runner] = {"PyTorch": opened.runner}
    for name, precision in [] if settings.pt_only else _formats(settings):
        row = Row(name if precision != "int8" else f"{name} int8")
        row.unavailable = not all(is_installed(package) for package in export_backends()[name].packages)
        try:
            file = _export(settings, paths[0], folder, name, precision)
            row.megabytes = size_bytes(file) / 1e6
            if reason := export_backends()[name].unavailable_reason():
                row.reason, row.unavailable = f"written, not run: {reason}", True
            else:
                runners[row.format] = open_weights([str(file)], device).runner
        except UserError as error:
            row.reason = str(error)
        rows.append(row)
    size = _input_size(settings, int(opened.meta.get("imgsz") or 0), opened.runner)
    if not settings.test:
        _measure_speed(settings, rows, runners, device, size)
        if not settings.speed_only:
            _measure_accuracy(rows, runners, settings.data or str(opened.meta.get("data") or ""), size)
    description = {
        "weights": str(paths[0]), "imgsz": size, "batch_size": settings.batch_size, "device": describe(device),
        "machine": platform.processor() or platform.machine(), "runs": settings.runs,
    }  # fmt: skip
    return _write_report(rows, description, folder, settings.hard_fail)


def _formats(settings: BenchmarkSettings) -> list[tuple[str, str]]:
    """List the formats to export with their precisions."""
    from utils.programs.export import export_backends, parse_formats

    backends = export_backends()
    names = parse_formats(settings.include) if settings.include else list(backends)
    pairs = [(name, "fp16" if settings.half and "half" in backends[name].capabilities else "fp32") for name in names]
    if settings.int8:
        pairs += [(name, "int8") for name in names if "int8" in backends[name].capabilities]
    return pairs


def _export(settings: BenchmarkSettings, weights: Path, folder: Path, name: str, precision: str) -> Path:
    """Export one format with the measured input size into the run folder."""
    from utils.programs.export import export_backends, export_checkpoints
    from utils.programs.export_settings import ExportSettings

    batched = "batch" in export_backends()[name].capabilities and settings.batch_size > 1
    export_settings = ExportSettings(
        weights=(str(weights),),
        include=(name,),
        output=str(folder / "files"),
        imgsz=settings.imgsz,
        static=not settings.imgsz,
        data=settings.data,
        half=precision == "fp16",
        int8=precision == "int8",
        batch_size=settings.batch_size if batched else 0,
    )
    return export_checkpoints(export_settings, stop_at_error=True)[0]


def _input_size(settings: BenchmarkSettings, trained_px: int, runner: Runner) -> int:
    default_px = 224 if "classify" in runner.specs else 640
    size = max(settings.imgsz) if settings.imgsz else trained_px or default_px
    return -(-size // runner.stride) * runner.stride


def _measure_speed(
    settings: BenchmarkSettings, rows: list[Row], runners: Mapping[str, Runner], device: torch.device, size: int
) -> None:
    """Time all runners on the same random images in turns, after a warm-up."""
    import torch

    from utils.core.alternate_timing import time_alternately

    images = torch.randint(0, 256, (settings.batch_size, 3, size, size), dtype=torch.uint8)
    actions = {name: partial(runner.run, images) for name, runner in runners.items()}
    seconds = time_alternately(actions, settings.runs, target=device, twice=True)
    for row in rows:
        if times := seconds.get(row.format):
            row.milliseconds = 1000 * statistics.median(times) / settings.batch_size
            row.fastest = 1000 * min(times) / settings.batch_size


def _measure_accuracy(rows: list[Row], runners: Mapping[str, Runner], data_yaml: str, size: int) -> None:
    from utils.core.data_config import load_data
    from utils.programs.export_certificate import accuracy

    if not data_yaml:
        LOGGER.warning("accuracy is not measured: the checkpoint names no data set; give --data")
        return
    data = load_data(data_yaml)
    for row in rows:
        if row.format in runners:
            start = time.perf_counter()
            row.scores = accuracy(runners[row.format], data, size, square=True)
            scores = ", ".join(f"{name} {value:.4f}" for name, value in (row.scores or {}).items())
            LOGGER.info(f"{row.format}: {scores} ({time.perf_counter() - start:.0f} s)")


def _write_report(
    rows: list[Row], description: Mapping[str, Any], folder: Path, hard_fail: float | None
) -> list[dict[str, Any]]:
    from utils.plots.format_benchmark import draw_benchmark

    values = [asdict(row) for row in rows]
    write_text(folder / "benchmark.json", json.dumps({**description, "formats": values}, indent=1) + "\n")
    LOGGER.info(format_table(rows))
    if plot := draw_benchmark(values, folder / "benchmark.png"):
        LOGGER.info(f"{plot}")
    LOGGER.info(f"{folder / 'benchmark.json'}")
    if hard_fail is not None:
        failed = [row.format for row in rows if row.reason and not row.unavailable]
        low = [row.format for row in rows if row.scores and min(row.scores.values()) <= hard_fail]
        if failed or low:
            text = f"failed: {', '.join(failed) or 'none'}; below: {', '.join(low) or 'none'}"
            raise UserError(f"--hard-fail {hard_fail}: {text}")
    return values


def format_table(rows: Sequence[Row]) -> str:
    """Format rows as a text table of format, size, scores, times and the reasons of failures."""
    names = next((list(row.scores) for row in rows if row.scores), [])
    widths = {name: max(20, len(name) + 2) for name in names}
    scores = "".join(f"{name:>{width}}" for name, width in widths.items())
    lines = [f"{'format':<18}{'MB':>8}{scores}{'ms/image':>10}{'fastest':>9}"]
    for row in rows:
        cells = [f"{row.format:<18}", _format_number(row.megabytes, 8, 1)]
        cells += [_format_number((row.scores or {}).get(name), width, 3) for name, width in widths.items()]
        cells += [_format_number(row.milliseconds, 10, 1), _format_number(row.fastest, 9, 1)]
        lines.append("".join(cells) + (f"  {row.reason}" if row.reason else ""))
    return "\n".join(lines)


def _format_number(value: float | None, width: int, digits: int) -> str:
    return f"{value:{width}.{digits}f}" if value is not None else f"{'-':>{width}}"
