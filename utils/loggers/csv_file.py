"""Writer and reader of `results.csv`: one line per epoch, in the layout of YOLOv5."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.core.files import write_text
from utils.loggers import LOGGERS

FILE = "results.csv"


@LOGGERS.register("csv")
class CsvFile:
    """Logger that writes `results.csv` with columns of width 20 and values as %20.5g.

    The columns are in the order of the first epoch's numbers. A resumed run drops the lines from its first epoch on.
    Missing numbers are written as nan.
    """

    direct = True  # results.png is drawn from the file
    essential = True  # results.csv belongs to the run: if it cannot be written, the run ends, and resuming repeats it

    def __init__(self) -> None:
        self._path = Path(FILE)
        self._columns: list[str] = []
        self._rows: dict[int, dict[str, float]] | None = None  # None until the first epoch

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Set the file; an existing one is read at the first epoch."""
        self._path = run_dir / FILE
        self._columns, self._rows = [], None

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Rewrite the file atomically with one more line."""
        if self._rows is None:
            before = read_results(self._path) if epoch and self._path.is_file() else {}
            self._rows = {number: row for number, row in before.items() if number < epoch}
            self._columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        self._columns += [name for name in numbers if name not in self._columns]
        self._rows[epoch] = dict(numbers)
        lines = [",".join(f"{name:>20}" for name in ("epoch", *self._columns))]
        for number, row in sorted(self._rows.items()):
            values = (row.get(name, math.nan) for name in self._columns)
            lines.append(",".join([f"{number:>20}", *(f"{float(value):20.5g}" for value in values)]))
        write_text(self._path, "\n".join(lines) + "\n")

    def image(self, path: Path, epoch: int) -> None:
        """Do nothing; images are in the run folder."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Do nothing; no file is open."""


def read_results(path: Path) -> dict[int, dict[str, float]]:
    """Read the numbers of each epoch of a `results.csv`, without incomplete lines."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = [name.strip() for name in lines[0].split(",")] if lines else []
    rows: dict[int, dict[str, float]] = {}
    for line in lines[1:]:
        cells = line.split(",")
        if len(cells) != len(names):
            continue
        try:
            rows[int(cells[0])] = {name: float(cell) for name, cell in zip(names[1:], cells[1:], strict=True)}
        except ValueError:  # line edited by hand
            continue
    return rows
