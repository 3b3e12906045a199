"""All formats of one checkpoint side by side: written, run in turns, scored; what fails is a row with the reason."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.core.cli import add_device, add_download, add_image_size, add_run_folder, new_parser
from utils.core.errors import UserError
from utils.core.files import run_folder, write_text
from utils.core.log import LOGGER

if TYPE_CHECKING:  # what needs torch is imported after parsing, so that --help answers at once
    import torch

    from utils.core.contracts import Runner


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of benchmark.py."""
    parser = new_parser(description)
    add = parser.add_argument
    add("--weights", nargs="+", default=[], help="checkpoint; default: newest best.pt")
    add("--include", nargs="+", default=[], metavar="FORMAT", help="formats; empty: all that are written here")
    add("--data", default="", help="data-set YAML to score on; empty: the checkpoint's own")
    add_image_size(parser, [], "size of the input; empty: the size it was trained at, else 640")
    add("--batch-size", type=int, default=1, help="images per run")
    add("--runs", type=int, default=20, help="timed runs of each format")
    add("--half", action="store_true", help="formats that can in half precision")
    add("--int8", action="store_true", help="also those that can in 8-bit integers, calibrated on --data")
    add("--speed-only", action="store_true", help="do not score")
    add("--test", action="store_true", help="only export and compare with PyTorch; neither speed nor scores")
    add("--pt-only", action="store_true", help="only PyTorch itself")
    floor_help = "end with an error if a format fails or scores less than this"
    add("--hard-fail", nargs="?", const=0.0, type=float, default=None, metavar="FLOOR", help=floor_help)
    add_device(parser)
    add_run_folder(parser, "runs/benchmark")
    add_download(parser)
    return parser


@dataclass
class Row:
    """What was found of one format; None where there is nothing to say."""

    format: str
    megabytes: float | None = None
    scores: dict[str, float] | None = None
    milliseconds: float | None = None  # per image, median
    fastest: float | None = None
    reason: str = ""  # why it failed


def benchmark_task(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Benchmark as `options` say; return a row per format, the checkpoint's own first."""
    if options.batch_size < 1 or options.runs < 1:
        raise UserError("--batch-size and --runs must be at least 1")
    from utils.backends.open_weights import find_weights, open_weights
    from utils.core.device import describe, select_device
    from utils.programs.export import size_bytes

    device = select_device(options.device)
    paths = find_weights(options.weights, options.download)
    if len(paths) > 1:
        raise UserError("--weights: one checkpoint is benchmarked at a time")
    folder = run_folder(Path(options.project), options.name, options.exist_ok)
    opened = open_weights([str(paths[0])], device, half=options.half)
    rows = [Row("PyTorch", size_bytes(paths[0]) / 1e6)]
    runners: dict[str, Runner] = {"PyTorch": opened.runner}
    for name, precision in [] if options.pt_only else _formats(options):
        row = Row(name if precision != "int8" else f"{name} int8")
        try:
            file = _exported(options, paths[0], folder, name, precision)
            row.megabytes = size_bytes(file) / 1e6
            if reason := _cannot_run(name):
                row.reason = f"written, not run: {reason}"
            else:
                runners[row.format] = open_weights([str(file)], device).runner
        except UserError as error:
            row.reason = str(error)
        rows.append(row)
    size = _size(options, opened.meta, opened.runner)
    if not options.test:
        _measure(options, rows, runners, device, size)
        if not options.speed_only:
            _score(options, rows, runners, opened.meta, size)
    about = {
        "weights": str(paths[0]), "imgsz": size, "batch_size": options.batch_size, "device": describe(device),
        "machine": platform.processor() or platform.machine(), "runs": options.runs,
    }  # fmt: skip
    return _report(options, rows, about, folder)


def _formats(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Return pairs of format and precision."""
    from utils.backends import BACKENDS
    from utils.programs.export import wanted_formats, written_formats

    names = wanted_formats(options.include, BACKENDS) if options.include else written_formats(BACKENDS)
    pairs = [(name, "fp16" if options.half and "half" in BACKENDS.get(name).can else "fp32") for name in names]
    if options.int8:
        pairs += [(name, "int8") for name in names if "int8" in BACKENDS.get(name).can]
    return pairs


def _exported(options: argparse.Namespace, weights: Path, folder: Path, name: str, precision: str) -> Path:
    """Export one format into the run folder for the size that is measured; return the file."""
    from utils.backends import BACKENDS
    from utils.programs.export import export_parser, export_task

    backend = BACKENDS.get(name)
    arguments = ["--weights", str(weights), "--include", name, "--output", str(folder / "files")]
    arguments += ["--imgsz", *map(str, options.imgsz)] if options.imgsz else ["--static"]
    arguments += ["--data", options.data] if options.data else []
    arguments += ["--half"] if precision == "fp16" else ["--int8"] if precision == "int8" else []
    if "batch" in backend.can and options.batch_size > 1:
        arguments += ["--batch-size", str(options.batch_size)]
    return export_task(export_parser(None).parse_args(arguments), gather=False)[0]


def _cannot_run(name: str) -> str:
    from utils.backends import BACKENDS

    reason = getattr(BACKENDS.get(name), "cannot_run", None)
    return reason() if reason else ""


def _size(options: argparse.Namespace, meta: dict[str, Any], runner: Runner) -> int:
    usual = 224 if "classify" in runner.specs else 640
    size = max(options.imgsz) if options.imgsz else int(meta.get("imgsz") or usual)
    return -(-size // runner.stride) * runner.stride


def _measure(
    options: argparse.Namespace, rows: list[Row], runners: dict[str, Runner], device: torch.device, size: int
) -> None:
    """Time every runner on the same images, in turns; the first runs of each do not count."""
    import torch

    from utils.core.timing import time_alternately

    images = torch.randint(0, 256, (options.batch_size, 3, size, size), dtype=torch.uint8)
    actions = {name: partial(runner.run, images) for name, runner in runners.items()}
    seconds = time_alternately(actions, options.runs, target=device, twice=True)
    for row in rows:
        if times := seconds.get(row.format):
            row.milliseconds = 1000 * statistics.median(times) / options.batch_size
            row.fastest = 1000 * min(times) / options.batch_size


def _score(
    options: argparse.Namespace, rows: list[Row], runners: dict[str, Runner], meta: dict[str, Any], size: int
) -> None:
    from utils.core.data_config import load_data
    from utils.programs.export_certificate import accuracy

    text = str(options.data or meta.get("data") or "")
    if not text:
        LOGGER.warning("no scores: give --data")
        return
    data = load_data(text)
    for row in rows:
        if row.format in runners:
            start = time.perf_counter()
            row.scores = accuracy(runners[row.format], data, size, square=True)
            scores = ", ".join(f"{name} {value:.4f}" for name, value in (row.scores or {}).items())
            LOGGER.info(f"{row.format}: {scores} ({time.perf_counter() - start:.0f} s)")


def _report(options: argparse.Namespace, rows: list[Row], about: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    from utils.plots.format_benchmark import draw_benchmark

    found = [asdict(row) for row in rows]
    write_text(folder / "benchmark.json", json.dumps({**about, "formats": found}, indent=1) + "\n")
    LOGGER.info(table(rows))
    if picture := draw_benchmark(found, folder / "benchmark.png"):
        LOGGER.info(f"{picture}")
    LOGGER.info(f"{folder / 'benchmark.json'}")
    if options.hard_fail is not None:
        bad = [row.format for row in rows if row.reason]
        low = [row.format for row in rows if row.scores and min(row.scores.values()) <= options.hard_fail]
        if bad or low:
            words = f"failed: {', '.join(bad) or 'none'}; below: {', '.join(low) or 'none'}"
            raise UserError(f"--hard-fail {options.hard_fail}: {words}")
    return found


def table(rows: list[Row]) -> str:
    """Return the rows as text: format, size, scores, time, and why a format has none."""
    names = next((list(row.scores) for row in rows if row.scores), [])
    widths = {name: max(20, len(name) + 2) for name in names}
    scores = "".join(f"{name:>{width}}" for name, width in widths.items())
    head = f"{'format':<18}{'MB':>8}{scores}{'ms/image':>10}{'fastest':>9}"
    lines = [head]
    for row in rows:
        cells = [f"{row.format:<18}", _number(row.megabytes, 8, 1)]
        cells += [_number((row.scores or {}).get(name), width, 3) for name, width in widths.items()]
        cells += [_number(row.milliseconds, 10, 1), _number(row.fastest, 9, 1)]
        lines.append("".join(cells) + (f"  {row.reason}" if row.reason else ""))
    return "\n".join(lines)


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{value:{width}.{digits}f}" if value is not None else f"{'-':>{width}}"
