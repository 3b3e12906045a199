"""Where the time of a training goes: a table of its phases, and a trace of a few steps (`--profile`).

Phases wait for the GPU at both ends, so that work is counted where it belongs; that makes a training a little slower.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from utils.core.files import atomic_path, write_text
from utils.core.log import LOGGER
from utils.core.timing import Stopwatch

PHASES = ("data", "transfer", "forward", "loss", "backward", "optimizer", "ema", "validation", "checkpoint", "trace")
UNTRACED, TRACED = 2, 5  # steps: the first ones are not like the others
TRACE, TABLE = "profile_trace.json.gz", "profile"

Phase = Callable[[str], AbstractContextManager[Any]]
_NOTHING: AbstractContextManager[Any] = nullcontext()


def untimed(name: str) -> AbstractContextManager[Any]:
    """Return what does nothing: the phases of a training that is not profiled."""
    return _NOTHING


class Profile:
    """Times the phases that the training loop names; as a logger it learns where the run is and when it ends.

    A step begins with the phase `data`. Before the first validation the trace is closed, so that it stays small.
    """

    def __init__(self, device: torch.device) -> None:
        self._watches = {name: Stopwatch(device) for name in PHASES}
        self._seconds: dict[str, list[float]] = {name: [] for name in PHASES}
        self._whole = Stopwatch(device)
        self._device, self._folder, self._steps = device, Path(), 0
        self._trace: Any = None

    def start(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """Begin: results go to `run_dir`."""
        self._folder = run_dir

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        if name == "data":
            self._next_step()
        if name == "validation":
            self._close_trace()
        with torch.profiler.record_function(name), self._timed(name):
            yield

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        with self._watches[name]:
            yield
        self._seconds[name].append(self._watches[name].last)

    def _next_step(self) -> None:
        if self._steps == 0:
            self._whole.__enter__()
        if self._steps == UNTRACED:
            kinds = [torch.profiler.ProfilerActivity.CPU]
            if self._device.type == "cuda":
                kinds.append(torch.profiler.ProfilerActivity.CUDA)
            with self._timed("trace"):
                self._trace = torch.profiler.profile(activities=kinds)
                self._trace.start()
        elif self._steps == UNTRACED + TRACED:
            self._close_trace()
        self._steps += 1

    def _close_trace(self) -> None:
        if self._trace is None:
            return
        trace, self._trace = self._trace, None
        path = self._folder / TRACE
        with self._timed("trace"), atomic_path(path) as temporary:
            trace.stop()
            trace.export_chrome_trace(str(temporary))
        LOGGER.info(f"trace of some steps: {path} (chrome://tracing or ui.perfetto.dev show it)")

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        """Write the table of what has been timed so far."""
        self._write()

    def image(self, path: Path, epoch: int) -> None:
        """Do nothing: pictures are of no interest here."""

    def finish(self, numbers: Mapping[str, float], checkpoints: Sequence[Path]) -> None:
        """Write and show the table."""
        self._close_trace()
        LOGGER.info(self._write())

    def _write(self) -> str:
        rows = self.rows()
        text = table(rows)
        write_text(self._folder / f"{TABLE}.txt", text + "\n")
        write_text(
            self._folder / f"{TABLE}.json",
            json.dumps({"steps": len(self._seconds["forward"]), "phases": rows}, indent=1) + "\n",
        )
        return text

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per phase; the last is what lies between them."""
        self._whole.__exit__()
        self._whole.__enter__()
        whole = self._whole.seconds
        rows = [_row(name, seconds, whole) for name, seconds in self._seconds.items() if seconds]
        rest = max(whole - sum(sum(seconds) for seconds in self._seconds.values()), 0.0)
        return [*rows, _row("other", [rest], whole)]


def _row(name: str, seconds: Sequence[float], whole: float) -> dict[str, Any]:
    return {
        "phase": name,
        "calls": len(seconds),
        "median_ms": round(1000 * statistics.median(seconds), 3),
        "seconds": round(sum(seconds), 4),
        "share": round(sum(seconds) / max(whole, 1e-9), 4),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as text."""
    lines = [f"{'phase':<12}{'calls':>8}{'median ms':>12}{'seconds':>10}{'share':>8}"]
    for row in rows:
        lines.append(
            f"{row['phase']:<12}{row['calls']:>8}{row['median_ms']:>12.2f}{row['seconds']:>10.2f}{row['share']:>8.1%}"
        )
    return "\n".join(lines)
